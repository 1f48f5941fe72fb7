"""Samplers on diffusers' schedulers, with network evaluations counted and latents fixed by seed."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.epsilon_scaling import EpsilonScaling, short
from atdiff_core.guidance import Conditioning, guided
from atdiff_core.karras import PREDICTS, KarrasNoise, Noise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.levels import accepted_levels, log_snr_start
from atdiff_core.networks import predicted_noise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.drawing import Denoiser
from atdiff_core.randomness import Randomness
from atdiff_core.sampler_kinds import STEPS, SamplerKind, Spacing

if TYPE_CHECKING:
    from atdiff_core.schedulers import Scheduler

NOTHING = Conditioning()
FINISHED = -1
"""In place of a timestep: after the last step, where the sampler's state is an image."""
_LABEL = re.compile(rf"({'|'.join(STEPS)})(_logsnr)?(?:_es([\d.e-]+)(?:_([\d.e-]+))?)?(?:_g([\d.]+))?")
GUIDED: tuple[SamplerKind, ...] = ("ddim", "ancestral", "dpmpp_2m", "lcm")
"""Samplers that know what to do with a guidance scale."""


class Sampler(Config):
    """A named sampler and its number of network evaluations.

    Attributes:
        kind: ``ddim``: deterministic, eta = 0, evenly strided from t = 0; the direction follows the
            clipped x_0 (Song et al., arXiv:2010.02502). ``ancestral``: the DDPM posterior with its
            smallest variance on a respaced chain that contains 0 and T - 1 (Ho et al.,
            arXiv:2006.11239). ``iddpm``: the same chain with the variance that the network has
            learned (Nichol & Dhariwal, arXiv:2102.09672). ``dpmpp_2m``: DPM-Solver++, multistep,
            order 2 (Lu et al., arXiv:2211.01095). All but the last clip x_0 to [-1, 1].
            Those were for networks that predict noise. For EDM denoisers: ``edm_euler``,
            deterministic on Karras levels, and ``edm_dpmpp_2m``, of order 2. For consistency
            models: ``cm``, in one step or several, with fresh noise between them (Song et al.,
            arXiv:2303.01469, Algorithm 1) on evenly spaced levels of the noise. For latent
            consistency models: ``lcm``, the same on their grid of timesteps (arXiv:2310.04378).
        nfe: Network evaluations per image, all of the same cost, or twice as many where a network
            is guided that is not told the scale. A single one is made at T - 1,
            except by ``dpmpp_2m``, which starts where it always does.
        spacing: Levels of ``dpmpp_2m``. ``uniform``: evenly in t, the last step going to x_0.
            ``log_snr``: evenly in the logarithm of signal over noise, from 0.992 of the range down
            to t = 0, which is where it stops; first order at the last step below 10 steps. AT_Diff
            (arXiv:2502.17099) judges with it. Its solver moves in continuous time; here each level
            is the nearest whole timestep that keeps all of them distinct, and the network is told
            that timestep, where the original stretches the 996 levels it accepts of a cosine
            schedule over 1000.
        epsilon_scaling: Divisor of the predicted noise.
        guidance: How far the prediction is moved away from the one without a prompt, for networks
            that attend to prompts: diffusers' ``guidance_scale``, 1 for none. With ``lcm``
            the network is told ``guidance - 1``, the papers' w, and asked once.
    """

    kind: SamplerKind = "ddim"
    nfe: Annotated[int, Field(ge=1)] = 10
    spacing: Spacing = "uniform"
    epsilon_scaling: EpsilonScaling = EpsilonScaling()
    guidance: float = Field(1.0, ge=1, exclude_if=lambda guidance: guidance == 1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.spacing != "uniform" and self.kind != "dpmpp_2m":
            raise ValueError(f"spacing {self.spacing} is one of dpmpp_2m, got it for {self.kind}")
        if self.guidance != 1 and self.kind not in GUIDED:
            raise ValueError(f"guidance is for {', '.join(GUIDED)}, got {self.guidance:g} for {self.kind}")
        if self.epsilon_scaling != EpsilonScaling() and "linear" not in STEPS[self.kind]:
            raise ValueError(f"epsilon_scaling divides a predicted noise, {self.kind} steps other networks")
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
                "_es1.0_0.0025 (constant, slope) behind it for epsilon scaling, edm_euler or edm_dpmpp_2m for EDM "
                "denoisers, cm for consistency models, or lcm for latent ones; ddim, ancestral, dpmpp_2m and lcm also "
                f"with _g7.5 for guidance, got {label!r}"
            )
        kind, log_snr, constant, slope, guidance = parts.groups()
        scaling = {"constant": constant or 1.0, "slope": slope or 0.0}
        spacing = "log_snr" if log_snr else "uniform"
        fields = {"kind": kind, "nfe": nfe, "spacing": spacing, "epsilon_scaling": scaling, "guidance": guidance or 1.0}
        return cls.model_validate(fields)

    @property
    def label(self) -> str:
        """Short name of all but the NFE, say ``iddpm_es1.017``; different for different samplers."""
        guidance = f"_g{short(self.guidance)}" if self.guidance != 1 else ""
        return self.kind + ("_logsnr" if self.spacing == "log_snr" else "") + self.epsilon_scaling.label + guidance

    @property
    def name(self) -> str:
        """The label with the NFE, say ``ddim_10``."""
        return f"{self.label}_{self.nfe}"

    def fits(self, noise: Noise) -> bool:
        """Whether it can step a network trained on this noise."""
        return noise.kind in STEPS[self.kind]

    def scheduler(self, noise: Noise, *, bounded: bool = True) -> "Scheduler":
        """The diffusers scheduler; its timesteps, times ``time_scale``, are what the network is asked about.

        Args:
            bounded: Whether samples lie in [-1, 1], as pictures do and latents do not.

        Raises:
            ValueError: See ``check_steps``.
        """
        from atdiff_core.schedulers import karras_scheduler, latent_scheduler, vp_scheduler

        self.check_steps(noise)
        if isinstance(noise, KarrasNoise):
            return karras_scheduler(self.kind, self.nfe, noise)
        if isinstance(noise, LatentConsistencyNoise):
            return latent_scheduler(self.nfe, noise)
        return vp_scheduler(self.kind, self.nfe, self.spacing, noise, bounded=bounded)

    def check_steps(self, noise: Noise) -> None:
        """Refuse what ``scheduler`` cannot be made for, without making it.

        Raises:
            ValueError: It cannot step a network trained on this noise, or not in so many steps.
        """
        if not self.fits(noise):
            able = ", ".join(kind for kind, noises in STEPS.items() if noise.kind in noises)
            raise ValueError(
                f"sampler {self.label} cannot step a network that {PREDICTS[noise.kind]}; choose one of {able}"
            )
        if isinstance(noise, NoiseSchedule) and self.epsilon_scaling != EpsilonScaling() and noise.predicts != "noise":
            raise ValueError(f"epsilon_scaling divides a predicted noise, this network predicts the {noise.predicts}")
        most, of_what = self._most_steps(noise)
        if self.nfe > most:
            raise ValueError(f"nfe of {self.kind} must be at most {most}, the {of_what}, got {self.nfe}")

    def _most_steps(self, noise: Noise) -> tuple[float, str]:
        """Distinct noise levels that it can visit, and what they are."""
        if isinstance(noise, KarrasNoise):
            return noise.num_levels if self.kind == "cm" else math.inf, "levels of the noise"
        if isinstance(noise, LatentConsistencyNoise):
            return noise.num_steps, "timesteps of the grid"
        if self.kind != "dpmpp_2m":
            return noise.num_timesteps, "timesteps of the noise"
        if self.spacing == "log_snr":
            return log_snr_start(noise), "timesteps that it can tell from pure noise"
        return accepted_levels(noise) - 1, "timesteps above 0 that it can tell from pure noise"

    @property
    def time_scale(self) -> int:
        """EDM's schedulers say ln(sigma) / 4, our networks are told a thousand times that."""
        return 1000 if "edm" in STEPS[self.kind] else 1

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
    noise: Noise,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    num_classes: int = 0,
    conditioning: Conditioning = NOTHING,
    bounded: bool = True,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[float, Tensor]]:
    """Yields (t, state) before each step of a sampler, then (``FINISHED``, the images).

    A state before a step at t is what the network is shown at t, ``[len(indices), *shape]``; in EDM
    coordinates, where t is 250 ln(sigma), it is shown the state scaled by c_in.

    Args:
        num_classes: Of a network with classes: each sample is given one of them.
        conditioning: What the network is told besides.
        bounded: Whether samples lie in [-1, 1], as pictures do and latents do not.
    """
    scheduler = sampler.scheduler(noise, bounded=bounded)
    current = latents(shape, indices, seed=seed).to(device) * scheduler.init_noise_sigma
    if num_classes:
        labels = {"labels": class_labels(indices, num_classes, seed=seed)}
        conditioning = replace(conditioning, told={**conditioning.told, **labels})
    ask = guided(network, conditioning.to(device), sampler.guidance, embedded=sampler.kind == "lcm")
    options: dict[str, Any] = {}
    if sampler.kind == "ddim":
        options = {"use_clipped_model_output": True}
    elif sampler.kind in ("ancestral", "iddpm", "cm", "lcm"):
        options = {"generator": Randomness(seed, indices, "ancestral").generators()}
    levels: list[float] = scheduler.timesteps.tolist()
    for index, timestep in zip(reversed(range(sampler.nfe)), levels, strict=True):
        asked = timestep * sampler.time_scale
        yield asked, current
        shown = scheduler.scale_model_input(current, timestep)
        output = sampler._scaled(ask(shown, _told(asked, current)).float(), index, shape[0])
        stepped = scheduler.step(output, timestep, current, return_dict=False, **options)
        current = stepped[0] if index else stepped[-1]  # A chain ends in x_0, without noise.
    yield FINISHED, current.clamp(-1, 1) if bounded else current


def _told(timestep: float, states: Tensor) -> Tensor:
    """A whole level as an integer, as in training; a time in EDM coordinates as it is, ``[batch]``."""
    dtype = torch.long if isinstance(timestep, int) else states.dtype
    return torch.full((len(states),), timestep, device=states.device, dtype=dtype)


def sample(
    network: Denoiser,
    noise: Noise,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    num_classes: int = 0,
    conditioning: Conditioning = NOTHING,
    bounded: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """Images in [-1, 1], or latents, ``[len(indices), *shape]``, and the network evaluations they took.

    The count is made by counting, not read off the sampler's settings; arguments as for ``trajectory``.
    """
    evaluations = 0

    def counted(*inputs: Tensor, **told: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return network(*inputs, **told)

    states = trajectory(
        counted, noise, sampler, shape=shape, indices=indices, seed=seed, num_classes=num_classes,
        conditioning=conditioning, bounded=bounded, device=device,
    )  # fmt: skip
    for _, current in states:
        images = current
    return images, evaluations


def sample_batches(
    network: Denoiser,
    noise: Noise,
    sampler: Sampler,
    *,
    shape: Sequence[int],
    count: int,
    seed: int,
    num_classes: int = 0,
    bounded: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Yields the samples 0 to ``count`` - 1 in batches; their values do not depend on the batches."""
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        images, _ = sample(
            network, noise, sampler, shape=shape, indices=indices, seed=seed, num_classes=num_classes,
            bounded=bounded, device=device,
        )  # fmt: skip
        yield images
