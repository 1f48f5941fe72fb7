"""Minibatches by other processes: the same ones, and an end that is clear whatever happens."""

import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
from waiting import wait_until

from atdiff_core.data.stream import ShardSet, open_shards

pytestmark = pytest.mark.slow


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
