"""Samplers on diffusers' schedulers, with network evaluations counted and latents fixed by seed."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from pydantic import Field
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoiser
from atdiff_core.randomness import Randomness

MIN_HALF_LOG_SNR = -5.1
"""Where DPM-Solver++ starts: at the noisy end of a cosine schedule x_0 cannot be told from x_t."""
SamplerKind = Literal["ddim", "ancestral", "dpmpp_2m"]


class Sampler(Config):
    """A named sampler and its number of network evaluations.

    Attributes:
        kind: ``ddim``: deterministic, eta = 0, evenly strided from t = 0 (Song et al.,
            arXiv:2010.02502). ``ancestral``: the DDPM posterior on a respaced chain that
            contains 0 and T - 1 (Ho et al., arXiv:2006.11239). ``dpmpp_2m``: DPM-Solver++,
            multistep, order 2, evenly spaced timesteps (Lu et al., arXiv:2211.01095).
        nfe: Network evaluations per image, all of the same cost.
    """

    kind: SamplerKind = "ddim"
    nfe: Annotated[int, Field(ge=1)] = 10

    def scheduler(self, noise: NoiseSchedule) -> DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler:
        """The diffusers scheduler with its timesteps set."""
        levels = self._levels(noise)
        if self.nfe > levels:
            raise ValueError(f"nfe of {self.kind} must be at most {levels} for this noise schedule, got {self.nfe}")
        common: dict[str, Any] = {
            "num_train_timesteps": noise.num_timesteps,
            "trained_betas": noise.betas.numpy(),
        }
        made: DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler
        match self.kind:
            case "ddim":
                made = DDIMScheduler(**common, timestep_spacing="leading", clip_sample=True)
            case "ancestral":
                made = DDPMScheduler(
                    **common, timestep_spacing="linspace", clip_sample=True, variance_type="fixed_small"
                )
            case "dpmpp_2m":
                made = DPMSolverMultistepScheduler(
                    **common,
                    algorithm_type="dpmsolver++",
                    solver_order=2,
                    timestep_spacing="linspace",
                    lower_order_final=True,
                    lambda_min_clipped=MIN_HALF_LOG_SNR,
                )
        made.set_timesteps(self.nfe)
        return made

    def _levels(self, noise: NoiseSchedule) -> int:
        """Distinct noise levels that the sampler can visit."""
        if self.kind != "dpmpp_2m":
            return noise.num_timesteps
        half_log_snr = (noise.abar / (1 - noise.abar)).log() / 2
        return int((half_log_snr >= MIN_HALF_LOG_SNR).sum()) - 1  # It stops above t = 0, the others there.


def latents(shape: Sequence[int], indices: Sequence[int], *, seed: int) -> Tensor:
    """Starting noise of the samples with these indices, ``[len(indices), *shape]``.

    A function of (seed, index) alone: independent of the batch size and of the number of ranks.
    """
    return Randomness(seed, indices, "latents").normal(shape)


@torch.no_grad()
def sample(
    network: Denoiser,
    noise: NoiseSchedule,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """Images in [-1, 1], ``[len(indices), *shape]``, and the network evaluations they took.

    The count is made by counting, not read off the sampler's settings.
    """
    scheduler = sampler.scheduler(noise)
    current = latents(shape, indices, seed=seed).to(device) * scheduler.init_noise_sigma
    generators = Randomness(seed, indices, "ancestral").generators()
    extra = {} if sampler.kind == "dpmpp_2m" else {"generator": generators}
    evaluations = 0
    for timestep in scheduler.timesteps:
        timesteps = torch.full((len(indices),), int(timestep), device=device, dtype=torch.long)
        predicted = network(scheduler.scale_model_input(current, timestep), timesteps)
        evaluations += 1
        current = scheduler.step(predicted, timestep, current, return_dict=False, **extra)[0]
    return current.clamp(-1, 1), evaluations


def sample_batches(
    network: Denoiser,
    noise: NoiseSchedule,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    count: int,
    seed: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Yields the samples 0 to ``count`` - 1 in batches; their values do not depend on the batches."""
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        images, _ = sample(network, noise, sampler, shape=shape, indices=indices, seed=seed, device=device)
        yield images
