"""Latent consistency distillation: a guided teacher's steps of Stable Diffusion, taken at once, under a perturbation.

AT_Diff's second experiment trains such models (Wang et al., arXiv:2502.17099, Eq. 17), but as for other
consistency models no text at hand says where the perturbation sits. Both readings are one switch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.karras import PREDICTS, Noise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.drawing import Denoiser, Draw, answer
from atdiff_core.objectives.image_distances import Huber, ImageDistance
from atdiff_core.objectives.objective import Companions, Teacher
from atdiff_core.objectives.two_ends import FORWARD, PairDraw, TwoEnded, TwoEnds
from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory


@dataclass(frozen=True, kw_only=True)
class SkipDraw(PairDraw):
    """A noised latent z at ``timesteps``, and where the guided teacher gets from there.

    Attributes:
        solved_timesteps: Timestep of ``solved``, ``[batch]``.
    """

    solved_timesteps: Tensor


class LatentConsistencyDistillation(TwoEnded):
    """``d(f(z_t, w, c, t), f-(z^, w, c, t'))``: ends of one trajectory of the guided teacher, seen from t and t'.

    f is the trained function, f- its average without a gradient, c the prompt, w the guidance
    scale and z^ one DDIM step of the teacher from z_t to t', guided by w: its x_0 and its noise are
    each moved from those without a prompt, ``with + w (with - without)`` (Luo et al.,
    arXiv:2310.04378, Algorithm 1; the authors' code guides both). t is uniform on the noise's grid, t' is
    ``skip`` places below, 0 where there is none. Both functions see the same dropout mask.

    Attributes:
        noise: Schedule, grid and boundary form.
        skip: Places of the grid that the solver's step spans. On a grid of 50 from 1000 timesteps
            one place is the paper's skipping step k = 20.
        w_min: Least guidance scale w; 0 is none. diffusers' ``guidance_scale`` is w + 1.
        w_max: Largest; w is uniform between them, drawn for each sample.
        target_rate: Decay of the target's average at each optimizer step (the paper's mu).
    """

    kind: Literal["latent_consistency"] = "latent_consistency"
    noise: LatentConsistencyNoise = LatentConsistencyNoise()
    skip: Annotated[int, Field(ge=1)] = 1
    w_min: Annotated[float, Field(ge=0)] = 5.0
    w_max: Annotated[float, Field(ge=0)] = 15.0
    distance: ImageDistance = Huber()
    target_rate: Annotated[float, Field(ge=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.w_min > self.w_max:
            raise ValueError(f"the range of the guidance scale is empty: w_min={self.w_min:g}, w_max={self.w_max:g}")
        if self.skip > self.noise.num_steps:
            raise ValueError(f"skip must be at most the {self.noise.num_steps} places of the grid, got {self.skip}")
        return self

    @property
    def passes_per_draw(self) -> float:
        """The teacher's forward with the prompt and without it."""
        return 2 * FORWARD

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def embeds_guidance(self) -> bool:
        return True

    def target_decay(self, progress: float) -> float:
        return self.target_rate

    def settings(self) -> dict[str, bool | float | str]:
        return {
            "perturbed": self.perturbed,
            "distance": self.distance.name,
            "w_min": self.w_min,
            "w_max": self.w_max,
            "skipping_step": self.skip * (self.noise.schedule.num_timesteps // self.noise.num_steps),
        }

    def check_start(self, noise: Noise) -> None:
        """A student starts at its teacher's weights, or at those of another student."""
        if noise != self.noise.schedule:
            super().check_start(noise)

    def check_teacher(self, noise: Noise) -> None:
        if not isinstance(noise, NoiseSchedule):
            raise ValueError(
                f"a teacher of latent consistency must be a diffusion model in diffusion's own timesteps, this one "
                f"{PREDICTS[noise.kind]}"
            )
        if noise.but(predicts=self.noise.schedule.predicts) != self.noise.schedule:
            raise ValueError(
                f"the teacher was trained with the noise {noise}, the objective has {self.noise.schedule}; "
                "give the objective the teacher's"
            )

    def beside(self, companions: Companions, *, progress: float) -> "Skipping":
        if companions.teacher is None:
            raise ValueError(f"{self.kind} needs a teacher, got none")
        self.check_teacher(companions.teacher.noise)
        if not companions.untold:
            raise ValueError(f"{self.kind} guides its teacher away from the empty prompt, got none: give prompts")
        return Skipping(self, companions)


@dataclass(frozen=True)
class Skipping(TwoEnds):
    """Latent consistency distillation at work on one minibatch."""

    objective: LatentConsistencyDistillation
    companions: Companions

    def draw(
        self,
        images: Tensor,
        randomness: Randomness,
        *,
        condition: Mapping[str, Tensor] | None = None,
        history: LossHistory | None = None,
    ) -> SkipDraw:
        """A timestep and a guidance scale for each latent, the noised latent, and the teacher's step from it."""
        objective, schedule = self.objective, self.objective.noise.schedule
        grid = objective.noise.grid
        places = randomness.for_("timestep").integers(len(grid))
        timesteps = grid[places].to(images.device)
        lower = places - objective.skip
        reached = torch.where(lower >= 0, grid[lower.clamp(min=0)], 0).to(images.device)
        spread = randomness.for_("guidance").uniform(())
        w = (objective.w_min + (objective.w_max - objective.w_min) * spread).to(images.device)
        gaussian = randomness.for_("noise").normal(images.shape[1:]).to(images)
        noisy = schedule.noised(images, gaussian, timesteps)
        told = dict(condition or {})
        assert self.companions.teacher is not None
        solved = guided_step(self.companions.teacher, noisy, timesteps, reached, w, told, self.companions.untold)
        return SkipDraw(
            clean=images,
            noise=gaussian,
            timesteps=timesteps,
            weights=torch.ones(len(images), device=images.device),
            noisy=noisy,
            sigma=schedule.sigma(timesteps).to(images),
            dropout_seed=randomness.shared_seed,
            condition=told | {"guidance": w},
            solved=solved,
            solved_timesteps=reached,
            solved_sigma=schedule.sigma(reached).to(images),
        )

    def _levels(self, draw: Draw) -> tuple[Tensor, Tensor]:
        assert isinstance(draw, SkipDraw)
        return draw.timesteps, draw.solved_timesteps

    def _end(self, network: Denoiser, draw: Draw, noisy: Tensor, level: Tensor) -> Tensor:
        """f(z, w, c, t)."""
        return self.objective.noise.end(answer(network, noisy, level, draw), noisy, level)


@torch.no_grad()
def guided_step(
    teacher: Teacher,
    noisy: Tensor,
    timesteps: Tensor,
    reached: Tensor,
    w: Tensor,
    told: Mapping[str, Tensor],
    untold: Mapping[str, Tensor],
) -> Tensor:
    """One DDIM step of a teacher from ``timesteps`` to the timesteps ``reached``, both ``[batch]``, guided by ``w``.

    Args:
        told: What the teacher is told of each sample, each ``[batch, ...]``.
        untold: What says nothing, in place of it; each ``[1, ...]``.
    """
    noise = teacher.noise
    assert isinstance(noise, NoiseSchedule)
    nothing = {name: value.to(noisy.device).expand(len(noisy), *value.shape[1:]) for name, value in untold.items()}
    w = w.to(noisy).view(-1, 1, 1, 1)
    outputs = [teacher.network(noisy, timesteps, **each).to(noisy) for each in (told, {**told, **nothing})]
    images, noises = (
        [read(output, noisy, timesteps) for output in outputs] for read in (noise.image_in, noise.noise_in)
    )
    image, gaussian = (one + w * (one - other) for one, other in (images, noises))
    return noise.signal(reached).to(noisy) * image + noise.sigma(reached).to(noisy) * gaussian
