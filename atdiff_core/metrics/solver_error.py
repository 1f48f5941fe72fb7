"""How far a distillation's solver errs at each of its steps: the delta_t of AT_Diff's Theorem 3, measured.

Distillation aims at where one coarse step of the teacher's probability flow ends. Where many fine
steps end is the better answer; the difference is what a perturbation of the solver's output stands
for, so its size says how large the radius of such a perturbation ought to be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from atdiff_core.karras import KarrasNoise
from atdiff_core.objectives.objective import Teacher
from atdiff_core.randomness import Randomness
from atdiff_core.solvers import Denoise, Solver, denoiser, ode_step


@dataclass(frozen=True)
class SolverErrorAt:
    """Error of the step from one noise level to the next lower one.

    Attributes:
        sigma: Where the step starts.
        reached: Where it ends.
        amplitude: Root mean square of the error over elements and images: in the unit of a radius.
        std_error: Its standard error over the images.
        largest: Largest absolute error of any element.
        step: Root mean square of the step itself, for comparison.
    """

    sigma: float
    reached: float
    amplitude: float
    std_error: float
    largest: float
    step: float

    @property
    def in_noise(self) -> float:
        """The amplitude in units of the noise at the lower level."""
        return self.amplitude / self.reached


def solver_error(
    teacher: Teacher,
    noise: KarrasNoise,
    solver: Solver,
    images: Tensor,
    *,
    condition: Mapping[str, Tensor] | None = None,
    fine_steps: int = 16,
    seed: int = 0,
) -> Iterator[SolverErrorAt]:
    """Yields the error of every step of a distillation, from the highest level down.

    Every step starts at noised images, as in training. The reference takes ``fine_steps`` Heun
    steps, even in sigma^(1/rho), over the same stretch; images and noise are the same at all levels.

    Args:
        noise: Levels of the distillation.
        images: ``[images, channels, height, width]`` in [-1, 1], where the teacher is.
        condition: What the teacher is told besides, each ``[images, ...]``.

    Cost:
        ``2 * fine_steps + 2`` evaluations of the teacher per image and level.
    """
    if fine_steps < 2:
        raise ValueError(f"fine_steps must be at least 2 to be finer than the step itself, got {fine_steps}")
    denoise = denoiser(teacher, condition or {})
    gaussian = Randomness(seed, range(len(images)), "solver error").normal(images.shape[1:]).to(images)
    levels = noise.levels().flip(0).tolist()
    for sigma, reached in pairwise(levels):
        noisy = images + sigma * gaussian
        coarse = ode_step(denoise, noisy, _level(sigma, images), _level(reached, images), solver)
        fine = _carried(denoise, noisy, noise.between(sigma, reached, fine_steps))
        errors = (coarse - fine).flatten(1).double()
        squares = errors.square().mean(dim=1)
        amplitude = float(squares.mean().sqrt())
        spread = float(squares.std() / len(images) ** 0.5) if len(images) > 1 else float("nan")
        yield SolverErrorAt(
            sigma,
            reached,
            amplitude,
            spread / (2 * amplitude) if amplitude else 0.0,
            float(errors.abs().max()),
            float((fine - noisy).square().mean().sqrt()),
        )


def _carried(denoise: Denoise, noisy: Tensor, levels: Tensor) -> Tensor:
    """By Heun steps through the given levels."""
    for sigma, reached in pairwise(levels.tolist()):
        noisy = ode_step(denoise, noisy, _level(sigma, noisy), _level(reached, noisy), "heun")
    return noisy


def _level(sigma: float, like: Tensor) -> Tensor:
    return torch.full((len(like), 1, 1, 1), sigma, dtype=like.dtype, device=like.device)
