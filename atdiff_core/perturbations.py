"""Schemes that perturb the noised input while a network trains.

A scheme is a generator in which **one yield is one optimizer step**: at each yield the
gradient of the parameters is ready, and the caller applies it before asking for more.
Schemes know the loss only as a function of the perturbation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from atdiff_core.balls import Ball
from atdiff_core.config import Config
from atdiff_core.minibatch import Minibatch
from atdiff_core.randomness import Randomness


@dataclass(frozen=True)
class Replay:
    """One forward-backward on a minibatch whose parameter gradient waits to be applied.

    Attributes:
        losses: Loss of each sample at the perturbation, ``[batch]``.
        clean_losses: Loss of the same samples, same draw, at delta = 0, ``[batch]``, where the
            scheme came by it. With several replays it was taken at the first of them, some
            optimizer steps ago.
        delta: The perturbation of each sample.
    """

    losses: Tensor
    clean_losses: Tensor | None
    delta: Tensor


class _Scheme(Config):
    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        """Run forward and backward on one minibatch, once per optimizer step.

        Args:
            minibatch: The loss, and what may be climbed.
            like: The noised input: shape, device and dtype of the perturbation.
            randomness: Streams of this minibatch's samples.
        """
        raise NotImplementedError

    @property
    def steps_per_minibatch(self) -> int:
        """Optimizer steps, and so yields, per minibatch."""
        return 1

    @property
    def climbs_per_step(self) -> int:
        """Ascent steps that take a forward-backward of their own, per optimizer step."""
        return 0

    @property
    def shared_climbs_per_step(self) -> float:
        """Ascent steps whose gradient comes with the descent's, per optimizer step."""
        return 0.0

    @property
    def climbs_what_it_descends(self) -> bool:
        """Whether one backward must serve parameters and perturbation alike."""
        return False

    def at_strength(self, factor: float) -> Self:
        """The same scheme with every amplitude multiplied by ``factor`` in [0, 1]."""
        return self

    def on_boundary(self, delta: Tensor) -> Tensor:
        """Which samples' perturbations were stopped by the ball, ``[batch]``, bool."""
        return torch.zeros(len(delta), dtype=torch.bool, device=delta.device)


class _Replayed(_Scheme):
    num_replays: Annotated[int, Field(ge=1)]

    @property
    def steps_per_minibatch(self) -> int:
        return self.num_replays


class Unperturbed(_Replayed):
    """Plain training; with more than one replay, the replay control.

    Free-AT sees ``num_replays`` times fewer distinct images than plain training of equal
    passes. This scheme does the same with delta = 0, which tells the effect of the
    perturbation from the effect of replaying.
    """

    kind: Literal["none"] = "none"
    num_replays: Annotated[int, Field(ge=1)] = 1

    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        delta = torch.zeros_like(like)
        clean_losses = None
        for _ in range(self.num_replays):
            losses = minibatch.descend(delta)
            clean_losses = losses if clean_losses is None else clean_losses
            yield Replay(losses, clean_losses, delta)


class GaussianPerturbation(_Scheme):
    """Gaussian noise of a given amplitude added to the input.

    With an objective whose perturbations are in units of the noise and whose target stays
    (``controls.ddpm_ip``) it is DDPM-IP (Ning et al., arXiv:2301.11706), ``std`` being its gamma.
    """

    kind: Literal["gaussian"] = "gaussian"
    std: Annotated[float, Field(ge=0)]

    def at_strength(self, factor: float) -> Self:
        return self.but(std=self.std * factor)

    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        delta = self.std * randomness.for_("gaussian").normal(like.shape[1:]).to(like)
        yield Replay(minibatch.descend(delta), None, delta)


class _Perturbed(_Scheme):
    ball: Ball
    step_size: float

    @field_validator("step_size")
    @classmethod
    def _step_is_an_amplitude(cls, step_size: float) -> float:
        if step_size < 0:
            raise ValueError(f"step_size must be >= 0 (an amplitude per element), got {step_size}")
        return step_size

    def at_strength(self, factor: float) -> Self:
        if factor == 1:
            return self
        return self.but(ball=self.ball.but(radius=self.ball.radius * factor), step_size=self.step_size * factor)

    def on_boundary(self, delta: Tensor) -> Tensor:
        return self.ball.on_boundary(delta)


class _Climbing(_Perturbed):
    start: Literal["zero", "random"] = "zero"

    def _start(self, like: Tensor, randomness: Randomness) -> Tensor:
        if self.start == "zero":
            return torch.zeros_like(like)
        return self.ball.uniform(like.shape[1:], randomness.for_("start")).to(like)

    def _climbed(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """One projected ascent step; samples whose gradient is not finite stay where they are."""
        finite = gradient.flatten(1).isfinite().all(dim=1).view(-1, 1, 1, 1)
        step = self.step_size * self.ball.steepest(torch.where(finite, gradient, 0.0))
        return self.ball.project(delta + step)


class FreeAT(_Climbing, _Replayed):
    """Climb and descend together: each backward pass serves both.

    The minibatch is replayed ``num_replays`` times. One backward pass per replay gives the
    gradient of the parameters, which the trainer applies at once, and the gradient of the
    perturbation, which moves it one projected step uphill before the next replay. From the zero
    start the first replay is unperturbed.

    Attributes:
        ball: Feasible set of the perturbation; its radius is an amplitude per element.
        num_replays: Optimizer steps per minibatch (the papers' K). One is ordinary training.
        step_size: Amplitude of one ascent step (alpha), in the unit of the radius. From the zero
            start the boundary is out of reach while ``(num_replays - 1) * step_size < radius``.
        start: Zero (the papers' choice), or uniform in the ball.

    Cost:
        ``num_replays`` standard training steps per minibatch, no more. A run of equal passes
        therefore sees ``num_replays`` times fewer images.

    Source:
        Shafahi et al., arXiv:1904.12843, Algorithm 1, with the perturbation reset for every
        minibatch. Wang et al., arXiv:2502.17099, Algorithm 1, train diffusion models this way.
    """

    kind: Literal["free_at"] = "free_at"

    @property
    def shared_climbs_per_step(self) -> float:
        return (self.num_replays - 1) / self.num_replays

    @property
    def climbs_what_it_descends(self) -> bool:
        return True

    @property
    def reach(self) -> float:
        """Largest size the ascent can have, as a fraction of the radius (rho)."""
        return (self.num_replays - 1) * self.step_size / self.ball.radius if self.ball.radius else 0.0

    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        if not minibatch.attack_is_loss:
            raise ValueError("Free-AT climbs what it descends; choose PGD where the attack is another function")
        delta = self._start(like, randomness)  # Zero start: one replay must equal plain training.
        clean_losses = None
        for replay in range(self.num_replays):
            climbs = replay + 1 < self.num_replays
            delta.requires_grad_(climbs)
            losses = minibatch.descend(delta)
            gradient, delta = delta.grad, delta.detach()
            if replay == 0 and self.start == "zero":
                clean_losses = losses
            yield Replay(losses, clean_losses, delta)
            if gradient is not None:
                delta = self._climbed(delta, gradient)


class PGD(_Climbing):
    """Climb first, then descend once at the point reached.

    The ascent takes no gradient of the parameters, so each of its steps costs two thirds of a
    training step. It may climb another function than it descends, as AT-DM does.

    Attributes:
        num_steps: Ascent steps K. Zero steps from the zero start are ordinary training; zero
            steps from the random start are uniform noise in the ball.
        start: Zero, or uniform in the ball. AT-DM's attack is one sign step from a random start.

    Cost:
        ``1 + 2 K / 3`` standard steps per optimizer step.

    Source:
        Madry et al., arXiv:1706.06083.
    """

    kind: Literal["pgd"] = "pgd"
    num_steps: Annotated[int, Field(ge=0)]

    @property
    def climbs_per_step(self) -> int:
        return self.num_steps

    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        delta = self._start(like, randomness)
        clean_losses = None
        for step in range(self.num_steps):
            attacked, gradient = minibatch.climb(delta)
            if step == 0 and self.start == "zero" and minibatch.attack_is_loss:
                clean_losses = attacked
            delta = self._climbed(delta, gradient)
        losses = minibatch.descend(delta)
        if self.num_steps == 0 and self.start == "zero":
            clean_losses = losses
        yield Replay(losses, clean_losses, delta)


class RandomPerturbation(_Perturbed, _Replayed):
    """The random control: the replays and sizes of an attack, in a direction nobody climbed to.

    Each sample has one random direction, which is the steepest direction of a Gaussian gradient
    in the ball's norm. Replay k has a perturbation of size ``min(k * step_size, radius)`` along
    it, k counting from 0, or from 1 unless ``clean_first``.
    """

    kind: Literal["random"] = "random"
    clean_first: bool = True

    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        gaussian = randomness.for_("direction").normal(like.shape[1:]).to(like)
        direction = self.ball.steepest(gaussian)
        clean_losses = None
        for replay in range(self.num_replays):
            steps = replay if self.clean_first else replay + 1
            delta = direction * min(steps * self.step_size, self.ball.radius)
            losses = minibatch.descend(delta)
            clean_losses = losses if steps == 0 else clean_losses
            yield Replay(losses, clean_losses, delta)


Perturbation = Annotated[
    Unperturbed | RandomPerturbation | GaussianPerturbation | PGD | FreeAT, Field(discriminator="kind")
]
