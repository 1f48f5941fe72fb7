"""The ranks that work on one network together, and what they tell each other besides gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """This process among the ranks of a gloo or nccl process group; alone, no group is needed.

    Every method must be called by all ranks, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def agreed(self, *opinions: int) -> tuple[int, ...]:
        """What rank 0 thinks, on every rank: truth values or whole numbers."""
        if self.size == 1:
            return opinions
        told = torch.tensor(opinions, dtype=torch.int64, device=_wire())
        dist.broadcast(told, src=0)
        return tuple(told.tolist())

    def deal(self, count: int, batch_size: int) -> "Deal":
        """Shares out the items 0 to ``count`` - 1 in batches.

        Where there are fewer batches of that size than ranks, smaller ones keep all ranks busy.

        Raises:
            ValueError: There are fewer items than ranks.
        """
        if count < self.size:
            raise ValueError(f"{self.size} ranks need at least as many samples, got {count}; use fewer workers")
        return Deal(self, count, min(batch_size, count // self.size))


ALONE = Team()


@dataclass(frozen=True)
class Deal:
    """Items in consecutive batches that go round the ranks: batch b is rank ``b % size``'s."""

    team: Team
    count: int
    batch_size: int

    @property
    def mine(self) -> list[range]:
        """The batches of this rank."""
        return self._batches[self.team.rank :: self.team.size]

    def collected(self, pieces: Sequence[Tensor], *, first: int | None = None) -> Tensor:
        """What all ranks made of their batches, in the order of the items, on every rank.

        The result depends on the number of ranks no more than each batch's does: nothing is added up.

        Args:
            pieces: This rank's, each ``[items of the batch, ...]``, on the CPU.
            first: Collect no more than this many items; later pieces may then be absent.
        """
        wanted = self.count if first is None else min(first, self.count)
        batches = self._batches[: -(-wanted // self.batch_size)]
        if self.team.size == 1:
            return torch.cat(list(pieces[: len(batches)]))[:wanted]
        rows = []
        for number, start in enumerate(range(0, len(batches), self.team.size)):
            here = batches[start : start + self.team.size]
            mine = pieces[number] if self.team.rank < len(here) else pieces[0][:0]
            rows += self._exchanged(mine, [len(batch) for batch in here])
        return torch.cat(rows)[:wanted]

    def _exchanged(self, mine: Tensor, lengths: list[int]) -> list[Tensor]:
        """One round: every rank's piece, padded on the way to equal length."""
        padded = mine.new_zeros((max(lengths), *mine.shape[1:]), device=_wire())
        padded[: len(mine)] = mine.to(padded.device)
        every = [torch.empty_like(padded) for _ in range(self.team.size)]
        dist.all_gather(every, padded)
        return [piece[:length].cpu() for piece, length in zip(every, lengths, strict=False)]

    @property
    def _batches(self) -> list[range]:
        size = self.batch_size
        return [range(start, min(start + size, self.count)) for start in range(0, self.count, size)]


def _wire() -> torch.device:
    """Where tensors must lie to be sent: nccl sends from GPUs only."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
