"""Random numbers as a function of (seed, purpose, sample): no state to save, none to share.

Every sample owns an independent stream. A minibatch therefore draws the same
numbers however it is split over ranks or micro-batches, and a resumed run
draws what the uninterrupted one would have drawn.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Randomness:
    """One random stream per sample of a minibatch.

    Attributes:
        seed: The run's seed.
        positions: Which samples: their positions in the infinite data stream
            in training, or the indices of the latents in sampling.
        purpose: Separates streams that must be independent.
    """

    seed: int
    positions: Sequence[int]
    purpose: str = ""

    def for_(self, purpose: str) -> "Randomness":
        """Independent streams of the same samples for another purpose."""
        return Randomness(self.seed, self.positions, f"{self.purpose}/{purpose}")

    def rows(self, chosen: slice) -> "Randomness":
        """The streams of some of the samples."""
        return Randomness(self.seed, self.positions[chosen], self.purpose)

    def generators(self) -> list[torch.Generator]:
        """A fresh CPU generator per sample, always starting at the same state."""
        seeds = (derived_seed(self.seed, self.purpose, position) for position in self.positions)
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, ``[samples, *shape]``, float32."""
        return torch.stack([torch.randn(*shape, generator=each) for each in self.generators()])

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), ``[samples, *shape]``, float32."""
        return torch.stack([torch.rand(tuple(shape), generator=each) for each in self.generators()])

    def integers(self, high: int) -> Tensor:
        """Uniform integers in ``[0, high)``, ``[samples]``."""
        draws = [torch.randint(high, (), generator=each) for each in self.generators()]
        return torch.stack(draws)

    @property
    def shared_seed(self) -> int:
        """One seed for the minibatch as a whole (dropout masks)."""
        return derived_seed(self.seed, self.purpose, self.positions[0])
