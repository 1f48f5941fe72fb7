"""Which noise levels a minibatch is trained at, and what each sample then weighs in the mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.randomness import Randomness


@dataclass
class LossHistory:
    """The last losses seen at each timestep: the memory of the loss-second-moment sampler.

    Attributes:
        losses: ``[num_timesteps, length]``, float64, oldest first once full.
        counts: How many of them are filled, ``[num_timesteps]``, int64.
    """

    losses: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, num_timesteps: int, length: int) -> "LossHistory":
        return cls(
            torch.zeros(num_timesteps, length, dtype=torch.float64), torch.zeros(num_timesteps, dtype=torch.int64)
        )

    @property
    def full(self) -> bool:
        return bool((self.counts == self.losses.shape[1]).all())

    def add(self, timesteps: Sequence[int], losses: Sequence[float]) -> None:
        """Remember one loss for each timestep given, in order; losses that are not finite are ignored."""
        length = self.losses.shape[1]
        for timestep, loss in zip(timesteps, losses, strict=True):
            if not abs(loss) < float("inf"):
                continue
            if self.counts[timestep] < length:
                self.losses[timestep, self.counts[timestep]] = loss
                self.counts[timestep] += 1
            else:
                self.losses[timestep] = self.losses[timestep].roll(-1)
                self.losses[timestep, -1] = loss


class UniformTimesteps(Config):
    """Every noise level is equally likely, every sample weighs one."""

    kind: Literal["uniform"] = "uniform"

    def history(self, num_timesteps: int) -> None:
        """It remembers nothing."""

    def draw(self, randomness: Randomness, num_timesteps: int, history: LossHistory | None) -> tuple[Tensor, Tensor]:
        """Timesteps and weights, ``[samples]`` each."""
        timesteps = randomness.integers(num_timesteps)
        return timesteps, torch.ones(len(timesteps))


class LossSecondMoment(Config):
    """Noise levels as often as the root mean square of their recent losses; the weights undo it.

    The weighted mean estimates the uniform mean with less variance. Uniform until every level
    has a full history (Nichol & Dhariwal, arXiv:2102.09672, Section 3.3).

    Attributes:
        history_length: Losses remembered for each timestep.
        uniform_share: Probability of drawing uniformly after all.
    """

    kind: Literal["loss_second_moment"] = "loss_second_moment"
    history_length: Annotated[int, Field(ge=1)] = 10
    uniform_share: Annotated[float, Field(gt=0, le=1)] = 0.001

    def history(self, num_timesteps: int) -> LossHistory:
        return LossHistory.empty(num_timesteps, self.history_length)

    def probabilities(self, history: LossHistory) -> Tensor:
        """``[num_timesteps]``, float64, with sum 1."""
        count = len(history.counts)
        if not history.full:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        size = history.losses.square().mean(dim=1).sqrt()
        shares = size / size.sum() if size.sum() > 0 else torch.full_like(size, 1 / count)
        return shares * (1 - self.uniform_share) + self.uniform_share / count

    def draw(self, randomness: Randomness, num_timesteps: int, history: LossHistory | None) -> tuple[Tensor, Tensor]:
        """Timesteps and weights, ``[samples]`` each."""
        if history is None:
            raise ValueError("the loss-second-moment sampler draws from a history, got None; TrainState holds it")
        probabilities = self.probabilities(history)
        places = randomness.uniform(()).double()
        timesteps = torch.searchsorted(probabilities.cumsum(0), places, right=True).clamp(max=num_timesteps - 1)
        return timesteps, (1 / (num_timesteps * probabilities[timesteps])).float()


TimestepSampler = Annotated[UniformTimesteps | LossSecondMoment, Field(discriminator="kind")]
