"""The probability-flow ODE of a teacher, dx / dsigma = (x - D(x, sigma)) / sigma, one step at a time."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from atdiff_core.karras import PREDICTS, KarrasNoise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.networks import predicted_noise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.objective import Teacher

Solver = Literal["heun", "euler"]
EVALUATIONS: dict[Solver, int] = {"heun": 2, "euler": 1}
"""Of the denoiser, in one step."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""D: x_0 + sigma z ``[batch, channels, height, width]`` and sigma ``[batch, 1, 1, 1]``, to E[x_0 | x]."""


def ode_step(denoise: Denoise, noisy: Tensor, sigma: Tensor, reached: Tensor, solver: Solver) -> Tensor:
    """One step from level ``sigma`` to the level ``reached``, both ``[batch, 1, 1, 1]`` and positive.

    ``euler`` errs by the square of the step, ``heun`` by its cube (Karras et al.,
    arXiv:2206.00364, Algorithm 1).
    """
    slope = (noisy - denoise(noisy, sigma)) / sigma
    euler = noisy + (reached - sigma) * slope
    if solver == "euler":
        return euler
    slope_there = (euler - denoise(euler, reached)) / reached
    return noisy + (reached - sigma) * (slope + slope_there) / 2


def denoiser(teacher: Teacher, condition: Mapping[str, Tensor]) -> Denoise:
    """D(x, sigma) of a teacher in EDM coordinates, without a gradient; see ``vp_denoised`` and ``edm_denoised``."""
    noise = teacher.noise
    if isinstance(noise, LatentConsistencyNoise):
        raise ValueError(f"a teacher must predict noise or be an EDM denoiser, this one {PREDICTS[noise.kind]}")

    @torch.no_grad()
    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(noise, KarrasNoise):
            return edm_denoised(teacher, noise, noisy, sigma, condition)
        return vp_denoised(teacher, noise, noisy, sigma, condition)

    return denoise


def edm_denoised(
    teacher: Teacher, noise: KarrasNoise, noisy: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """c_skip x + c_out F(c_in x, 250 ln(sigma))."""
    output: Tensor = teacher.network(noise.c_in(sigma) * noisy, noise.time(sigma).flatten(), **condition)
    return noise.c_skip(sigma) * noisy + noise.c_out(sigma) * output.to(noisy)


def vp_denoised(
    teacher: Teacher, noise: NoiseSchedule, noisy: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """x - sigma e(x / sqrt(1 + sigma²), t), where t is the level whose noise over signal is sigma.

    Between two levels t is interpolated in ln(sigma); below the first it is 0, above the last T - 1.
    A prediction of another kind is read with the level's own signal and noise, 1 and sigma over
    sqrt(1 + sigma²).
    """
    shown = noisy / (1 + sigma.square()).sqrt()
    output: Tensor = teacher.network(shown, timestep_of(noise, sigma.flatten()).to(shown), **condition)
    predicted = predicted_noise(output.to(noisy), noisy.shape[1])
    if noise.predicts == "image":
        return predicted
    if noise.predicts == "velocity":
        return (shown - sigma * predicted) / (1 + sigma.square()).sqrt()
    return noisy - sigma * predicted


def timestep_of(noise: NoiseSchedule, sigma: Tensor) -> Tensor:
    """Level t, fractions included, at which noise over signal is ``sigma``; ``[batch]``, float64."""
    table = ((1 - noise.abar) / noise.abar).log() / 2
    wanted = sigma.detach().cpu().double().log()
    above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
