"""A minibatch, or one rank's part of it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """Which minibatches, and whose part of them.

    Attributes:
        batch_size: Samples of a minibatch, over all ranks.
    """

    seed: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be one of world_size ranks, got rank {self.rank} of {self.world_size}")
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size must be a multiple of world_size, got {self.batch_size} and {self.world_size}"
            )

    def positions(self, number: int) -> range:
        """Positions in the infinite stream of the rank's part of a minibatch."""
        first = number * self.batch_size
        return range(first + self.rank, first + self.batch_size, self.world_size)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a minibatch.

    Attributes:
        content: As stored: pictures ``[batch, height, width, channels]``, uint8, or latents
            ``[batch, channels, height, width]``, float32.
        labels: ``[batch]``, int64.
        captions: One of each sample's captions, another in every epoch; empty where it has none.
        positions: Where in the infinite stream each sample stands.
        numbers: Of each sample in its set.
        keys: Name of each sample in its shard.
    """

    content: Tensor
    labels: Tensor
    captions: list[str]
    positions: list[int]
    numbers: list[int]
    keys: list[str]

    @cached_property
    def images(self) -> Tensor:
        """What a network sees: ``[batch, channels, height, width]``, float32, pictures in [-1, 1]."""
        return scaled(self.content)


def scaled(content: Tensor) -> Tensor:
    """Bytes ``[..., height, width, channels]`` to channels first in [-1, 1], both ends exact; latents as they are."""
    if content.dtype != torch.uint8:
        return content
    channels_first = content.permute(0, 3, 1, 2)
    return channels_first.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
