"""One minibatch as a scheme sees it: something to descend and to climb at a perturbation.

How the work is done is hidden here: in slices that fit into memory, with scaled half-precision
gradients, under DDP. A scheme sees whole minibatches and true gradients.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.amp import GradScaler

Loss = Callable[[Tensor], Tensor]
"""Perturbation ``[rows, channels, height, width]`` to one loss per sample, ``[rows]``."""


@dataclass(frozen=True)
class Slice:
    """Consecutive samples of a minibatch that go through the network together.

    Attributes:
        loss: What is descended, as a function of their perturbation.
        attack: What is climbed; differs from ``loss`` where the method says so, and under DDP,
            where it is taken on the bare module.
        weights: Importance of each sample in the mean, ``[rows]``.
    """

    loss: Loss
    attack: Loss
    weights: Tensor


@dataclass(frozen=True)
class Minibatch:
    """The slices of one minibatch.

    Attributes:
        slices: In the order of the samples.
        attack_is_loss: Whether one backward can serve both: what is climbed is what is descended.
        scaler: Keeps half-precision gradients above zero; a disabled one changes nothing.
        postponed: Context in which gradients are not yet shared between ranks.
    """

    slices: Sequence[Slice]
    attack_is_loss: bool = True
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    postponed: Callable[[], AbstractContextManager[None]] = nullcontext

    @classmethod
    def whole(cls, loss: Loss, size: int, *, attack: Loss | None = None) -> "Minibatch":
        """All samples at once, equally weighted, in full precision.

        Args:
            attack: What an ascent of its own climbs where that differs from ``loss``.
        """
        return cls([Slice(loss, attack or loss, torch.ones(size))], attack_is_loss=attack is None)

    @property
    def weights(self) -> Tensor:
        """``[batch]``."""
        return torch.cat([part.weights for part in self.slices])

    def descend(self, delta: Tensor) -> Tensor:
        """Loss of each sample, ``[batch]``, without a graph.

        The gradient of the weighted mean is added to the parameters' (scaled, if a scaler is
        on), and to that of ``delta`` (never scaled) if it requires one.
        """
        losses = []
        for number, (part, here) in enumerate(self._with_rows(delta), start=1):
            with nullcontext() if number == len(self.slices) else self.postponed():
                values = part.loss(here)
                self.scaler.scale((values * part.weights.to(values)).sum() / len(delta)).backward()
            losses.append(values.detach())
        if delta.grad is not None:
            delta.grad /= self._scale(delta)
        return torch.cat(losses)

    def climb(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Attack of each sample, ``[batch]``, and its gradient in ``delta``; parameters get none."""
        values, gradients = [], []
        for part, here in self._with_rows(delta.detach()):
            moving = here.clone().requires_grad_()
            attacked = part.attack(moving)
            gradients.append(torch.autograd.grad(self.scaler.scale(attacked.sum()), moving)[0])
            values.append(attacked.detach())
        return torch.cat(values), torch.cat(gradients) / self._scale(delta)

    @torch.no_grad()
    def measure(self, delta: Tensor) -> Tensor:
        """Loss of each sample, ``[batch]``, and nothing else."""
        return torch.cat([part.loss(here) for part, here in self._with_rows(delta)])

    def _with_rows(self, delta: Tensor) -> list[tuple[Slice, Tensor]]:
        """Every slice with its part of the perturbation."""
        rows = delta.split([len(part.weights) for part in self.slices])
        return list(zip(self.slices, rows, strict=True))

    def _scale(self, like: Tensor) -> Tensor:
        return self.scaler.scale(torch.ones((), device=like.device))
