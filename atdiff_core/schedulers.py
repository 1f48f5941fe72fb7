"""diffusers' schedulers, made for a noise and a number of network evaluations."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    LCMScheduler,
)
from torch import Tensor

from atdiff_core.karras import KarrasNoise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.levels import (
    MIN_HALF_LOG_SNR,
    chain_levels,
    log_snr_levels,
    strided_levels,
)
from atdiff_core.noise import NoiseSchedule, Predicts
from atdiff_core.sampler_kinds import SamplerKind, Spacing

Scheduler: TypeAlias = (
    DDIMScheduler
    | DDPMScheduler
    | DPMSolverMultistepScheduler
    | EDMEulerScheduler
    | EDMDPMSolverMultistepScheduler
    | CMStochasticIterativeScheduler
    | LCMScheduler
)
PREDICTION_TYPES: dict[Predicts, str] = {"noise": "epsilon", "velocity": "v_prediction", "image": "sample"}
"""What diffusers calls what a network predicts."""


def karras_scheduler(kind: SamplerKind, nfe: int, noise: KarrasNoise) -> Scheduler:
    """A scheduler in EDM coordinates; its timesteps are ln(sigma) / 4, or 250 ln(sigma) for ``cm``."""
    scales = {name: getattr(noise, name) for name in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    made: Scheduler
    match kind:
        case "cm":
            made = CMStochasticIterativeScheduler(num_train_timesteps=noise.num_levels, **scales)
        case "edm_euler":
            made = EDMEulerScheduler(**scales)
        case _:
            made = EDMDPMSolverMultistepScheduler(**scales)
    made.set_timesteps(nfe)
    return made


def latent_scheduler(nfe: int, noise: LatentConsistencyNoise) -> Scheduler:
    """The scheduler of latent consistency models, on evenly spaced timesteps of the noise's grid."""
    made = LCMScheduler(
        num_train_timesteps=noise.schedule.num_timesteps,
        trained_betas=noise.schedule.betas.numpy(),
        original_inference_steps=noise.num_steps,
        timestep_scaling=noise.timestep_scaling,
        prediction_type=PREDICTION_TYPES[noise.schedule.predicts],
    )
    made.alphas_cumprod = noise.schedule.abar
    made.set_timesteps(nfe)
    return made


def vp_scheduler(
    kind: SamplerKind, nfe: int, spacing: Spacing, noise: NoiseSchedule, *, bounded: bool = True
) -> Scheduler:
    """A scheduler with the noise levels that the network is asked about as its timesteps.

    Args:
        bounded: Whether samples lie in [-1, 1], so that a predicted x_0 is clipped to it; latents do not.
    """
    common: dict[str, Any] = {
        "num_train_timesteps": noise.num_timesteps,
        "trained_betas": noise.betas.numpy(),
        "prediction_type": PREDICTION_TYPES[noise.predicts],
    }
    made: Scheduler
    match kind:
        case "ddim":
            made = DDIMScheduler(**common, clip_sample=bounded)
            made.set_timesteps(noise.num_timesteps)
            made.timesteps = torch.tensor(strided_levels(noise.num_timesteps, nfe))
            made.alphas_cumprod = _abar_one_below(made.timesteps.tolist(), noise)
        case "ancestral" | "iddpm":
            variance = "learned_range" if kind == "iddpm" else "fixed_small"
            made = DDPMScheduler(**common, clip_sample=bounded, variance_type=variance)
            made.set_timesteps(timesteps=chain_levels(noise.num_timesteps, nfe))
            made.alphas_cumprod = noise.abar
        case _:
            made = _solver(nfe, spacing, noise, common)
    return made


def _solver(nfe: int, spacing: Spacing, noise: NoiseSchedule, common: dict[str, Any]) -> DPMSolverMultistepScheduler:
    even = spacing == "uniform"
    made = DPMSolverMultistepScheduler(
        **common,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="linspace",
        lower_order_final=even,
        euler_at_final=nfe < 10,
        final_sigmas_type="zero" if even else "sigma_min",
        lambda_min_clipped=MIN_HALF_LOG_SNR,
    )
    made.alphas_cumprod = noise.abar
    if even:
        made.set_timesteps(nfe)
    else:
        made.set_timesteps(timesteps=log_snr_levels(noise, nfe))
    return made


def _abar_one_below(levels: Sequence[int], noise: NoiseSchedule) -> Tensor:
    """abar in a table where t - 1 holds the level visited after t.

    diffusers' DDIM steps from t to t - T // steps, however the levels lie; made to believe in T
    steps it looks one below.
    """
    table = noise.abar.clone()
    reached = [*noise.abar[list(levels[1:])].tolist(), 1.0]
    for level, abar in zip(levels, reached, strict=True):
        if level > 0:
            table[level - 1] = abar
    return table
