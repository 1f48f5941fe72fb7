"""Minibatches by other processes: the same ones, and an end that is clear whatever happens."""

import multiprocessing
import os
import signal
from collections import deque
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minibatches import joined, same
from waiting import wait_until

from atdiff_core.data.batch import Batch, Request
from atdiff_core.data.prefetching import BATCHES_AHEAD, BATCHES_OUT, Made, Minibatches, Slots
from atdiff_core.data.stream import ShardSet, open_shards


@given(
    seed=st.integers(0, 2**40),
    workers=st.integers(1, 4),
    first=st.integers(0, 60),
    part=st.sampled_from([(0, 1), (1, 2), (2, 3)]),
    in_memory=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40)
def test_workers_at_any_pace_give_the_same_minibatches(
    digits_8px: ShardSet,
    seed: int,
    workers: int,
    first: int,
    part: tuple[int, int],
    in_memory: bool,
    data: st.DataObject,
) -> None:
    """All that the processes do, without them: each has opened the set anew and makes its minibatches in their order,
    as soon as they are asked for or as late as can be. Whoever holds on to minibatches finds them unchanged."""
    rank, world_size = part
    request = Request(seed, 6, rank, world_size)
    asked_ahead = workers * BATCHES_AHEAD
    slots = Slots(asked_ahead + BATCHES_OUT, *digits_8px.content_of(6 // world_size))
    opened = [open_shards(digits_8px.path, memory_bytes=2**30 * in_memory) for _ in range(workers)]
    makers = [Minibatches(shards, request, slots) for shards in opened]
    asked: list[deque[tuple[int, int]]] = [deque() for _ in range(workers)]
    made: dict[int, Made] = {}
    held: deque[tuple[Batch, Batch]] = deque(maxlen=data.draw(st.integers(1, 5)))

    def ask(number: int) -> None:
        asked[(number - first) % workers].append((number, slots.lend()))

    def work() -> None:
        busy = [worker for worker in range(workers) if asked[worker]]
        worker = data.draw(st.sampled_from(busy))
        number, slot = asked[worker].popleft()
        found = makers[worker][number, slot]
        assert isinstance(found, Made)
        made[number] = found

    alone = digits_8px.batches(seed=seed, batch_size=6, first=first, rank=rank, world_size=world_size)
    for number in range(first, first + asked_ahead):
        ask(number)
    for number in range(first, first + 12):
        while number not in made:
            work()
        ask(number + asked_ahead)  # Before the minibatch is handed out.
        for _ in range(data.draw(st.integers(0, min(2, sum(map(len, asked)))))):
            work()
        held.append((made.pop(number).batch(slots, request.positions(number)), next(alone)))
        assert all(same(ours, theirs) for ours, theirs in held)


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**40),
    parts=st.lists(
        st.tuples(st.sampled_from([(1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (3, 1)]), st.integers(1, 9)),
        min_size=2,
        max_size=3,
    ),
)
@settings(max_examples=4)
def test_stopped_and_resumed_with_other_ranks_and_processes_nothing_is_lost(
    digits_8px: ShardSet, seed: int, parts: list[tuple[tuple[int, int], int]]
) -> None:
    shards = open_shards(digits_8px.path, memory_bytes=0)
    straight = digits_8px.batches(seed=seed, batch_size=12)
    done = 0
    for (world_size, workers), count in parts:
        ranks = [
            shards.batches(seed=seed, batch_size=12, first=done, rank=rank, world_size=world_size, workers=workers)
            for rank in range(world_size)
        ]
        for _ in range(count):
            assert same(joined([next(rank) for rank in ranks]), next(straight))
        for rank in ranks:
            rank.close()
        done += count


@pytest.mark.slow
def test_processes_give_the_same_minibatches_and_end_with_the_iterator(digits_8px: ShardSet) -> None:
    shards = open_shards(digits_8px.path, memory_bytes=0)
    before = len(multiprocessing.active_children())
    prefetched = shards.batches(seed=1, batch_size=12, first=3, rank=1, world_size=3, workers=2)
    alone = shards.batches(seed=1, batch_size=12, first=3, rank=1, world_size=3)
    for ours, theirs in islice(zip(prefetched, alone, strict=True), 70):  # Three epochs.
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.keys, ours.positions, ours.numbers) == (theirs.keys, theirs.positions, theirs.numbers)
    assert len(multiprocessing.active_children()) == before + 2
    prefetched.close()
    wait_until(lambda: len(multiprocessing.active_children()) == before)


@pytest.mark.slow
def test_a_damaged_sample_arrives_as_one_line_and_a_killed_process_is_told(
    digits_8px: ShardSet, tmp_path: Path
) -> None:
    copy = tmp_path / "8px"
    copy.mkdir()
    for file in Path(digits_8px.path).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tar = bytearray((copy / "000002.tar").read_bytes())
    tar[tar.index(b"IDAT") + 6] ^= 255
    (copy / "000002.tar").write_bytes(tar)
    with pytest.raises(ValueError, match=r"^[^\n]*000002\.tar, sample \w+, offset \d+: not the bytes[^\n]*$"):
        for _ in islice(open_shards(copy, memory_bytes=0).batches(seed=0, batch_size=64, workers=1), 4):
            pass
    batches = digits_8px.batches(seed=0, batch_size=8, workers=1)
    next(batches)
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a process that reads data has died"):
        for _ in islice(batches, 1000):
            pass
