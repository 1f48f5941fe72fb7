"""Schemes that perturb the noised input while a network trains.

A scheme is a generator in which **one yield is one optimizer step**: at each yield the
gradient of the parameters is ready, and the caller applies it before asking for more.
Schemes know the loss only as a function of the perturbation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from atdiff_core.balls import Ball
from atdiff_core.config import Config
from atdiff_core.randomness import Randomness

Loss = Callable[[Tensor], Tensor]
"""Perturbation ``[batch, channels, height, width]`` to one loss per sample, ``[batch]``."""


@dataclass(frozen=True)
class Replay:
    """One forward-backward on a minibatch whose parameter gradient waits to be applied.

    Attributes:
        losses: Loss of each sample at the perturbation, ``[batch]``.
        clean_losses: Loss of the same samples, same draw, at delta = 0, ``[batch]``. In Free-AT
            it was taken at the first replay, some optimizer steps ago.
        delta: The perturbation of each sample.
    """

    losses: Tensor
    clean_losses: Tensor
    delta: Tensor


class _Scheme(Config):
    def replays(
        self, loss: Loss, like: Tensor, randomness: Randomness, *, attack: Loss | None = None
    ) -> Iterator[Replay]:
        """Run forward and backward on one minibatch, once per optimizer step.

        Args:
            loss: Loss whose parameter gradient is wanted.
            like: The noised input: shape, device and dtype of the perturbation.
            randomness: Streams of this minibatch's samples.
            attack: What an ascent of its own climbs where that differs from ``loss``: the
                same loss on the bare module when ``loss`` runs under DDP.
        """
        raise NotImplementedError

    @property
    def passes_per_step(self) -> float:
        """Forward-backwards per sample and optimizer step (forward 1/3, backward 2/3)."""
        return 1.0

    @property
    def steps_per_minibatch(self) -> int:
        """Optimizer steps, and so yields, per minibatch."""
        return 1

    @property
    def passes_per_minibatch(self) -> float:
        return self.passes_per_step * self.steps_per_minibatch

    def on_boundary(self, delta: Tensor) -> Tensor:
        """Which samples' perturbations were stopped by the ball, ``[batch]``, bool."""
        return torch.zeros(len(delta), dtype=torch.bool, device=delta.device)


class Unperturbed(_Scheme):
    """Plain training; with more than one replay, the replay control.

    Free-AT sees ``num_replays`` times fewer distinct images than plain training of equal
    passes. This scheme does the same with delta = 0, which tells the effect of the
    perturbation from the effect of replaying.
    """

    kind: Literal["none"] = "none"
    num_replays: Annotated[int, Field(ge=1)] = 1

    @property
    def steps_per_minibatch(self) -> int:
        return self.num_replays

    def replays(
        self, loss: Loss, like: Tensor, randomness: Randomness, *, attack: Loss | None = None
    ) -> Iterator[Replay]:
        delta = torch.zeros_like(like)
        clean_losses = None
        for _ in range(self.num_replays):
            losses = loss(delta)
            losses.mean().backward()
            clean_losses = losses.detach() if clean_losses is None else clean_losses
            yield Replay(losses.detach(), clean_losses, delta)


class _Perturbed(_Scheme):
    ball: Ball
    step_size: float

    @field_validator("step_size")
    @classmethod
    def _step_is_an_amplitude(cls, step_size: float) -> float:
        if step_size < 0:
            raise ValueError(f"step_size must be >= 0 (an amplitude per element), got {step_size}")
        return step_size

    def on_boundary(self, delta: Tensor) -> Tensor:
        return self.ball.on_boundary(delta)

    def _climbed(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """One projected ascent step; samples whose gradient is not finite stay where they are."""
        finite = gradient.flatten(1).isfinite().all(dim=1).view(-1, 1, 1, 1)
        step = self.step_size * self.ball.steepest(torch.where(finite, gradient, 0.0))
        return self.ball.project(delta + step)


class FreeAT(_Perturbed):
    """Climb and descend together: each backward pass serves both.

    The minibatch is replayed ``num_replays`` times. One backward pass per replay gives the
    gradient of the parameters, which the trainer applies at once, and the gradient of the
    perturbation, which moves it one projected step uphill before the next replay. The first
    replay is unperturbed.

    Attributes:
        ball: Feasible set of the perturbation; its radius is an amplitude per element.
        num_replays: Optimizer steps per minibatch (the papers' K). One is ordinary training.
        step_size: Amplitude of one ascent step (alpha), in the unit of the radius. The
            boundary is out of reach while ``(num_replays - 1) * step_size < radius``.

    Cost:
        ``num_replays`` standard training steps per minibatch, no more. A run of equal passes
        therefore sees ``num_replays`` times fewer images.

    Source:
        Shafahi et al., arXiv:1904.12843, Algorithm 1, with the perturbation reset for every
        minibatch. Wang et al., arXiv:2502.17099, Algorithm 1, train diffusion models this way.
    """

    kind: Literal["free_at"] = "free_at"
    num_replays: Annotated[int, Field(ge=1)]

    @property
    def steps_per_minibatch(self) -> int:
        return self.num_replays

    @property
    def reach(self) -> float:
        """Largest size the ascent can have, as a fraction of the radius (rho)."""
        return (self.num_replays - 1) * self.step_size / self.ball.radius if self.ball.radius else 0.0

    def replays(
        self, loss: Loss, like: Tensor, randomness: Randomness, *, attack: Loss | None = None
    ) -> Iterator[Replay]:
        delta = torch.zeros_like(like)  # Zero start: one replay must equal plain training.
        clean_losses = None
        for replay in range(self.num_replays):
            climbs = replay + 1 < self.num_replays
            delta.requires_grad_(climbs)
            losses = loss(delta)
            losses.mean().backward()
            gradient, delta = delta.grad, delta.detach()
            clean_losses = losses.detach() if clean_losses is None else clean_losses
            yield Replay(losses.detach(), clean_losses, delta)
            if gradient is not None:
                delta = self._climbed(delta, gradient)


class PGD(_Perturbed):
    """Climb first, then descend once at the point reached.

    The ascent takes no gradient of the parameters, so each of its steps costs two thirds of a
    training step.

    Attributes:
        num_steps: Ascent steps K, from delta = 0. Zero is ordinary training.

    Cost:
        ``1 + 2 K / 3`` standard steps per optimizer step.

    Source:
        Madry et al., arXiv:1706.06083.
    """

    kind: Literal["pgd"] = "pgd"
    num_steps: Annotated[int, Field(ge=0)]

    @property
    def passes_per_step(self) -> float:
        return 1 + 2 * self.num_steps / 3

    def replays(
        self, loss: Loss, like: Tensor, randomness: Randomness, *, attack: Loss | None = None
    ) -> Iterator[Replay]:
        climb = attack or loss
        delta = torch.zeros_like(like)
        clean_losses = None
        for _ in range(self.num_steps):
            delta.requires_grad_()
            losses = climb(delta)
            (gradient,) = torch.autograd.grad(losses.sum(), delta)
            clean_losses = losses.detach() if clean_losses is None else clean_losses
            delta = self._climbed(delta.detach(), gradient)
        losses = loss(delta)
        losses.mean().backward()
        yield Replay(losses.detach(), losses.detach() if clean_losses is None else clean_losses, delta)


class RandomPerturbation(_Perturbed):
    """The random control: Free-AT's replays and sizes, in a direction nobody climbed to.

    The first replay is unperturbed; replay k has a perturbation of size
    ``min(k * step_size, radius)`` along one random direction per sample, which is the
    steepest direction of a Gaussian gradient in the ball's norm.
    """

    kind: Literal["random"] = "random"
    num_replays: Annotated[int, Field(ge=1)]

    @property
    def steps_per_minibatch(self) -> int:
        return self.num_replays

    def replays(
        self, loss: Loss, like: Tensor, randomness: Randomness, *, attack: Loss | None = None
    ) -> Iterator[Replay]:
        gaussian = randomness.for_("direction").normal(like.shape[1:]).to(like)
        direction = self.ball.steepest(gaussian)
        clean_losses = None
        for replay in range(self.num_replays):
            delta = direction * min(replay * self.step_size, self.ball.radius)
            losses = loss(delta)
            losses.mean().backward()
            clean_losses = losses.detach() if clean_losses is None else clean_losses
            yield Replay(losses.detach(), clean_losses, delta)


Perturbation = Annotated[Unperturbed | RandomPerturbation | PGD | FreeAT, Field(discriminator="kind")]
