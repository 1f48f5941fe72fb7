"""Robustness of a trained network: how much a perturbation of its input can raise its loss.

The worst case is searched, not known, so every number here is a lower bound of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from atdiff_core.balls import Ball
from atdiff_core.config import Config
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.drawing import Denoiser, Draw
from atdiff_core.randomness import Randomness
from atdiff_core.team import ALONE, Team
from atdiff_core.timesteps import UniformTimesteps

STEPS_ACROSS = 2.5
"""How many radii the steps of an attack add up to, so that it can reach the boundary and turn there."""


class Attack(Config):
    """Projected gradient ascent from delta = 0 on the loss of a network that stays as it is.

    The step size is ``2.5 radius / num_steps`` (Madry et al., arXiv:1706.06083).

    Attributes:
        ball: Feasible set; its radius is an amplitude per element.
        num_steps: Ascent steps.
    """

    ball: Ball
    num_steps: Annotated[int, Field(ge=1)] = 5

    @property
    def name(self) -> str:
        """What the gain under it is called among a trial's figures."""
        return f"attack_gain/{self.ball.norm}_{self.ball.radius:g}"

    @property
    def step_size(self) -> float:
        """Amplitude of one step, in the unit of the radius."""
        return STEPS_ACROSS * self.ball.radius / self.num_steps

    def losses(self, network: Denoiser, objective: Denoising, draw: Draw) -> tuple[Tensor, Tensor]:
        """Loss of each sample at delta = 0 and the largest one met on the way, both ``[batch]``."""
        delta = torch.zeros_like(draw.noisy)
        met = []
        for _ in range(self.num_steps):
            delta.requires_grad_()
            losses = objective.loss(network, draw, delta)
            (gradient,) = torch.autograd.grad(losses.sum(), delta)
            met.append(losses.detach())
            delta = self.ball.project(delta.detach() + self.step_size * self.ball.steepest(gradient))
        with torch.no_grad():
            met.append(objective.loss(network, draw, delta))
        return met[0], torch.stack(met).amax(dim=0)


@dataclass(frozen=True)
class RobustnessAt:
    """Loss of a network under attack against its loss, over a range of noise levels.

    A perturbation of one radius weighs more the smaller sigma_t is: over all levels, the lowest
    few carry the gain and most of its error.

    Attributes:
        timesteps: Noise levels.
        samples: Noised images that fell there.
        loss: Their mean loss without a perturbation.
        attacked_loss: Their mean loss at the perturbations found.
        gain: ``attacked_loss / loss``, >= 1. The smaller, the more robust.
        std_error: Standard error of the gain over the samples (delta method for a ratio of means).
    """

    timesteps: range
    samples: int
    loss: float
    attacked_loss: float
    gain: float
    std_error: float


def robustness(
    network: Denoiser,
    objective: Denoising,
    images: Tensor,
    attack: Attack,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    num_bins: int = 5,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    team: Team = ALONE,
) -> Iterator[RobustnessAt]:
    """Yields the gain over all noise levels, then over each of ``num_bins`` equal ranges of them.

    Every image is noised once. The level and the noise are functions of the seed and the image's
    place: gains of other networks or radii with the same seed are paired. Whatever the network was
    trained with, levels are drawn uniformly and the ascent follows the true gradient of the loss.

    Args:
        network: In evaluation mode; its parameters receive no gradient.
        images: Preferably not trained on, ``[images, channels, height, width]`` in [-1, 1].
        labels: Their classes, for a conditional network, ``[images]``.
        team: Ranks that share the images; all of them get the same gains.

    Cost:
        ``num_steps`` forwards and backwards without parameter gradients, and a forward, per image.

    Raises:
        ValueError: If fewer than two images fall into a range of levels.
    """
    climbed = objective.but(attack_sees_target=True, timesteps=UniformTimesteps())
    deal, found = team.deal(len(images), batch_size), []
    for indices in deal.mine:
        rows = slice(indices.start, indices.stop)
        batch, classes = images[rows].to(device), None if labels is None else labels[rows].to(device)
        randomness = Randomness(seed, indices, "robustness")
        draw = climbed.draw(batch, randomness, condition={} if classes is None else {"labels": classes})
        found.append(torch.stack([draw.timesteps, *attack.losses(network, climbed, draw)], dim=1).double().cpu())
    levels, clean, attacked = deal.collected(found).T
    num_timesteps = climbed.noise.num_timesteps
    for here in (range(num_timesteps), *_ranges(num_timesteps, num_bins)):
        inside = (levels >= here.start) & (levels < here.stop)
        yield _gain(here, clean[inside], attacked[inside])


def _ranges(num_timesteps: int, num_bins: int) -> list[range]:
    if not 1 <= num_bins <= num_timesteps:
        raise ValueError(f"num_bins must be 1 to {num_timesteps} (the noise levels), got {num_bins}")
    edges = [place * num_timesteps // num_bins for place in range(num_bins + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def _gain(timesteps: range, clean: Tensor, attacked: Tensor) -> RobustnessAt:
    samples = len(clean)
    if samples < 2:
        where = f"timesteps {timesteps.start} to {timesteps.stop - 1}"
        raise ValueError(f"{where} need at least 2 images, got {samples}: give more images or fewer bins")
    loss, attacked_loss = float(clean.mean()), float(attacked.mean())
    gain = attacked_loss / loss
    std_error = float((attacked - gain * clean).std()) / (loss * math.sqrt(samples))
    return RobustnessAt(timesteps, samples, loss, attacked_loss, gain, std_error)
