"""Samplers on diffusers' schedulers, with network evaluations counted and latents fixed by seed."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.levels import (
    MIN_HALF_LOG_SNR,
    accepted_levels,
    chain_levels,
    log_snr_levels,
    log_snr_start,
    strided_levels,
)
from atdiff_core.networks import predicted_noise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.drawing import Denoiser
from atdiff_core.randomness import Randomness

FINISHED = -1
"""In place of a timestep: after the last step, where the sampler's state is an image."""
SamplerKind = Literal["ddim", "ancestral", "iddpm", "dpmpp_2m"]
Spacing = Literal["uniform", "log_snr"]
Scheduler: TypeAlias = DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler
_LABEL = re.compile(r"(ddim|ancestral|iddpm|dpmpp_2m)(_logsnr)?(?:_es([\d.e-]+)(?:_([\d.e-]+))?)?")


class EpsilonScaling(Config):
    """Divide the predicted noise by lambda(i) = slope * i + constant inside the prediction of x_0.

    Sampling shows a network noisier inputs than training did, so it predicts too much noise. The
    index i counts the levels that a sampler visits: 0 is the cleanest, ``nfe - 1`` the noisiest.

    Attributes:
        constant: lambda at the cleanest level. One, with slope zero, is no scaling.
        slope: Growth of lambda from one level to the next noisier one.

    Source:
        Ning et al., arXiv:2308.15321 (ADM-ES). With ancestral sampling of ADM on CIFAR-10 they use
        the constant 1.017. AT_Diff (arXiv:2502.17099) uses it at every NFE.
    """

    constant: Annotated[float, Field(gt=0)] = 1.0
    slope: float = 0.0

    def at(self, index: int) -> float:
        """lambda(i)."""
        return self.slope * index + self.constant

    @property
    def label(self) -> str:
        """Say ``_es1.017``, with the slope behind it where there is one; empty without scaling."""
        if self == EpsilonScaling():
            return ""
        return f"_es{_short(self.constant)}" + (f"_{_short(self.slope)}" if self.slope else "")


class Sampler(Config):
    """A named sampler and its number of network evaluations.

    Attributes:
        kind: ``ddim``: deterministic, eta = 0, evenly strided from t = 0; the direction follows the
            clipped x_0 (Song et al., arXiv:2010.02502). ``ancestral``: the DDPM posterior with its
            smallest variance on a respaced chain that contains 0 and T - 1 (Ho et al.,
            arXiv:2006.11239). ``iddpm``: the same chain with the variance that the network has
            learned (Nichol & Dhariwal, arXiv:2102.09672). ``dpmpp_2m``: DPM-Solver++, multistep,
            order 2 (Lu et al., arXiv:2211.01095). All but the last clip x_0 to [-1, 1].
        nfe: Network evaluations per image, all of the same cost. A single one is made at T - 1,
            except by ``dpmpp_2m``, which starts where it always does.
        spacing: Levels of ``dpmpp_2m``. ``uniform``: evenly in t, the last step going to x_0.
            ``log_snr``: evenly in the logarithm of signal over noise, from 0.992 of the range down
            to t = 0, which is where it stops; first order at the last step below 10 steps. AT_Diff
            (arXiv:2502.17099) judges with it. Its solver moves in continuous time; here each level
            is the nearest whole timestep that keeps all of them distinct, and the network is told
            that timestep, where the original stretches the 996 levels it accepts of a cosine
            schedule over 1000.
        epsilon_scaling: Divisor of the predicted noise.
    """

    kind: SamplerKind = "ddim"
    nfe: Annotated[int, Field(ge=1)] = 10
    spacing: Spacing = "uniform"
    epsilon_scaling: EpsilonScaling = EpsilonScaling()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.spacing != "uniform" and self.kind != "dpmpp_2m":
            raise ValueError(f"spacing {self.spacing} is one of dpmpp_2m, got it for {self.kind}")
        smallest = min(self.epsilon_scaling.at(0), self.epsilon_scaling.at(self.nfe - 1))
        if smallest <= 0:
            raise ValueError(f"epsilon_scaling must stay positive at all {self.nfe} levels, got {smallest:.4g}")
        return self

    @classmethod
    def named(cls, label: str, *, nfe: int) -> Self:
        """The sampler with this label, say ``iddpm_es1.017``."""
        parts = _LABEL.fullmatch(label)
        if parts is None:
            raise ValueError(
                "a sampler must be ddim, ancestral, iddpm, dpmpp_2m or dpmpp_2m_logsnr, each with _es1.017 or "
                f"_es1.0_0.0025 (constant, slope) behind it for epsilon scaling, got {label!r}"
            )
        kind, log_snr, constant, slope = parts.groups()
        scaling = {"constant": constant or 1.0, "slope": slope or 0.0}
        fields = {"kind": kind, "nfe": nfe, "spacing": "log_snr" if log_snr else "uniform", "epsilon_scaling": scaling}
        return cls.model_validate(fields)

    @property
    def label(self) -> str:
        """Short name of all but the NFE, say ``iddpm_es1.017``; different for different samplers."""
        return self.kind + ("_logsnr" if self.spacing == "log_snr" else "") + self.epsilon_scaling.label

    @property
    def name(self) -> str:
        """The label with the NFE, say ``ddim_10``."""
        return f"{self.label}_{self.nfe}"

    def scheduler(self, noise: NoiseSchedule) -> Scheduler:
        """The diffusers scheduler, with the noise levels that the network is asked about as its timesteps."""
        levels = self._levels(noise)
        if self.nfe > levels:
            raise ValueError(f"nfe of {self.kind} must be at most {levels} for this noise schedule, got {self.nfe}")
        common: dict[str, Any] = {"num_train_timesteps": noise.num_timesteps, "trained_betas": noise.betas.numpy()}
        made: Scheduler
        match self.kind:
            case "ddim":
                made = DDIMScheduler(**common, clip_sample=True)
                made.set_timesteps(noise.num_timesteps)
                made.timesteps = torch.tensor(strided_levels(noise.num_timesteps, self.nfe))
                made.alphas_cumprod = _abar_one_below(made.timesteps.tolist(), noise)
            case "ancestral" | "iddpm":
                variance = "learned_range" if self.kind == "iddpm" else "fixed_small"
                made = DDPMScheduler(**common, clip_sample=True, variance_type=variance)
                made.set_timesteps(timesteps=chain_levels(noise.num_timesteps, self.nfe))
                made.alphas_cumprod = noise.abar
            case "dpmpp_2m":
                made = self._solver(noise, common)
        return made

    def _solver(self, noise: NoiseSchedule, common: dict[str, Any]) -> DPMSolverMultistepScheduler:
        even = self.spacing == "uniform"
        made = DPMSolverMultistepScheduler(
            **common,
            algorithm_type="dpmsolver++",
            solver_order=2,
            timestep_spacing="linspace",
            lower_order_final=even,
            euler_at_final=self.nfe < 10,
            final_sigmas_type="zero" if even else "sigma_min",
            lambda_min_clipped=MIN_HALF_LOG_SNR,
        )
        made.alphas_cumprod = noise.abar
        if even:
            made.set_timesteps(self.nfe)
        else:
            made.set_timesteps(timesteps=log_snr_levels(noise, self.nfe))
        return made

    def _levels(self, noise: NoiseSchedule) -> int:
        """Distinct noise levels that the sampler can visit."""
        if self.kind != "dpmpp_2m":
            return noise.num_timesteps
        if self.spacing == "log_snr":
            return log_snr_start(noise)
        return accepted_levels(noise) - 1  # It stops above t = 0, the others there.

    def _scaled(self, output: Tensor, index: int, image_channels: int) -> Tensor:
        """The network's output as the scheduler wants it: the noise scaled, the variance kept or dropped."""
        scaled = predicted_noise(output, image_channels) / self.epsilon_scaling.at(index)
        if self.kind != "iddpm":
            return scaled
        if output.shape[1] != 2 * image_channels:
            raise ValueError(
                f"iddpm needs a network with a learned variance ({2 * image_channels} output channels), "
                f"got {output.shape[1]}; train one or sample with ancestral"
            )
        return torch.cat([scaled, output[:, image_channels:]], dim=1)


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


def _short(number: float) -> str:
    return str(number).removesuffix(".0")


def latents(shape: Sequence[int], indices: Sequence[int], *, seed: int) -> Tensor:
    """Starting noise of the samples with these indices, ``[len(indices), *shape]``.

    A function of (seed, index) alone: independent of the batch size and of the number of ranks.
    """
    _check_indices(indices)
    return Randomness(seed, indices, "latents").normal(shape)


def class_labels(indices: Sequence[int], num_classes: int, *, seed: int) -> Tensor:
    """Classes of the samples with these indices, ``[len(indices)]``, int64, uniform; as fixed as the latents."""
    _check_indices(indices)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1 for labels to be drawn, got {num_classes}")
    return Randomness(seed, indices, "labels").integers(num_classes)


def _check_indices(indices: Sequence[int]) -> None:
    if not len(indices) or min(indices) < 0:
        raise ValueError(f"indices of samples must be whole numbers >= 0, at least one, got {list(indices)}")


@torch.no_grad()
def trajectory(
    network: Denoiser,
    noise: NoiseSchedule,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    num_classes: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Tensor]]:
    """Yields (t, state) before each step of a sampler, then (``FINISHED``, the images).

    A state before a step at t is what the network is shown at t, ``[len(indices), *shape]``.
    """
    scheduler = sampler.scheduler(noise)
    current = latents(shape, indices, seed=seed).to(device)
    labels = (class_labels(indices, num_classes, seed=seed).to(device),) if num_classes else ()
    options: dict[str, Any] = {}
    if sampler.kind == "ddim":
        options = {"use_clipped_model_output": True}
    elif sampler.kind in ("ancestral", "iddpm"):
        options = {"generator": Randomness(seed, indices, "ancestral").generators()}
    levels: list[int] = scheduler.timesteps.tolist()
    for index, timestep in zip(reversed(range(sampler.nfe)), levels, strict=True):
        yield timestep, current
        timesteps = torch.full((len(indices),), timestep, device=device, dtype=torch.long)
        output = sampler._scaled(network(current, timesteps, *labels).float(), index, shape[0])
        stepped = scheduler.step(output, timestep, current, return_dict=False, **options)
        current = stepped[0] if index else stepped[-1]  # A chain ends in x_0, without noise.
    yield FINISHED, current.clamp(-1, 1)


def sample(
    network: Denoiser,
    noise: NoiseSchedule,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    num_classes: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """Images in [-1, 1], ``[len(indices), *shape]``, and the network evaluations they took.

    The count is made by counting, not read off the sampler's settings.
    """
    evaluations = 0

    def counted(*inputs: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return network(*inputs)

    states = trajectory(
        counted, noise, sampler, shape=shape, indices=indices, seed=seed, num_classes=num_classes, device=device
    )
    for _, current in states:
        images = current
    return images, evaluations


def sample_batches(
    network: Denoiser,
    noise: NoiseSchedule,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    count: int,
    seed: int,
    num_classes: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Yields the samples 0 to ``count`` - 1 in batches; their values do not depend on the batches."""
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        images, _ = sample(
            network, noise, sampler, shape=shape, indices=indices, seed=seed, num_classes=num_classes, device=device
        )
        yield images
