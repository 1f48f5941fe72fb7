"""What a text-conditional network is told of a minibatch, and what it is told where it is told nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atdiff_core.data.stream import ShardSet
from atdiff_core.randomness import Randomness
from atdiff_core.train_config import NO_PROMPTS, TrainConfig

if TYPE_CHECKING:
    from atdiff_core.data.prompts import Prompts


def untold(prompts: "Prompts | None") -> dict[str, Tensor]:
    """The empty prompt by the name of its argument, ``[1, tokens, width]``; nothing where there are no prompts."""
    return {} if prompts is None else {"prompt": prompts.empty[None]}


def some_untold(
    condition: Mapping[str, Tensor], nothing: Mapping[str, Tensor], share: float, randomness: Randomness
) -> dict[str, Tensor]:
    """The condition of a minibatch, with a random share of its samples told nothing.

    Args:
        condition: Each ``[batch, ...]``.
        nothing: In its place, each ``[1, ...]``.
    """
    told = dict(condition)
    if share == 0:
        return told
    dropped = randomness.for_("prompt").uniform(()) < share
    for name, value in nothing.items():
        shaped = dropped.view(-1, *[1] * (told[name].dim() - 1))
        told[name] = torch.where(shaped, value, told[name])
    return told


def check_prompts(config: TrainConfig, shards: ShardSet, prompts: "Prompts | None") -> None:
    """Refuse prompts that are not those of the config, or that the network cannot read."""
    if prompts is not None and shards.index.captions is None:
        raise ValueError(f"{shards.path}: the samples have no captions, which a network that attends to prompts needs")
    given = NO_PROMPTS if prompts is None else prompts.fingerprint
    if given != config.prompts:
        raise ValueError(f"the config was made for prompts {config.prompts[:12]}, got {given[:12]}")
    wanted = getattr(config.network, "prompt_width", None)
    if prompts is not None and prompts.width != wanted:
        raise ValueError(f"the network attends to prompts {wanted} numbers wide, the embeddings have {prompts.width}")
