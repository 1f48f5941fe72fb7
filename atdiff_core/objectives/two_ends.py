"""What consistency objectives share: two points of a trajectory, whose ends must be the same."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from atdiff_core.objectives.drawing import Denoiser, Draw
from atdiff_core.objectives.image_distances import L2, ImageDistance
from atdiff_core.objectives.objective import Companions, ObjectiveConfig

FORWARD = 1 / 3
"""Of a forward-backward; a backward to the input alone costs another third."""


@dataclass(frozen=True, kw_only=True)
class PairDraw(Draw):
    """Two points of a trajectory: ``noisy`` at ``sigma``, and where the solver gets from there.

    Attributes:
        solved: The solver's output at the lower level, shape of ``noisy``.
        solved_sigma: That level, ``[batch, 1, 1, 1]``.
    """

    solved: Tensor
    solved_sigma: Tensor


class TwoEnded(ObjectiveConfig):
    """``d(f(x), f-(x^))``: f is the trained function, f- its average without a gradient, x^ the solver's step from x.

    Attributes:
        distance: d.
        perturbed: What delta moves. ``student``: x, what the trained function sees, the target
            staying where it is; one backward serves parameters and delta as in Algorithm 1.
            ``solver``: x^, what the target sees: delta stands for the solver's error of
            Theorem 3, and its gradient goes through the target, at a third of a pass more.
        unit: Unit of delta: ``image`` (pixels of [-1, 1], or that of the latents), or ``noise`` (delta is
            multiplied by the level where it is added).
    """

    distance: ImageDistance = L2()
    perturbed: Literal["student", "solver"] = "student"
    unit: Literal["image", "noise"] = "image"

    @property
    def passes_per_descent(self) -> float:
        """A forward-backward of the trained network, a forward of the target."""
        return 1 + FORWARD

    @property
    def passes_per_climb(self) -> float:
        """Forwards of both networks, a backward to the input of the perturbed one."""
        return 3 * FORWARD

    @property
    def passes_per_shared_climb(self) -> float:
        """The backward to the target's input, which plain training does without."""
        return FORWARD if self.perturbed == "solver" else 0.0

    @property
    def keeps_target(self) -> bool:
        return True


class TwoEnds:
    """Such an objective at work on one minibatch."""

    objective: TwoEnded
    companions: Companions

    def _levels(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Where x and x^ lie, as ``_end`` takes it."""
        raise NotImplementedError

    def _end(self, network: Denoiser, draw: Draw, noisy: Tensor, level: Tensor) -> Tensor:
        """What a network says is the end of the trajectory through ``noisy``."""
        raise NotImplementedError

    def loss(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """Distance of the two ends, ``[batch]``; deterministic in ``delta`` (dropout is replayed)."""
        assert isinstance(draw, PairDraw)
        moved, solved = draw.noisy, draw.solved
        if self.objective.perturbed == "student":
            moved = moved + self._in_image_units(delta, draw.sigma)
        else:
            solved = solved + self._in_image_units(delta, draw.solved_sigma)
        here, below = self._levels(draw)
        end = self._end(network, draw, moved, here)
        return self.objective.distance.between(end, self._target_end(draw, solved, below))

    def attack(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """The loss itself."""
        return self.loss(network, draw, delta)

    def _target_end(self, draw: Draw, solved: Tensor, level: Tensor) -> Tensor:
        """The target's answer: no gradient for its parameters, one for its input where delta is there."""
        target = self.companions.target
        if target is None:
            raise ValueError(f"{type(self.objective).__name__} compares with a target network, got none")
        with torch.set_grad_enabled(solved.requires_grad and torch.is_grad_enabled()):
            return self._end(target, draw, solved, level)

    def _in_image_units(self, delta: Tensor, sigma: Tensor) -> Tensor:
        return delta if self.objective.unit == "image" else sigma * delta
