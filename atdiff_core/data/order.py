"""Which sample comes when: a pure function of the seed and the position, with no state to save."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from atdiff_core.randomness import derived_seed

MAX_STREAMS = 384
"""128 x 3: every number of ranks up to 12 but 5, 7, 9, 10 and 11, and the usual ones beyond, divides it."""
RUN_BYTES = 2 * 2**20
"""Length of a run in the tars: long enough for a disk or an object store to read at full speed."""
MIN_RUN_SAMPLES = 16


@dataclass(frozen=True)
class Layout:
    """How an epoch is cut; it depends on the set alone, for the stream must not hang on the machine.

    Attributes:
        num_streams: Virtual streams that the positions are dealt to.
        num_blocks: Parts of an epoch, equally long to one sample, that are shuffled one after the other.
    """

    num_streams: int
    num_blocks: int

    @classmethod
    def of(cls, num_samples: int, num_bytes: int) -> Self:
        """The layout of a set: as many runs of at least ``RUN_BYTES`` as there are streams make a block.

        A set of up to 768 MiB is one block, shuffled as a whole; one of terabytes has blocks of that size.
        """
        run_samples = max(RUN_BYTES * num_samples // max(num_bytes, 1), MIN_RUN_SAMPLES)
        divisors = [number for number in range(1, MAX_STREAMS + 1) if MAX_STREAMS % number == 0]
        streams = max((number for number in divisors if number * run_samples <= num_samples), default=1)
        return cls(streams, max(num_samples // (run_samples * streams), 1))


@dataclass(frozen=True)
class Places:
    """Where samples lie: the number of the shard and the row in it, both ``[samples]``, int64."""

    shards: Tensor
    rows: Tensor


class SampleOrder:
    """The infinite stream over a set of shards, each sample once per epoch.

    In every epoch the shards are permuted, laid end to end in a circle, which is opened at a
    random sample, and cut into blocks. A block is cut into as many runs of neighbours as there are
    virtual streams. Position p of the infinite stream belongs to stream ``p mod num_streams``,
    which takes the samples of its run in random order.

    Rank r of w therefore, with the positions ``p mod w = r``, never reads a run of another rank
    if ``num_streams`` is a multiple of w; and as neighbouring streams have runs far apart, a
    minibatch is a stratified draw from the whole block, while the runs of one rank of 2, 4, 8, ...
    are neighbours, one piece of every block.
    """

    def __init__(self, counts: Sequence[int], layout: Layout) -> None:
        """Prepare the order.

        Args:
            counts: Samples in each shard.
        """
        self.counts = torch.tensor(counts, dtype=torch.int64)
        self.layout = layout
        self.num_samples = int(self.counts.sum())
        if layout.num_streams < 1 or not 1 <= layout.num_blocks <= self.num_samples:
            raise ValueError(f"{self.num_samples} samples cannot be laid out as {layout}")
        self._turns = _reversed_digits(layout.num_streams)
        self._epoch = lru_cache(maxsize=2)(self._drawn_epoch)
        self._block = lru_cache(maxsize=2)(self._drawn_block)

    def block_around(self, position: int) -> tuple[int, int]:
        """The positions from which and up to which (not included) samples are shuffled with this one's."""
        epoch, number = self._epoch_and_block(position)
        first = epoch * self.num_samples
        return first + self._first_of(number), first + self._first_of(number + 1)

    def places(self, seed: int, start: int, stop: int, step: int = 1) -> Places:
        """Where the samples at the positions ``range(start, stop, step)`` of the infinite stream lie."""
        shards, rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            epoch, number = self._epoch_and_block(start)
            block = self._block(seed, epoch, number)
            within = start - epoch * self.num_samples - self._first_of(number)
            here = slice(within, within + stop - start, step)
            shards.append(block.shards[here])
            rows.append(block.rows[here])
            start += step * len(rows[-1])
        return Places(torch.cat(shards), torch.cat(rows))

    def _epoch_and_block(self, position: int) -> tuple[int, int]:
        """The epoch that a position belongs to, and the number of its block."""
        epoch, offset = divmod(position, self.num_samples)
        return epoch, ((offset + 1) * self.layout.num_blocks - 1) // self.num_samples

    def _first_of(self, number: int) -> int:
        """Offset into the epoch at which a block starts."""
        return number * self.num_samples // self.layout.num_blocks

    def _drawn_epoch(self, seed: int, epoch: int) -> tuple[Tensor, Tensor, int]:
        """Numbers of the shards in their order, their ends when laid end to end, and the first sample."""
        shuffled = _permutation(len(self.counts), derived_seed(seed, "shards", epoch))
        opened_at = derived_seed(seed, "opening", epoch) % self.num_samples
        return shuffled, self.counts[shuffled].cumsum(0), opened_at

    def _drawn_block(self, seed: int, epoch: int, number: int) -> Places:
        """The samples of one block, by position."""
        first = self._first_of(number)
        size = self._first_of(number + 1) - first
        streams = (torch.arange(size) + (epoch * self.num_samples + first)) % self.layout.num_streams
        shuffled = _permutation(size, derived_seed(seed, "samples", epoch, number))
        by_run = shuffled[torch.argsort(self._turns[streams[shuffled]], stable=True)]
        samples = torch.empty_like(by_run)
        samples[by_run] = torch.arange(size)
        order, ends, opened_at = self._epoch(seed, epoch)
        samples = (samples + first + opened_at) % self.num_samples
        found = torch.searchsorted(ends, samples, right=True)
        shards = order[found]
        return Places(shards, samples - (ends[found] - self.counts[shards]))


def _reversed_digits(num_streams: int) -> Tensor:
    """Which run of a block each stream takes: its number with the binary digits reversed, a last odd factor apart.

    The streams ``s mod 2**k = r`` get runs that are neighbours.
    """
    streams, turns, rest = torch.arange(num_streams), torch.zeros(num_streams, dtype=torch.int64), num_streams
    while rest > 1:
        base = 2 if rest % 2 == 0 else rest
        rest //= base
        turns += streams % base * rest
        streams //= base
    return turns


def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
