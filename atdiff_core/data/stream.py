"""The exact stream: minibatches that depend on nothing but the shards, the seed and their number."""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import torch
from torch import Tensor

from atdiff_core.data.addresses import Address, anywhere, scheme_of
from atdiff_core.data.batch import Batch, Request, scaled
from atdiff_core.data.order import Layout, Places, SampleOrder
from atdiff_core.data.prefetching import prefetched
from atdiff_core.data.read_ahead import ReadAhead
from atdiff_core.data.remote import Patience
from atdiff_core.data.samples import SampleReader
from atdiff_core.data.shard_files import files_at
from atdiff_core.randomness import derived_seed

MEMORY_BYTES = 256 * 2**20
MAX_SUGGESTED_WORKERS = 4
CAPTIONS_AT_ONCE = 256


class ShardSet:
    """The shards of one resolution, opened for reading; see ``open_shards``."""

    def __init__(self, address: Address, memory_bytes: int, patience: Patience) -> None:
        self._arguments = (anywhere(address), memory_bytes, patience)
        self.path = address
        self._files = files_at(address, patience)
        self.index = self._files.index
        self._reader = SampleReader(self._files, memory_bytes)
        counts = [shard.samples for shard in self.index.shards]
        layout = Layout.of(sum(counts), sum(shard.bytes for shard in self.index.shards))
        self._order = SampleOrder(counts, layout)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the set anew: nothing that was read travels."""
        return ShardSet, self._arguments

    @property
    def resolution(self) -> int:
        """Height and width of what a network sees."""
        return self.index.sample_side

    @property
    def image_channels(self) -> int:
        """Channels of what a network sees."""
        return self.index.sample_channels

    @property
    def num_samples(self) -> int:
        return self.index.num_samples

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def suggested_workers(self) -> int:
        """Processes worth having to read ahead: none for a set that fits into memory."""
        return 0 if self._reader.keeps_all else min(MAX_SUGGESTED_WORKERS, os.cpu_count() or 1)

    def batches(
        self, *, seed: int, batch_size: int, first: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0
    ) -> Generator[Batch]:
        """The minibatches from number ``first`` on, without end.

        Minibatch b holds the positions ``b * batch_size`` to ``(b + 1) * batch_size - 1`` of the
        infinite stream. Rank r has every ``world_size``-th of its rows, from the r-th on, which lie
        together in the shards (see ``SampleOrder``). To resume is to pass the number of minibatches
        done; nothing before them is read.

        Args:
            workers: Processes that read and decode ahead. They change the speed, never the
                stream. With none it is done when a minibatch is asked for, which is best for a
                set that fits into memory: every sample is then decoded once.

        Raises:
            ValueError: At once, if an argument is out of range; while iterating, if a shard is damaged.
        """
        if first < 0 or workers < 0:
            raise ValueError(f"first and workers must be >= 0, got {first} and {workers}")
        request = Request(seed, batch_size, rank, world_size)
        if workers:
            batches: Generator[Batch] = prefetched(self, request, first=first, workers=workers)
        else:
            batches = (self.batch(request, number) for number in count(first))
        return batches if self._reader.keeps_all and not self._is_remote else self._read_ahead(batches, request, first)

    def content_of(self, count: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of the content of so many samples, as they are stored."""
        return self._reader.content_of(count)

    def batch(self, request: Request, number: int, content: Tensor | None = None) -> Batch:
        """One minibatch, its content in the memory that is given, or in new."""
        positions = request.positions(number)
        places = self._order.places(request.seed, positions.start, positions.stop, positions.step)
        samples = self._reader.at(places, content)
        captions = [
            self._caption(captions, request.seed, position)
            for captions, position in zip(samples.captions, positions, strict=True)
        ]
        return Batch(samples.content, samples.labels, captions, list(positions), samples.numbers, samples.keys)

    def images(self, limit: int | None = None, batch_size: int = 256) -> Iterator[Tensor]:
        """All images once, or the first ``limit``, in the order of the shards.

        Yields ``[up to batch_size, channels, height, width]``, float32 in [-1, 1].
        """
        if batch_size < 1 or (limit is not None and limit < 0):
            raise ValueError(f"batch_size must be >= 1 and limit >= 0, got {batch_size} and {limit}")
        total = self.num_samples if limit is None else min(limit, self.num_samples)
        for start in range(0, total, batch_size):
            yield self.samples_at(list(range(start, min(start + batch_size, total))))

    def samples_at(self, numbers: list[int]) -> Tensor:
        """The samples with these numbers, counted through the shards, as ``images`` gives them."""
        return scaled(self._reader.at(self._places(numbers)).content)

    def captions(self) -> Iterator[tuple[str, ...]]:
        """All captions of every sample, in the order of the shards; their pictures are not read."""
        for start in range(0, self.num_samples, CAPTIONS_AT_ONCE):
            numbers = list(range(start, min(start + CAPTIONS_AT_ONCE, self.num_samples)))
            yield from self._reader.captions_at(self._places(numbers))

    def _places(self, numbers: list[int]) -> Places:
        """Where the samples with these numbers lie."""
        wanted = torch.tensor(numbers, dtype=torch.int64)
        ends = self._order.counts.cumsum(0)
        shards = torch.searchsorted(ends, wanted, right=True)
        return Places(shards, wanted - (ends - self._order.counts)[shards])

    def _caption(self, captions: tuple[str, ...], seed: int, position: int) -> str:
        """The caption of a sample at a position: by chance, but the same whoever reads it."""
        return captions[derived_seed(seed, "caption", position) % len(captions)] if captions else ""

    @property
    def _is_remote(self) -> bool:
        return scheme_of(self.path) is not None

    def _read_ahead(self, batches: Generator[Batch], request: Request, first: int) -> Generator[Batch]:
        threads = 8 if self._is_remote else 1
        with closing(batches), ReadAhead(self._files, self._order, request, threads=threads) as ahead:
            for number in count(first):
                ahead.to(request.positions(number).start)
                yield next(batches)


def open_shards(address: Address, *, memory_bytes: int = MEMORY_BYTES, patience: Patience | None = None) -> ShardSet:
    """Open the set in a ``<resolution>px`` folder, or below an address of one (see ``addresses``).

    Args:
        memory_bytes: A set that has no more when it is decoded is kept in memory. It changes the
            speed, never the stream.
        patience: With servers.

    Raises:
        ValueError: If the set is missing, incomplete or damaged.
    """
    return ShardSet(address, memory_bytes, patience or Patience())
