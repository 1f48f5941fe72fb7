"""How many noise levels consistency training distinguishes as it goes, and how often it visits each."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.karras import KarrasNoise
from atdiff_core.randomness import Randomness


class FixedLevels(Config):
    """The ``num_levels`` of the noise, and a target that averages with one decay: distillation's choice.

    Attributes:
        decay: Of the target's average at each optimizer step (the paper's mu); 0: the target is
            the network itself, without a gradient.
    """

    kind: Literal["fixed"] = "fixed"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.95

    def count(self, noise: KarrasNoise, progress: float) -> int:
        """Levels at a share of the budget, both ends included."""
        return noise.num_levels

    def target_decay(self, noise: KarrasNoise, progress: float) -> float:
        """Decay of the target's average there."""
        return self.decay


class ProgressiveLevels(Config):
    """From a few levels to many as the square root of time, the target following ever more slowly.

    N(k) = ceil(sqrt(k/K ((s1 + 1)² - s0²) + s0²) - 1) + 1 and mu(k) = exp(s0 ln(mu0) / N(k))
    (Song et al., arXiv:2303.01469, Appendix C).

    Attributes:
        first: s0.
        last: s1; the run ends with one level more.
        first_decay: mu0.
    """

    kind: Literal["progressive"] = "progressive"
    first: Annotated[int, Field(ge=2)] = 2
    last: Annotated[int, Field(ge=2)] = 150
    first_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9

    @model_validator(mode="after")
    def _grow(self) -> Self:
        _check_growth(self.first, self.last)
        return self

    def count(self, noise: KarrasNoise, progress: float) -> int:
        grown = math.sqrt(progress * ((self.last + 1) ** 2 - self.first**2) + self.first**2)
        return math.ceil(grown - 1) + 1

    def target_decay(self, noise: KarrasNoise, progress: float) -> float:
        return math.exp(self.first * math.log(self.first_decay) / self.count(noise, progress))


class DoublingLevels(Config):
    """Twice as many levels after every equal stretch, no average in the target.

    N(k) = min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1 / s0) + 1))
    (Song & Dhariwal, arXiv:2310.14189, Section 3.4). Their s1 is 1280.

    Attributes:
        first: s0.
        last: s1; the run ends with one level more.
    """

    kind: Literal["doubling"] = "doubling"
    first: Annotated[int, Field(ge=2)] = 10
    last: Annotated[int, Field(ge=2)] = 1280

    @model_validator(mode="after")
    def _grow(self) -> Self:
        _check_growth(self.first, self.last)
        return self

    def count(self, noise: KarrasNoise, progress: float) -> int:
        stretches = math.log2(self.last // self.first) + 1
        doubled: int = self.first << int(progress * stretches)
        return min(doubled, self.last) + 1

    def target_decay(self, noise: KarrasNoise, progress: float) -> float:
        return 0.0


def _check_growth(first: int, last: int) -> None:
    if first > last:
        raise ValueError(f"the number of levels must grow, got first={first} and last={last}")


Discretisation = Annotated[FixedLevels | ProgressiveLevels | DoublingLevels, Field(discriminator="kind")]


class UniformPairs(Config):
    """Every pair of neighbouring levels is equally likely."""

    kind: Literal["uniform"] = "uniform"

    def draw(self, randomness: Randomness, levels: Tensor) -> Tensor:
        """The lower level of each sample's pair: places in ``levels`` (ascending), ``[samples]``, int64."""
        return randomness.integers(len(levels) - 1)


class LognormalPairs(Config):
    """Pairs as often as a lognormal noise level falls between them.

    P(i) is proportional to erf((ln s_{i+1} - mean) / (sqrt(2) std)) - erf((ln s_i - mean) / (sqrt(2) std))
    (arXiv:2310.14189, Eq. 10).

    Attributes:
        mean: Of ln(sigma).
        std: Of ln(sigma).
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = -1.1
    std: Annotated[float, Field(gt=0)] = 2.0

    def probabilities(self, levels: Tensor) -> Tensor:
        """``[len(levels) - 1]``, float64, with sum 1."""
        below = torch.special.erf((levels.double().log() - self.mean) / (math.sqrt(2) * self.std))
        shares: Tensor = below.diff() / (below[-1] - below[0])
        return shares

    def draw(self, randomness: Randomness, levels: Tensor) -> Tensor:
        """As for ``UniformPairs``."""
        places = randomness.uniform(()).double()
        drawn = torch.searchsorted(self.probabilities(levels).cumsum(0), places, right=True)
        return drawn.clamp(max=len(levels) - 2)


Pairs = Annotated[UniformPairs | LognormalPairs, Field(discriminator="kind")]
