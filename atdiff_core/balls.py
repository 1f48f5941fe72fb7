"""Balls in which a perturbation lives, measured as an amplitude per element.

For a perturbation of D elements the size is ||delta||_2 / sqrt(D), ||delta||_1 / D or
||delta||_inf, in units of images in [-1, 1]: the same number means the same strength for
every norm and resolution. The papers' raw norms are ``raw(amplitude, D)``.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.randomness import Randomness

TINY = 1e-20  # Its square is still a float32: below it a size may underflow to zero.


class _Ball(Config):
    radius: float

    @field_validator("radius")
    @classmethod
    def _radius_is_an_amplitude(cls, radius: float) -> float:
        if radius < 0:
            raise ValueError(f"radius must be >= 0 (an amplitude per element), got {radius}")
        return radius

    def size(self, delta: Tensor) -> Tensor:
        """Amplitude per element of each sample, ``[batch]``."""
        raise NotImplementedError

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of size 1 along which to climb; zero where the gradient is zero."""
        raise NotImplementedError

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point (in l2) of the ball, sample by sample."""
        raise NotImplementedError

    def uniform(self, shape: Sequence[int], randomness: Randomness) -> Tensor:
        """A point drawn uniformly from the ball for each sample, ``[samples, *shape]``."""
        raise NotImplementedError

    @staticmethod
    def raw(amplitude: float, dimension: int) -> float:
        """The norm itself, as the papers write it, for samples of ``dimension`` elements."""
        raise NotImplementedError

    def on_boundary(self, delta: Tensor) -> Tensor:
        """Which samples touch the boundary (to one part in 10^4), ``[batch]``, bool."""
        return self.size(delta) >= self.radius * (1 - 1e-4)


class L2Ball(_Ball):
    """Root mean square of delta at most ``radius`` (AT_Diff's norm)."""

    norm: Literal["l2"] = "l2"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).square().mean(dim=1).sqrt()

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient / per_sample(self.size(gradient)).clamp(min=TINY)

    def project(self, delta: Tensor) -> Tensor:
        return delta * per_sample(self.radius / self.size(delta).clamp(min=TINY)).clamp(max=1)

    def uniform(self, shape: Sequence[int], randomness: Randomness) -> Tensor:
        direction = self.steepest(randomness.for_("direction").normal(shape))
        depth = randomness.for_("depth").uniform(()) ** (1 / math.prod(shape))
        return self.radius * per_sample(depth) * direction

    @staticmethod
    def raw(amplitude: float, dimension: int) -> float:
        return amplitude * math.sqrt(dimension)


class LInfBall(_Ball):
    """Largest element of delta at most ``radius``; the steepest step is the sign."""

    norm: Literal["linf"] = "linf"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.radius, self.radius)

    def uniform(self, shape: Sequence[int], randomness: Randomness) -> Tensor:
        return self.radius * (2 * randomness.uniform(shape) - 1)

    @staticmethod
    def raw(amplitude: float, dimension: int) -> float:
        return amplitude


class L1Ball(_Ball):
    """Mean absolute value of delta at most ``radius``.

    The literal steepest step would put all of the amplitude into one pixel, far outside any
    image. The step is the dense gradient scaled to size 1, or the sign of its largest elements.
    That choice is ours: the papers give no formula for l1.

    Attributes:
        steps: ``dense``: along the gradient. ``top``: along the sign of the ``top_fraction`` of
            elements whose gradient is largest; a fraction of one element is the literal steepest
            step.
        top_fraction: In (0, 1]; at least one element is moved.
    """

    norm: Literal["l1"] = "l1"
    steps: Literal["dense", "top"] = "dense"
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().mean(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        climbed = gradient if self.steps == "dense" else self._top_signs(gradient)
        return climbed / per_sample(self.size(climbed)).clamp(min=TINY)

    def _top_signs(self, gradient: Tensor) -> Tensor:
        magnitude = gradient.flatten(1).abs()
        count = max(1, round(self.top_fraction * magnitude.shape[1]))
        largest = magnitude.topk(count, dim=1).indices
        mask = torch.zeros_like(magnitude).scatter_(1, largest, 1.0)
        return gradient.sign() * mask.view_as(gradient)

    def project(self, delta: Tensor) -> Tensor:
        """Soft thresholding with the exact threshold (Duchi et al., ICML 2008, Fig. 1)."""
        magnitude = delta.flatten(1).abs()
        budget = self.radius * magnitude.shape[1]
        descending = magnitude.sort(dim=1, descending=True).values
        excess = descending.cumsum(dim=1) - budget
        count = excess.new_ones(magnitude.shape[1]).cumsum(dim=0)
        kept = (descending * count > excess).sum(dim=1, keepdim=True).clamp(min=1)
        threshold = (excess.gather(1, kept - 1) / kept).clamp(min=0)
        shrunk = (magnitude - threshold).clamp(min=0)
        return (delta.sign() * shrunk.view_as(delta)).to(delta.dtype)

    def uniform(self, shape: Sequence[int], randomness: Randomness) -> Tensor:
        """Laplace numbers over their sum and one exponential more (Barthe et al., 2005, Theorem 1)."""
        signed = 2 * randomness.for_("direction").uniform(shape).double() - 1
        laplace = -signed.sign() * torch.log1p(-signed.abs())
        spare = -torch.log1p(-randomness.for_("depth").uniform(()).double())
        total = laplace.flatten(1).abs().sum(dim=1) + spare
        return (self.radius * math.prod(shape) * laplace / per_sample(total)).float()

    @staticmethod
    def raw(amplitude: float, dimension: int) -> float:
        return amplitude * dimension


Ball = Annotated[L2Ball | LInfBall | L1Ball, Field(discriminator="norm")]

Norm = Literal["l1", "l2", "linf"]
BALLS: dict[Norm, type[L2Ball] | type[LInfBall] | type[L1Ball]] = {"l1": L1Ball, "l2": L2Ball, "linf": LInfBall}


def ball_of(norm: str, radius: float) -> L2Ball | LInfBall | L1Ball:
    """The ball of a norm given by name, as a search space samples it."""
    return BALLS[norm_named(norm)](radius=radius)


def norm_named(name: object) -> Norm:
    """The norm of that name, or a ``ValueError`` that lists the names."""
    for norm in BALLS:
        if name == norm:
            return norm
    raise ValueError(f"norm must be one of {', '.join(BALLS)}, got {name!r}")


def per_sample(values: Tensor) -> Tensor:
    """``[batch]`` shaped to multiply images, ``[batch, 1, 1, 1]``."""
    return values.view(-1, 1, 1, 1)
