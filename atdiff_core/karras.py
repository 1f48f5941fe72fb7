"""Variance-exploding noise x_0 + sigma z, and what a network means that is asked about it."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.noise import NoiseSchedule

TIME_SCALE = 250
"""The network is told 250 ln(sigma): EDM's ln(sigma) / 4 in thousandths, as in the consistency models' code."""


class KarrasNoise(Config):
    """Noise levels in EDM coordinates, and the parametrisation of the network that removes it.

    The network F is shown c_in x and 250 ln(sigma); what it means is c_skip x + c_out F, with
    c_in = 1 / sqrt(sigma² + sigma_data²) (Karras et al., arXiv:2206.00364, Table 1).

    Attributes:
        kind: ``edm``: the result is a denoiser, E[x_0 | x]. ``consistency``: it is a consistency
            function, the end at sigma_min of the probability-flow trajectory through x; c_skip
            and c_out are shifted by sigma_min so that it is the identity there, exactly
            (Song et al., arXiv:2303.01469, Appendix C).
        sigma_min: Smallest level, where trajectories end (the paper's epsilon).
        sigma_max: Largest level, where sampling starts.
        rho: Concentration of the levels at the small end.
        sigma_data: Standard deviation of the data that the scalings assume.
        num_levels: Number of levels, both ends included: those of a distillation and of the
            scheduler that samples a consistency model.
    """

    kind: Literal["edm", "consistency"] = "consistency"
    sigma_min: Annotated[float, Field(gt=0)] = 0.002
    sigma_max: Annotated[float, Field(gt=0)] = 80.0
    rho: Annotated[float, Field(gt=0)] = 7.0
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    num_levels: Annotated[int, Field(ge=2)] = 40

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}")
        return self

    def levels(self, count: int | None = None) -> Tensor:
        """Karras levels from ``sigma_min`` up to ``sigma_max``, ``[count]``, float64; ``num_levels`` by default.

        Even in sigma^(1/rho) (arXiv:2206.00364, Eq. 5).
        """
        return self.between(self.sigma_min, self.sigma_max, (self.num_levels if count is None else count) - 1)

    def between(self, sigma: float, reached: float, steps: int) -> Tensor:
        """``steps`` + 1 levels from one to another, even in sigma^(1/rho) as Karras levels are, float64."""
        ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        start, end = sigma ** (1 / self.rho), reached ** (1 / self.rho)
        levels: Tensor = (start + ramp * (end - start)) ** self.rho
        levels[0], levels[-1] = sigma, reached  # Rounding would show at the boundary.
        return levels

    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of what the network is shown; any shape."""
        return 1 / (sigma.square() + self.sigma_data**2).sqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Share of x in the result; one at the boundary of a consistency function."""
        return self.sigma_data**2 / (self._above_boundary(sigma).square() + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output in the result; zero at the boundary of a consistency function."""
        return self._above_boundary(sigma) * self.sigma_data * self.c_in(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        """What the network is told of the level, same shape as ``sigma``."""
        return TIME_SCALE * sigma.log()

    def _above_boundary(self, sigma: Tensor) -> Tensor:
        return sigma - self.sigma_min if self.kind == "consistency" else sigma


Noise = Annotated[NoiseSchedule | KarrasNoise | LatentConsistencyNoise, Field(discriminator="kind")]
"""What a network was trained on and what its output means; decides which samplers can step it."""


def signal_and_sigma(noise: Noise, timestep: float) -> tuple[float, float]:
    """Factors of image and noise in x_t at a level, as the network is told it."""
    if isinstance(noise, KarrasNoise):
        return 1.0, math.exp(timestep / TIME_SCALE)
    schedule = noise.schedule if isinstance(noise, LatentConsistencyNoise) else noise
    abar = float(schedule.abar[int(timestep)])
    return math.sqrt(abar), math.sqrt(1 - abar)


PREDICTS = {
    "linear": "predicts noise",
    "cosine": "predicts noise",
    "scaled_linear": "predicts noise",
    "edm": "is an EDM denoiser",
    "consistency": "is a consistency model",
    "latent_consistency": "is a latent consistency model",
}
"""What a network with noise of each kind does, in words for errors."""
