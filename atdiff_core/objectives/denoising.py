"""Noise prediction at a perturbed input: the adversarial objective of AT_Diff, plain or hybrid."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor

from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.drawing import Denoiser, Draw, answered, drawn
from atdiff_core.objectives.objective import Companions, ObjectiveConfig
from atdiff_core.objectives.variational import variational_term
from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory, TimestepSampler, UniformTimesteps


class Denoising(ObjectiveConfig):
    """Mean squared error of what the network predicts, perturbation included in the target.

    At x_t + delta the noise that leads back to the same clean image is ``noise + delta / sigma_t``;
    the loss is the mean over elements of the squared difference to it, or, where the noise says
    so, to the velocity or the image that goes with it (Wang et al.,
    arXiv:2502.17099, Eq. 14 and its released code). With delta = 0 it is the loss of DDPM. With
    a learned variance the rescaled variational term is added, which makes it the hybrid
    objective of improved DDPM (Nichol & Dhariwal, arXiv:2102.09672, Eq. 16).

    Attributes:
        noise: The noise schedule.
        timesteps: How often each noise level is drawn.
        variance: ``learned`` for a network with twice the channels.
        attack_sees_target: Whether the gradient that moves delta takes into account that the
            target moves with delta. ``True`` is the true gradient of the loss. ``False`` is what
            the authors' code does (its mode ``delta_detach``); the loss is the same, yet such
            an "ascent" can lower it, which ``train/attack_gain`` shows.
        attack_sees_variance: Whether the ascent climbs the variational term too, as the authors'
            code does.
        unit: Unit of delta: ``image`` (pixels of [-1, 1]), or ``noise`` (delta is multiplied by
            sigma_t before it is added).
        target: ``moves`` with delta, or ``stays`` at the noise that was drawn: input perturbation
            (the mode ``original`` of the authors' code; DDPM-IP).
    """

    kind: Literal["denoising"] = "denoising"
    noise: NoiseSchedule = NoiseSchedule()
    timesteps: TimestepSampler = UniformTimesteps()
    variance: Literal["fixed", "learned"] = "fixed"
    attack_sees_target: bool = True
    attack_sees_variance: bool = True
    unit: Literal["image", "noise"] = "image"
    target: Literal["moves", "stays"] = "moves"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.variance == "learned" and self.noise.predicts != "noise":
            raise ValueError(f"a variance is learned beside the noise, the network predicts the {self.noise.predicts}")
        return self

    @property
    def attack_is_loss(self) -> bool:
        """Whether what is climbed is what is descended, so that one backward serves both."""
        return self.variance == "fixed" or self.attack_sees_variance

    @property
    def learns_variance(self) -> bool:
        return self.variance == "learned"

    def settings(self) -> dict[str, bool | float | str]:
        return {"attack_sees_target": self.attack_sees_target}

    def history(self) -> LossHistory | None:
        return self.timesteps.history(self.noise.num_timesteps)

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
        """Timesteps, noise and noised input for images ``[batch, channels, height, width]``."""
        return drawn(images, randomness, self.noise, self.timesteps, condition=condition, history=history)

    def loss(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """One loss per sample, ``[batch]``; deterministic in ``delta`` (dropout is replayed)."""
        return self._loss(network, draw, delta, with_variance=self.variance == "learned")

    def attack(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """What an ascent climbs, ``[batch]``."""
        return self._loss(network, draw, delta, with_variance=self.variance == "learned" and self.attack_sees_variance)

    def _loss(self, network: Denoiser, draw: Draw, delta: Tensor, *, with_variance: bool) -> Tensor:
        moved = draw.noisy + (delta if self.unit == "image" else draw.sigma * delta)
        output = answered(network, draw, moved)
        channels = moved.shape[1]
        predicted = output[:, :channels]
        losses = (predicted - self._target(draw, delta)).square().flatten(1).mean(dim=1)
        if with_variance:
            losses = losses + variational_term(
                draw.clean, moved, predicted, output[:, channels:], draw.timesteps, self.noise
            )
        return losses

    def _target(self, draw: Draw, delta: Tensor) -> Tensor:
        return self.noise.meant(draw.clean, self._noise(draw, delta), draw.timesteps)

    def _noise(self, draw: Draw, delta: Tensor) -> Tensor:
        """The noise that leads from the moved input to the clean image, or that was drawn."""
        if self.target == "stays":
            return draw.noise
        shift = delta if self.attack_sees_target else delta.detach()
        return draw.noise + (shift / draw.sigma if self.unit == "image" else shift)
