"""The exact stream: minibatches that depend on nothing but the shards, the seed and their number."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from atdiff_core.data.cache import ShardCache
from atdiff_core.data.decoding import DecodedShard, decoded_shard
from atdiff_core.data.index import load_index
from atdiff_core.data.order import Layout, Places, SampleOrder

CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Batch:
    """One rank's part of a minibatch.

    Attributes:
        images: ``[batch, channels, height, width]``, float32 in [-1, 1].
        labels: ``[batch]``, int64.
        positions: Where in the infinite stream each sample stands.
        keys: Name of each sample in its set.
    """

    images: Tensor
    labels: Tensor
    positions: list[int]
    keys: list[str]


class ShardSet:
    """The shards of one resolution, opened for reading; see ``open_shards``."""

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path
        self.index = load_index(path)
        self._cache = ShardCache(self._decode, cache_bytes)
        counts = [shard.samples for shard in self.index.shards]
        layout = Layout.of(sum(counts), sum(shard.bytes for shard in self.index.shards))
        self._order = SampleOrder(counts, layout)

    @property
    def resolution(self) -> int:
        return self.index.resolution

    @property
    def image_channels(self) -> int:
        return self.index.image_channels

    @property
    def num_samples(self) -> int:
        return self.index.num_samples

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def batches(
        self, *, seed: int, batch_size: int, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """The minibatches from number ``first`` on, without end.

        Minibatch b holds the positions ``b * batch_size`` to ``(b + 1) * batch_size - 1`` of the
        infinite stream. Rank r has every ``world_size``-th of its rows, from the r-th on, which lie
        together in the shards (see ``SampleOrder``). To resume is to pass the number of minibatches
        done; shards before it are not read.

        Raises:
            ValueError: At once, if an argument is out of range; while iterating, if a shard is damaged.
        """
        if batch_size < 1 or first < 0:
            raise ValueError(f"batch_size must be >= 1 and first >= 0, got {batch_size} and {first}")
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank must be one of world_size ranks, got rank {rank} of {world_size}")
        if batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of world_size, got {batch_size} and {world_size}")
        starts = count(first * batch_size, batch_size)
        return (self._batch(seed, range(start + rank, start + batch_size, world_size)) for start in starts)

    def images(self, limit: int | None = None, batch_size: int = 256) -> Iterator[Tensor]:
        """All images once, or the first ``limit``, in the order of the shards.

        Yields ``[up to batch_size, channels, height, width]``, float32 in [-1, 1].
        """
        if batch_size < 1 or (limit is not None and limit < 0):
            raise ValueError(f"batch_size must be >= 1 and limit >= 0, got {batch_size} and {limit}")
        counts = torch.tensor([shard.samples for shard in self.index.shards])
        ends = counts.cumsum(0)
        total = self.num_samples if limit is None else min(limit, self.num_samples)
        for start in range(0, total, batch_size):
            numbers = torch.arange(start, min(start + batch_size, total))
            shards = torch.searchsorted(ends, numbers, right=True)
            rows = numbers - (ends - counts)[shards]
            yield _scaled(self._gathered(Places(shards, rows)).images)

    def _batch(self, seed: int, positions: range) -> Batch:
        gathered = self._gathered(self._order.places(seed, positions.start, positions.stop, positions.step))
        return Batch(_scaled(gathered.images), gathered.labels, list(positions), gathered.keys)

    def _gathered(self, places: Places) -> DecodedShard:
        """The samples at some places, in their order."""
        size = len(places.rows)
        shape = (size, self.image_channels, self.resolution, self.resolution)
        images, labels = torch.empty(shape, dtype=torch.uint8), torch.empty(size, dtype=torch.int64)
        keys = [""] * size
        for number in sorted(set(places.shards.tolist())):
            shard = self._cache[number]
            here = (places.shards == number).nonzero().squeeze(1)
            rows = places.rows[here]
            images[here], labels[here] = shard.images[rows], shard.labels[rows]
            for place, row in zip(here.tolist(), rows.tolist(), strict=True):
                keys[place] = shard.keys[row]
        return DecodedShard(images, labels, keys)

    def _decode(self, number: int) -> DecodedShard:
        return decoded_shard(self.path, self.index.shards[number], self.index)


def open_shards(path: Path, *, cache_bytes: int = CACHE_BYTES) -> ShardSet:
    """Open the set in a ``<resolution>px`` folder.

    Args:
        cache_bytes: Decoded pixels to keep in memory. It changes the speed, never the stream.

    Raises:
        ValueError: If the set is missing, incomplete or damaged.
    """
    return ShardSet(path, cache_bytes=cache_bytes)


def _scaled(images: Tensor) -> Tensor:
    """Bytes to [-1, 1], both ends exact."""
    return images.float().div_(127.5).sub_(1)
