"""Variance-preserving noise schedules and the noised input x_t."""

import math
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from atdiff_core.config import Config

MAX_BETA = 0.999


class NoiseSchedule(Config):
    """x_t = sqrt(abar_t) x_0 + sigma_t noise, with sigma_t² = 1 - abar_t.

    Attributes:
        kind: ``linear``: beta from 1e-4 to 0.02, stretched by 1000 / num_timesteps
            (Ho et al., arXiv:2006.11239). ``cosine``: abar_t = cos² of a shifted ramp
            (Nichol & Dhariwal, arXiv:2102.09672, Eq. 17), beta clipped at 0.999.
        num_timesteps: Number of noise levels T.
    """

    kind: Literal["linear", "cosine"] = "cosine"
    num_timesteps: Annotated[int, Field(ge=2)] = 1000

    @cached_property
    def betas(self) -> Tensor:
        """Variances of the forward steps, ``[num_timesteps]``, float64."""
        steps = self.num_timesteps
        if self.kind == "linear":
            scale = 1000 / steps
            return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=MAX_BETA)
        ramp = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((ramp + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)

    @cached_property
    def abar(self) -> Tensor:
        """Signal variance of x_t for unit data, ``[num_timesteps]``, float64."""
        return torch.cumprod(1 - self.betas, dim=0)

    def signal(self, timesteps: Tensor) -> Tensor:
        """sqrt(abar_t), shaped to multiply images: ``[batch, 1, 1, 1]``, float32."""
        return self.abar[timesteps.cpu()].sqrt().float().view(-1, 1, 1, 1).to(timesteps.device)

    def sigma(self, timesteps: Tensor) -> Tensor:
        """sigma_t = sqrt(1 - abar_t), ``[batch, 1, 1, 1]``, float32."""
        return (1 - self.abar[timesteps.cpu()]).sqrt().float().view(-1, 1, 1, 1).to(timesteps.device)

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t for images in [-1, 1], ``[batch, channels, height, width]``."""
        return self.signal(timesteps) * clean + self.sigma(timesteps) * noise
