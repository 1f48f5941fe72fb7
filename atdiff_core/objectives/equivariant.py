"""AT-DM's objective: when the state is pushed, the predicted noise must move with it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.drawing import Denoiser, Draw, answered, drawn
from atdiff_core.objectives.objective import Companions, ObjectiveConfig
from atdiff_core.objectives.variational import variational_term
from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory, TimestepSampler, UniformTimesteps


class RadiusSchedule(Config):
    """Largest shift omega of the noise as it grows with the noise level, in units of the noise.

    Known of the paper's schedule: the exponent 2, the floor 8/255, and a random number drawn at
    each iteration. Its formula is not; both forms here are reconstructions of ours.

    Attributes:
        form: ``floored``: r = max(floor, beta sigma_t^(exponent - 1)), so that the shift of x_t is
            beta sigma_t^exponent above the floor. ``biased``: r = beta sigma_t^exponent + floor.
            ``constant``: r = beta.
        exponent: Steepness in sigma_t.
        floor: Smallest radius.
        scale: beta is uniform between these two numbers, drawn for each sample.
    """

    form: Literal["floored", "biased", "constant"] = "floored"
    exponent: Annotated[float, Field(ge=0)] = 2.0
    floor: Annotated[float, Field(ge=0)] = 8 / 255
    scale: tuple[float, float] = (1.0, 1.0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be two numbers, 0 < low <= high, got {self.scale}")
        return self

    def draw(self, sigma: Tensor, randomness: Randomness) -> Tensor:
        """Radius of each sample, ``[batch, 1, 1, 1]``, for noise levels of that shape."""
        low, high = self.scale
        beta = low + (high - low) * randomness.uniform((1, 1, 1)).to(sigma)
        match self.form:
            case "floored":
                return (beta * sigma ** (self.exponent - 1)).clamp(min=self.floor)
            case "biased":
                return beta * sigma**self.exponent + self.floor
            case "constant":
                return beta.expand_as(sigma)
        raise ValueError(f"form must be floored, biased or constant, got {self.form!r}")


class Equivariant(ObjectiveConfig):
    """Noise prediction, and its equivariance under a shift of the state.

    ``|e(x_t) - noise|^2 + lambda_t |e(x_t + sigma_t omega) - [e(x_t) + omega]|^2``, both as means
    over elements, e being the predicted noise and omega = r(t) delta, where delta lives in a ball
    of radius at most 1 (Briglia et al., arXiv:2505.21742, Eq. 9). The attack climbs the difference
    of the two predictions. AT-DM's adversarial variant is ``PGD`` with one step from a random
    start in the unit l-infinity ball, its random one the same with no step.

    Attributes:
        noise: The noise schedule.
        timesteps: How often each noise level is drawn.
        variance: ``learned`` for a network with twice the channels; the variational term is then
            added at the unperturbed state, and the regulariser sees the noise channels only.
        wants: What the moved prediction must equal: ``equivariant`` e(x_t) + omega, or
            ``invariant`` e(x_t), the baseline that the paper warns of.
        strength: lambda, 0.3 in the paper.
        weighting: ``inverse_std``: lambda_t = lambda sqrt(3) / r, the inverse of the standard
            deviation of uniform noise of that radius (a reading of the paper's lambda_t).
            ``constant``: lambda_t = lambda.
        radius: r(t).
        detach_prediction: Whether e(x_t) is a fixed target inside the regulariser. The paper does
            not say; ``True`` is our choice.
    """

    kind: Literal["equivariant"] = "equivariant"
    noise: NoiseSchedule = NoiseSchedule()
    timesteps: TimestepSampler = UniformTimesteps()
    variance: Literal["fixed", "learned"] = "fixed"
    wants: Literal["equivariant", "invariant"] = "equivariant"
    strength: Annotated[float, Field(ge=0)] = 0.3
    weighting: Literal["inverse_std", "constant"] = "inverse_std"
    radius: RadiusSchedule = RadiusSchedule()
    detach_prediction: bool = True

    @property
    def attack_is_loss(self) -> bool:
        return False

    @property
    def learns_variance(self) -> bool:
        return self.variance == "learned"

    def history(self) -> LossHistory | None:
        return self.timesteps.history(self.noise.num_timesteps)

    def beside(self, companions: Companions, *, progress: float) -> Self:
        return self

    @property
    def passes_per_descent(self) -> float:
        """Two forward-backwards: at the state and at the moved one."""
        return 2.0

    @property
    def passes_per_climb(self) -> float:
        """Forward at the state 1/3, forward and backward to the input at the moved one 2/3."""
        return 1.0

    def draw(
        self,
        images: Tensor,
        randomness: Randomness,
        *,
        condition: Mapping[str, Tensor] | None = None,
        history: LossHistory | None = None,
    ) -> Draw:
        """As for ``Denoising``, and the radius of each sample."""
        draw = drawn(images, randomness, self.noise, self.timesteps, condition=condition, history=history)
        return replace(draw, reach=self.radius.draw(draw.sigma, randomness.for_("radius")))

    def loss(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """One loss per sample, ``[batch]``; deterministic in ``delta`` (dropout is replayed)."""
        assert draw.reach is not None
        channels = draw.noisy.shape[1]
        output = answered(network, draw, draw.noisy)
        predicted = output[:, :channels]
        omega = draw.reach * delta
        moved = answered(network, draw, draw.noisy + draw.sigma * omega)[:, :channels]
        wanted = predicted.detach() if self.detach_prediction else predicted
        if self.wants == "equivariant":
            wanted = wanted + omega
        strength = self.strength * self._weight(draw.reach).flatten()
        losses = (predicted - draw.noise).square().flatten(1).mean(dim=1)
        losses = losses + strength * (moved - wanted).square().flatten(1).mean(dim=1)
        if self.variance == "learned":
            losses = losses + variational_term(
                draw.clean, draw.noisy, predicted, output[:, channels:], draw.timesteps, self.noise
            )
        return losses

    def attack(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """Squared difference of the two predictions, ``[batch]``."""
        assert draw.reach is not None
        channels = draw.noisy.shape[1]
        with torch.no_grad():
            predicted = answered(network, draw, draw.noisy)[:, :channels]
        moved = answered(network, draw, draw.noisy + draw.sigma * draw.reach * delta)[:, :channels]
        return (moved - predicted).square().flatten(1).mean(dim=1)

    def _weight(self, reach: Tensor) -> Tensor:
        return math.sqrt(3) / reach if self.weighting == "inverse_std" else reach.new_ones(reach.shape)
