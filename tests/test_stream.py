"""The exact stream over a set of shards."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minibatches import joined, same

from atdiff_core.data import recently_used
from atdiff_core.data.decoding import Array, SampleDecoder
from atdiff_core.data.index import load_index
from atdiff_core.data.order import Layout, Places, SampleOrder
from atdiff_core.data.recently_used import RecentlyUsed
from atdiff_core.data.shard_files import LocalFiles
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards

NUM_SAMPLES = 53


def make_set(out: Path, *, samples_per_shard: int = 5) -> Path:
    """A set of 53 images of 8 px in which every image is its own number, in grey."""
    images = np.arange(NUM_SAMPLES, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    labels = np.arange(NUM_SAMPLES, dtype=np.uint8) % 3
    source = ArraySource("numbers", "CC0", ["a", "b", "c"], images, labels)
    assert list(write_shards(source, out, [8], image_channels=1, samples_per_shard=samples_per_shard))
    return out / "8px"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def shards(folder: Path) -> ShardSet:
    return open_shards(folder)


def keys(shards: ShardSet, count: int, *, seed: int = 0, batch_size: int = 8, first: int = 0) -> list[str]:
    batches = islice(shards.batches(seed=seed, batch_size=batch_size, first=first), count)
    return [key for batch in batches for key in batch.keys]


LAYOUTS = st.builds(Layout, st.sampled_from([1, 2, 3, 5, 12, 24]), st.integers(1, 5))
COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(lambda counts: sum(counts) >= 5)


def pairs(places: Places) -> list[tuple[int, int]]:
    return list(zip(places.shards.tolist(), places.rows.tolist(), strict=True))


class TestOrder:
    def test_a_layout_of_more_blocks_than_samples_is_refused(self) -> None:
        with pytest.raises(ValueError, match="3 samples cannot be laid out"):
            SampleOrder([1, 2], Layout(1, 4))

    @given(counts=COUNTS, layout=LAYOUTS, seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
    def test_every_sample_comes_exactly_once_per_epoch(
        self, counts: list[int], layout: Layout, seed: int, epoch: int
    ) -> None:
        total = sum(counts)
        places = SampleOrder(counts, layout).places(seed, epoch * total, (epoch + 1) * total)
        assert sorted(pairs(places)) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]

    @given(
        start=st.integers(0, 60),
        length=st.integers(0, 60),
        step=st.integers(1, 7),
        layout=LAYOUTS,
        seed=st.integers(0, 99),
    )
    def test_a_stretch_of_the_stream_is_the_sum_of_its_positions(
        self, start: int, length: int, step: int, layout: Layout, seed: int
    ) -> None:
        order = SampleOrder((5, 2, 7, 1, 4), layout)
        single = [pairs(order.places(seed, each, each + 1))[0] for each in range(start, start + length, step)]
        assert pairs(order.places(seed, start, start + length, step)) == single

    @given(world_size=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), seed=st.integers(0, 99))
    def test_ranks_read_runs_of_their_own(self, world_size: int, seed: int) -> None:
        layout = Layout(num_streams=24, num_blocks=4)
        order = SampleOrder([40] * 24, layout)
        shards, ends, opened_at = order._epoch(seed, 0)
        starts = ends - order.counts[shards]
        where = torch.empty(24, dtype=torch.int64).scatter_(0, shards, starts)  # Of each shard in the circle.
        for block in range(4):
            for rank in range(world_size):
                places = order.places(seed, block * 240 + rank, (block + 1) * 240, world_size)
                circle = (where[places.shards] + places.rows - opened_at) % 960
                runs = (circle // 10).unique()
                assert len(circle) == 10 * len(runs) == 240 // world_size, "runs of ten are read whole or not at all"
                if world_size in (1, 2, 4, 8):
                    assert runs[-1] - runs[0] == len(runs) - 1, "they are neighbours"

    def test_a_minibatch_is_drawn_from_the_whole_block(self) -> None:
        order = SampleOrder([384 * 64], Layout(384, 1))
        for start in range(0, 384 * 64, 48 * 64):
            eighths = order.places(0, start, start + 48).rows.mul(8).div(384 * 64, rounding_mode="floor")
            assert torch.bincount(eighths, minlength=8).max() <= 8  # Random draws would give 6 +- 2.3.

    def test_small_sets_are_shuffled_as_a_whole_and_big_ones_in_blocks(self) -> None:
        assert Layout.of(53, 200_000) == Layout(1, 1)
        assert Layout.of(50_000, 120 * 10**6) == Layout(48, 1)
        imagenet = Layout.of(1_281_167, 140 * 10**9)
        assert imagenet.num_streams == 384
        assert 0.9 < 140 * 10**9 / imagenet.num_blocks / (768 * 2**20) < 1.1

    @given(st.integers(1, 10**9), st.integers(1, 10**14))
    def test_every_layout_has_runs_long_enough(self, num_samples: int, num_bytes: int) -> None:
        layout = Layout.of(num_samples, num_bytes)
        runs = layout.num_blocks * layout.num_streams
        assert 384 % layout.num_streams == 0
        assert runs == 1 or num_samples / runs >= max(16, 0.9 * num_samples / num_bytes * 2**21)


class TestBatches:
    def test_an_epoch_of_batches_shows_every_sample_once(self, shards: ShardSet) -> None:
        seen = keys(shards, NUM_SAMPLES, batch_size=3)
        for epoch in range(3):
            assert len(set(seen[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES])) == NUM_SAMPLES

    def test_images_labels_and_keys_belong_together(self, shards: ShardSet) -> None:
        batch = next(shards.batches(seed=3, batch_size=32))
        numbers = torch.tensor([int(key) for key in batch.keys])
        assert batch.images.shape == (32, 1, 8, 8)
        assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
        assert torch.equal(batch.images, (numbers / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 8, 8))
        assert torch.equal(batch.labels, numbers % 3)

    def test_positions_count_the_infinite_stream(self, shards: ShardSet) -> None:
        batches = islice(shards.batches(seed=0, batch_size=8, first=5), 3)
        assert [position for batch in batches for position in batch.positions] == list(range(40, 64))

    def test_order_differs_between_epochs_and_seeds(self, shards: ShardSet) -> None:
        first, second = (keys(shards, 1, batch_size=NUM_SAMPLES, first=epoch) for epoch in (0, 1))
        other_seed = keys(shards, 1, batch_size=NUM_SAMPLES, seed=1)
        assert sorted(first) == sorted(second) == sorted(other_seed)
        assert first != second != other_seed != first

    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_the_global_minibatch_is_the_same_at_any_world_size(self, shards: ShardSet, world_size: int) -> None:
        ranks = [shards.batches(seed=7, batch_size=12, rank=rank, world_size=world_size) for rank in range(world_size)]
        alone = shards.batches(seed=7, batch_size=12)
        for _ in range(10):
            assert same(next(alone), joined([next(rank) for rank in ranks]))

    @given(
        seed=st.integers(0, 2**40),
        rows=st.integers(1, 3),
        sizes=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), st.integers(1, 5)), min_size=1, max_size=4),
    )
    def test_stopped_anywhere_and_resumed_at_any_world_size_nothing_is_lost(
        self, shards: ShardSet, seed: int, rows: int, sizes: list[tuple[int, int]]
    ) -> None:
        batch_size = 24 * rows
        straight = shards.batches(seed=seed, batch_size=batch_size)
        done = 0
        for world_size, count in sizes:
            ranks = [
                shards.batches(seed=seed, batch_size=batch_size, first=done, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            for _ in range(count):
                assert same(next(straight), joined([next(rank) for rank in ranks]))
            done += count

    @given(first=st.integers(0, 40), batch_size=st.sampled_from([1, 4, 60, 130]))
    def test_starting_at_a_minibatch_equals_skipping_those_before(
        self, shards: ShardSet, first: int, batch_size: int
    ) -> None:
        skipped = next(islice(shards.batches(seed=1, batch_size=batch_size), first, None))
        started = next(shards.batches(seed=1, batch_size=batch_size, first=first))
        assert same(skipped, started)

    def test_starting_late_reads_nothing_that_was_skipped(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read = []

        def noted(files: LocalFiles, number: int, start: int, stop: int) -> bytes:
            read.append(number)
            return original(files, number, start, stop)

        original = LocalFiles.read
        monkeypatch.setattr(LocalFiles, "read", noted)
        next(open_shards(folder).batches(seed=0, batch_size=3, first=1000))
        assert len(read) == 3

    def test_without_memory_the_batches_are_the_same(self, folder: Path, shards: ShardSet) -> None:
        forgetful = open_shards(folder, memory_bytes=NUM_SAMPLES * 64 - 1)
        assert shards._reader.keeps_all
        assert not forgetful._reader.keeps_all
        pairs = zip(forgetful.batches(seed=2, batch_size=16), shards.batches(seed=2, batch_size=16), strict=True)
        assert all(same(one, other) for one, other in islice(pairs, 10))

    def test_in_memory_every_sample_is_decoded_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded = []
        original = SampleDecoder.decoded

        def noted(decoder: SampleDecoder, content: bytes, extension: str, out: Array | None = None) -> object:
            decoded.append(extension)
            return original(decoder, content, extension, out)

        monkeypatch.setattr(SampleDecoder, "decoded", noted)
        assert len(keys(open_shards(folder), NUM_SAMPLES, batch_size=4)) == 4 * NUM_SAMPLES
        assert len(decoded) == NUM_SAMPLES

    def test_arguments_out_of_range_are_refused_at_once(self, shards: ShardSet, folder: Path) -> None:
        with pytest.raises(ValueError, match="batch_size must be a multiple of world_size, got 10 and 4"):
            shards.batches(seed=0, batch_size=10, world_size=4)
        with pytest.raises(ValueError, match="got rank 2 of 2"):
            shards.batches(seed=0, batch_size=10, rank=2, world_size=2)
        with pytest.raises(ValueError, match="batch_size must be >= 1"):
            shards.batches(seed=0, batch_size=0)
        with pytest.raises(ValueError, match="first and workers must be >= 0"):
            shards.batches(seed=0, batch_size=8, first=-1)
        with pytest.raises(ValueError, match="memory_bytes must be >= 0"):
            open_shards(folder, memory_bytes=-1)


class TestImages:
    @pytest.mark.parametrize("batch_size", [1, 7, 53, 256])
    def test_all_images_come_once_in_the_order_of_the_shards(self, shards: ShardSet, batch_size: int) -> None:
        images = torch.cat(list(shards.images(batch_size=batch_size)))
        numbers = ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()
        tables = [shards._files.table(number) for number in range(len(shards.index.shards))]
        written = [int(table.key(row)) for table in tables for row in range(len(table))]
        assert numbers == written
        assert sorted(numbers) == list(range(NUM_SAMPLES))

    def test_a_limit_cuts_the_images_short(self, shards: ShardSet) -> None:
        assert [len(batch) for batch in shards.images(limit=20, batch_size=8)] == [8, 8, 4]
        assert sum(len(batch) for batch in shards.images(limit=1000)) == NUM_SAMPLES

    def test_a_set_tells_what_its_index_tells(self, shards: ShardSet, folder: Path) -> None:
        index = load_index(folder)
        assert (shards.resolution, shards.image_channels, shards.num_samples) == (8, 1, NUM_SAMPLES)
        assert shards.index == index
        assert shards.fingerprint == index.fingerprint


def test_of_what_shards_need_the_last_used_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recently_used, "MAX_ROWS", 10)
    computed: list[int] = []

    def compute(number: int) -> list[int]:
        computed.append(number)
        return [number] * 4

    values = RecentlyUsed(compute)
    for number in (0, 1, 0, 2, 0, 1):  # Two fit: the third drives out the one that was unused for longest.
        assert values(number) == [number] * 4
    assert computed == [0, 1, 2, 1]
