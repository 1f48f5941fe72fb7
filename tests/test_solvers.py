"""The teacher's step: exact coordinates, and the order of its error on Gaussian data."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from atdiff_core.karras import KarrasNoise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.objective import Teacher
from atdiff_core.solvers import Solver, denoiser, ode_step, timestep_of

SPREAD = 0.5


def exact(noisy: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] for Gaussian images of standard deviation SPREAD."""
    return SPREAD**2 / (SPREAD**2 + sigma.square()) * noisy


def carried(noisy: Tensor, sigma: Tensor, reached: Tensor) -> Tensor:
    """Where the exact probability flow of Gaussian data takes ``noisy``."""
    return noisy * ((SPREAD**2 + reached.square()) / (SPREAD**2 + sigma.square())).sqrt()


def level(sigma: float) -> Tensor:
    return torch.full((1, 1, 1, 1), sigma, dtype=torch.float64)


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3)])
def test_the_error_of_one_step_shrinks_with_the_power_of_the_step(solver: Solver, order: int) -> None:
    noisy = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = []
    for step in (0.02, 0.01, 0.005):
        start, end = level(1.0), level(1.0 - step)
        errors.append((ode_step(exact, noisy, start, end, solver) - carried(noisy, start, end)).abs().item())
    assert [one / other for one, other in pairwise(errors)] == pytest.approx([2**order] * 2, rel=0.1)


def test_many_small_steps_follow_the_exact_flow() -> None:
    noise = KarrasNoise(kind="edm")
    levels = noise.levels(400).flip(0)
    state = first = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 80
    for sigma, reached in pairwise(levels):
        state = ode_step(exact, state, level(float(sigma)), level(float(reached)), "heun")
    assert torch.allclose(state, carried(first, level(80.0), level(0.002)), rtol=1e-3)


class PredictsNoise(nn.Module):
    """E[noise | x_t] of Gaussian images, by interpolating abar between the levels as sigma is interpolated."""

    def __init__(self, noise: NoiseSchedule) -> None:
        super().__init__()
        self.log_ratio = ((1 - noise.abar) / noise.abar).log() / 2

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        below = timesteps.floor().long().clamp(max=len(self.log_ratio) - 2)
        share = timesteps - below
        sigma = ((1 - share) * self.log_ratio[below] + share * self.log_ratio[below + 1]).exp().view(-1, 1, 1, 1)
        abar = 1 / (1 + sigma.square())
        return (1 - abar).sqrt() * noisy / (abar * SPREAD**2 + 1 - abar)


class IsADenoiser(nn.Module):
    """F of the exact denoiser."""

    def __init__(self, noise: KarrasNoise) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, shown: Tensor, times: Tensor) -> Tensor:
        sigma = (times / 250).exp().view(-1, 1, 1, 1)
        noisy = shown / self.noise.c_in(sigma)
        return (exact(noisy, sigma) - self.noise.c_skip(sigma) * noisy) / self.noise.c_out(sigma)


LINEAR, EDM = NoiseSchedule(kind="linear"), KarrasNoise(kind="edm")


@pytest.mark.parametrize(
    "teacher",
    [Teacher(PredictsNoise(LINEAR), LINEAR), Teacher(PredictsNoise(NoiseSchedule()), NoiseSchedule()),
     Teacher(IsADenoiser(EDM), EDM)],
    ids=["linear", "cosine", "edm"],
)  # fmt: skip
def test_a_teacher_of_any_kind_is_the_same_denoiser(teacher: Teacher) -> None:
    sigma = torch.tensor([0.02, 0.3, 1.0, 7.0, 60.0], dtype=torch.float64).view(-1, 1, 1, 1)
    noisy = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sigma
    assert torch.allclose(denoiser(teacher, {})(noisy, sigma), exact(noisy, sigma), rtol=1e-5, atol=1e-8)


def test_levels_are_found_again_and_lie_between_their_neighbours() -> None:
    sigma = ((1 - LINEAR.abar) / LINEAR.abar).sqrt()
    assert torch.allclose(timestep_of(LINEAR, sigma[[0, 1, 500, 999]]), torch.tensor([0.0, 1, 500, 999]).double())
    halfway = (sigma[500] * sigma[501]).sqrt().view(1)
    assert timestep_of(LINEAR, halfway).item() == pytest.approx(500.5)
    assert timestep_of(LINEAR, torch.tensor([1e-4, 1e4]).double()).tolist() == [0.0, 999.0]
