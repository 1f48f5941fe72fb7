"""Which sample comes when: a pure function of the seed and the position, with no state to save."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from atdiff_core.randomness import derived_seed


@dataclass(frozen=True)
class Places:
    """Where samples lie: the number of the shard and the row in it, both ``[samples]``, int64."""

    shards: Tensor
    rows: Tensor


@dataclass(frozen=True)
class SampleOrder:
    """The infinite stream over a set of shards, each sample once per epoch.

    In every epoch the shards are permuted and cut into blocks of ``shards_per_block``; the
    samples of a block are permuted among themselves. Reading the stream in order therefore
    needs one block's shards at a time.

    Attributes:
        counts: Samples in each shard.
        shards_per_block: More mix better and need more memory.
    """

    counts: tuple[int, ...]
    shards_per_block: int

    @cached_property
    def num_samples(self) -> int:
        return sum(self.counts)

    def places(self, seed: int, start: int, stop: int) -> Places:
        """Where the samples at the positions ``start`` to ``stop - 1`` of the infinite stream lie."""
        shards, rows = [], []
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            first, block = self._block_at(seed, epoch, offset)
            within = slice(offset - first, offset - first + stop - start)
            shards.append(block.shards[within])
            rows.append(block.rows[within])
            start += len(rows[-1])
        return Places(torch.cat(shards), torch.cat(rows))

    def _block_at(self, seed: int, epoch: int, offset: int) -> tuple[int, Places]:
        """The block around an offset into an epoch, and the offset it starts at."""
        _, starts = _blocks(self, seed, epoch)
        number = bisect_right(starts, offset) - 1
        return starts[number], _permuted(self, seed, epoch, number)


@lru_cache(maxsize=8)
def _blocks(order: SampleOrder, seed: int, epoch: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Shards of each block of an epoch, and the offsets at which the blocks start."""
    shuffled = _permutation(len(order.counts), derived_seed(seed, "shards", epoch)).tolist()
    filled = [number for number in shuffled if order.counts[number]]
    size = order.shards_per_block
    blocks = [tuple(filled[start : start + size]) for start in range(0, len(filled), size)]
    sizes = [sum(order.counts[number] for number in block) for block in blocks]
    return blocks, list(accumulate(sizes[:-1], initial=0))


@lru_cache(maxsize=8)
def _permuted(order: SampleOrder, seed: int, epoch: int, number: int) -> Places:
    """All samples of one block, permuted."""
    block = _blocks(order, seed, epoch)[0][number]
    shards = torch.cat([torch.full((order.counts[shard],), shard) for shard in block])
    rows = torch.cat([torch.arange(order.counts[shard]) for shard in block])
    permutation = _permutation(len(rows), derived_seed(seed, "samples", epoch, number))
    return Places(shards[permutation], rows[permutation])


def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
