"""The noise of a latent consistency model: a coarse grid of timesteps, and a network that means a trajectory's end."""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.noise import NoiseSchedule


class LatentConsistencyNoise(Config):
    """A noise schedule, the coarse grid of timesteps on it, and the boundary form of the network.

    The network predicts what its schedule says; what it means is c_skip x_t + c_out x_0^, where
    x_0^ is the image in its prediction (Luo et al., arXiv:2310.04378, Section 4.1).

    Attributes:
        schedule: As the teacher's.
        num_steps: N, the timesteps of the grid: T / N - 1, 2 T / N - 1, ..., T - 1.
        timestep_scaling: s, by which the timestep is multiplied inside c_skip and c_out. With 10
            the boundary x_0 = x is met at t = 0 only, and c_skip is negligible elsewhere.
        sigma_data: Standard deviation of the data that the scalings assume, that of diffusers' scheduler.
    """

    kind: Literal["latent_consistency"] = "latent_consistency"
    schedule: NoiseSchedule = NoiseSchedule(kind="scaled_linear")
    num_steps: Annotated[int, Field(ge=1)] = 50
    timestep_scaling: Annotated[float, Field(gt=0)] = 10.0

    sigma_data: ClassVar[float] = 0.5

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_steps > self.schedule.num_timesteps:
            raise ValueError(
                f"num_steps must be at most the {self.schedule.num_timesteps} timesteps of the schedule, "
                f"got {self.num_steps}"
            )
        return self

    @property
    def grid(self) -> Tensor:
        """The timesteps of the grid, ascending, ``[num_steps]``, int64."""
        return torch.arange(1, self.num_steps + 1) * (self.schedule.num_timesteps // self.num_steps) - 1

    def c_skip(self, timesteps: Tensor) -> Tensor:
        """Share of x_t in the result, ``[batch, 1, 1, 1]``; one at t = 0."""
        scaled = self._scaled(timesteps)
        share: Tensor = self.sigma_data**2 / (scaled.square() + self.sigma_data**2)
        return share

    def c_out(self, timesteps: Tensor) -> Tensor:
        """Share of the predicted x_0 in the result, ``[batch, 1, 1, 1]``; zero at t = 0."""
        scaled = self._scaled(timesteps)
        share: Tensor = scaled / (scaled.square() + self.sigma_data**2).sqrt()
        return share

    def end(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """f(x_t, t): the end of the trajectory that the network's output at ``noisy`` means."""
        image = self.schedule.image_in(output, noisy, timesteps)
        return self.c_skip(timesteps) * noisy + self.c_out(timesteps) * image

    def _scaled(self, timesteps: Tensor) -> Tensor:
        return (self.timestep_scaling * timesteps).float().view(-1, 1, 1, 1)
