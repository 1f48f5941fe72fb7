"""EDM's denoising objective at a perturbed input."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from atdiff_core.karras import KarrasNoise
from atdiff_core.objectives.drawing import Denoiser, Draw, answer
from atdiff_core.objectives.objective import Companions, ObjectiveConfig
from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory


class EDM(ObjectiveConfig):
    """Weighted squared error of a denoiser, whatever the perturbation: the target is the clean image.

    ``(sigma² + sigma_data²) / (sigma sigma_data)² |D(x_0 + sigma z + delta, sigma) - x_0|²``, the
    mean over elements, with ln(sigma) normal (Karras et al., arXiv:2206.00364, Eq. 8). At a moved
    input the target is where it was: in these coordinates AT_Diff's eps + delta / sigma_t is
    the same image.

    Attributes:
        noise: Levels and parametrisation.
        mean: Of ln(sigma).
        std: Of ln(sigma).
        unit: Unit of delta: ``image`` (pixels of [-1, 1]), or ``noise`` (delta is multiplied by
            sigma before it is added).
    """

    kind: Literal["edm"] = "edm"
    noise: KarrasNoise = KarrasNoise(kind="edm")
    mean: float = -1.2
    std: Annotated[float, Field(gt=0)] = 1.2
    unit: Literal["image", "noise"] = "image"

    @field_validator("noise")
    @classmethod
    def _is_for_denoising(cls, noise: KarrasNoise) -> KarrasNoise:
        if noise.kind != "edm":
            raise ValueError(f"noise.kind must be edm for an EDM denoiser, got {noise.kind!r}")
        return noise

    def beside(self, companions: Companions, *, progress: float) -> Self:
        return self

    def draw(
        self,
        images: Tensor,
        randomness: Randomness,
        *,
        condition: Mapping[str, Tensor] | None = None,
        history: LossHistory | None = None,
    ) -> Draw:
        """Noise levels, noise and noised input; levels outside the noise's range are moved to its ends."""
        normal = randomness.for_("timestep").normal((1, 1, 1)).double()
        sigma = (self.mean + self.std * normal).exp().clamp(self.noise.sigma_min, self.noise.sigma_max).to(images)
        gaussian = randomness.for_("noise").normal(images.shape[1:]).to(images)
        return Draw(
            clean=images,
            noise=gaussian,
            timesteps=self.noise.time(sigma).flatten(),
            weights=torch.ones_like(sigma.flatten()),
            noisy=images + sigma * gaussian,
            sigma=sigma,
            dropout_seed=randomness.shared_seed,
            condition=condition or {},
        )

    def loss(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """One loss per sample, ``[batch]``; deterministic in ``delta`` (dropout is replayed)."""
        noise, sigma = self.noise, draw.sigma
        moved = draw.noisy + (delta if self.unit == "image" else sigma * delta)
        output = answer(network, noise.c_in(sigma) * moved, draw.timesteps, draw)
        denoised = noise.c_skip(sigma) * moved + noise.c_out(sigma) * output
        return ((denoised - draw.clean) / noise.c_out(sigma)).square().flatten(1).mean(dim=1)

    def attack(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """The loss itself."""
        return self.loss(network, draw, delta)
