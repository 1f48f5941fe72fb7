"""Consistency distillation and training: neighbours on a trajectory must have the same end.

AT_Diff's Algorithm 2 trains consistency models under a perturbation (Wang et al., arXiv:2502.17099,
Eq. 17), but neither the released code nor any text at hand says where the perturbation sits.
Both readings are here, as one switch: all else is the same. The reconstruction is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import field_validator
from torch import Tensor

from atdiff_core.karras import PREDICTS, KarrasNoise, Noise
from atdiff_core.objectives.discretisation import Discretisation, FixedLevels, Pairs, ProgressiveLevels, UniformPairs
from atdiff_core.objectives.drawing import Denoiser, Draw, answer
from atdiff_core.objectives.objective import Companions
from atdiff_core.objectives.two_ends import FORWARD, PairDraw, TwoEnded, TwoEnds
from atdiff_core.randomness import Randomness
from atdiff_core.solvers import EVALUATIONS, Solver, denoiser, ode_step
from atdiff_core.timesteps import LossHistory


class _Consistency(TwoEnded):
    """What distillation and training share.

    ``weight * d(f(x, t_{n+1}), f-(x^, t_n))``: f is the trained function, f- its average without
    a gradient, x^ the solver's step from x to t_n. Both see the same dropout mask.

    Attributes:
        noise: Levels and parametrisation.
        discretisation: How many levels there are, and how the target averages.
        pairs: How often each pair of neighbours is drawn.
        weighting: ``uniform``: one. ``inverse_gap``: 1 / (t_{n+1} - t_n) (arXiv:2310.14189).
    """

    noise: KarrasNoise = KarrasNoise(kind="consistency")
    discretisation: Discretisation = FixedLevels()
    pairs: Pairs = UniformPairs()
    weighting: Literal["uniform", "inverse_gap"] = "uniform"

    @field_validator("noise")
    @classmethod
    def _is_for_consistency(cls, noise: KarrasNoise) -> KarrasNoise:
        if noise.kind != "consistency":
            raise ValueError(f"noise.kind must be consistency for a consistency model, got {noise.kind!r}")
        return noise

    def target_decay(self, progress: float) -> float:
        return self.discretisation.target_decay(self.noise, progress)

    def settings(self) -> dict[str, bool | float | str]:
        levels = f"{self.discretisation.count(self.noise, 0)} to {self.discretisation.count(self.noise, 1)}"
        return {"perturbed": self.perturbed, "distance": self.distance.name, "noise_levels": levels}

    def check_start(self, noise: Noise) -> None:
        """Weights of any network may be the start; those in other coordinates learn them first.

        An EDM denoiser with the same ``sigma_data`` is the intended one: away from the boundary
        its parametrisation is that of a consistency model.
        """
        if isinstance(noise, KarrasNoise) and noise.sigma_data != self.noise.sigma_data:
            raise ValueError(
                f"the weights to start from assume sigma_data={noise.sigma_data}, the objective "
                f"{self.noise.sigma_data}; give the objective theirs"
            )


class ConsistencyDistillation(_Consistency):
    """A teacher's probability flow in one step (Song et al., arXiv:2303.01469, Algorithm 2).

    Attributes:
        solver: Of the teacher's step from x to x^: ``heun`` asks it twice, ``euler`` once.
    """

    kind: Literal["consistency_distillation"] = "consistency_distillation"
    solver: Solver = "heun"

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def passes_per_draw(self) -> float:
        return EVALUATIONS[self.solver] * FORWARD

    def check_teacher(self, noise: Noise) -> None:
        if noise.kind in ("consistency", "latent_consistency"):
            raise ValueError(
                f"a teacher must predict noise or be an EDM denoiser, this one {PREDICTS[noise.kind]}; "
                "give the diffusion model it was distilled from"
            )

    def beside(self, companions: Companions, *, progress: float) -> "Pairing":
        if companions.teacher is None:
            raise ValueError(f"{self.kind} needs a teacher, got none")
        return Pairing(self, companions, progress)

    def solved(
        self, companions: Companions, clean: Tensor, noisy: Tensor, sigma: Tensor, reached: Tensor,
        condition: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """The teacher's step."""
        assert companions.teacher is not None
        return ode_step(denoiser(companions.teacher, condition), noisy, sigma, reached, self.solver)


class ConsistencyTraining(_Consistency):
    """Without a teacher: the image itself stands for the denoised one (arXiv:2303.01469, Algorithm 3).

    The step from x = x_0 + t_{n+1} z then ends at x_0 + t_n z. With ``DoublingLevels``,
    ``LognormalPairs``, ``PseudoHuber`` and ``inverse_gap`` it is the training of arXiv:2310.14189.
    """

    kind: Literal["consistency_training"] = "consistency_training"
    discretisation: Discretisation = ProgressiveLevels()

    def beside(self, companions: Companions, *, progress: float) -> "Pairing":
        return Pairing(self, companions, progress)

    def solved(
        self, companions: Companions, clean: Tensor, noisy: Tensor, sigma: Tensor, reached: Tensor,
        condition: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """An Euler step along the line to the image."""
        return clean + (reached / sigma) * (noisy - clean)


@dataclass(frozen=True)
class Pairing(TwoEnds):
    """A consistency objective at work on one minibatch."""

    objective: "ConsistencyDistillation | ConsistencyTraining"
    companions: Companions
    progress: float

    def draw(
        self,
        images: Tensor,
        randomness: Randomness,
        *,
        condition: Mapping[str, Tensor] | None = None,
        history: LossHistory | None = None,
    ) -> PairDraw:
        """A pair of neighbouring levels for each image, the noised image, and the solver's step from it."""
        objective, noise = self.objective, self.objective.noise
        levels = noise.levels(objective.discretisation.count(noise, self.progress))
        lower = objective.pairs.draw(randomness.for_("timestep"), levels)
        reached, sigma = (levels[places].to(images).view(-1, 1, 1, 1) for places in (lower, lower + 1))
        gaussian = randomness.for_("noise").normal(images.shape[1:]).to(images)
        noisy = images + sigma * gaussian
        told = condition or {}
        solved = objective.solved(self.companions, images, noisy, sigma, reached, told)
        gap = (sigma - reached).flatten()
        return PairDraw(
            clean=images,
            noise=gaussian,
            timesteps=noise.time(sigma).flatten(),
            weights=1 / gap if objective.weighting == "inverse_gap" else torch.ones_like(gap),
            noisy=noisy,
            sigma=sigma,
            dropout_seed=randomness.shared_seed,
            condition=told,
            solved=solved,
            solved_sigma=reached,
        )

    def _levels(self, draw: Draw) -> tuple[Tensor, Tensor]:
        assert isinstance(draw, PairDraw)
        return draw.sigma, draw.solved_sigma

    def _end(self, network: Denoiser, draw: Draw, noisy: Tensor, level: Tensor) -> Tensor:
        """f(x, sigma)."""
        noise = self.objective.noise
        output = answer(network, noise.c_in(level) * noisy, noise.time(level).flatten(), draw)
        return noise.c_skip(level) * noisy + noise.c_out(level) * output
