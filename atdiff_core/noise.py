"""Variance-preserving noise schedules and the noised input x_t."""

import math
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from atdiff_core.config import Config

MAX_BETA = 0.999
Predicts = Literal["noise", "velocity", "image"]


class NoiseSchedule(Config):
    """x_t = sqrt(abar_t) x_0 + sigma_t noise, with sigma_t² = 1 - abar_t.

    Attributes:
        kind: ``linear``: beta from 1e-4 to 0.02, stretched by 1000 / num_timesteps
            (Ho et al., arXiv:2006.11239). ``cosine``: abar_t = cos² of a shifted ramp
            (Nichol & Dhariwal, arXiv:2102.09672, Eq. 17), beta clipped at 0.999.
            ``scaled_linear``: sqrt(beta) from sqrt(0.00085) to sqrt(0.012), beta stretched likewise: that
            of Stable Diffusion's latents (Rombach et al., arXiv:2112.10752).
        num_timesteps: Number of noise levels T.
        predicts: What a network's output means: the ``noise``; the ``velocity``
            sqrt(abar_t) noise - sigma_t x_0 (Salimans & Ho, arXiv:2202.00512); or the ``image`` x_0.
    """

    kind: Literal["linear", "cosine", "scaled_linear"] = "cosine"
    num_timesteps: Annotated[int, Field(ge=2)] = 1000
    predicts: Predicts = Field("noise", exclude_if=lambda predicts: predicts == "noise")

    @cached_property
    def betas(self) -> Tensor:
        """Variances of the forward steps, ``[num_timesteps]``, float64."""
        steps = self.num_timesteps
        if self.kind == "linear":
            scale = 1000 / steps
            return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=MAX_BETA)
        if self.kind == "scaled_linear":
            scale = 1000 / steps
            ends = math.sqrt(0.00085 * scale), math.sqrt(0.012 * scale)
            return torch.linspace(*ends, steps, dtype=torch.float64).square().clamp(max=MAX_BETA)
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

    def meant(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect network's output is at the x_t that this image and this noise make."""
        match self.predicts:
            case "noise":
                return noise
            case "velocity":
                return self.signal(timesteps) * noise - self.sigma(timesteps) * clean
            case "image":
                return clean

    def image_in(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """x_0 as a network's output at ``noisy`` tells it."""
        signal, sigma = self.signal(timesteps), self.sigma(timesteps)
        match self.predicts:
            case "noise":
                return (noisy - sigma * output) / signal
            case "velocity":
                return signal * noisy - sigma * output
            case "image":
                return output

    def noise_in(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise as a network's output at ``noisy`` tells it."""
        signal, sigma = self.signal(timesteps), self.sigma(timesteps)
        match self.predicts:
            case "noise":
                return output
            case "velocity":
                return sigma * noisy + signal * output
            case "image":
                return (noisy - signal * output) / sigma
