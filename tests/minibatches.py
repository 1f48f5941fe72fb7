"""What tests of the stream ask of minibatches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from atdiff_core.data.batch import Batch


def joined(parts: list[Batch]) -> Batch:
    """The global minibatch of the ranks' parts."""

    def dealt(rows: Iterable[Sequence[Any]]) -> list[Any]:
        return [value for row in zip(*rows, strict=True) for value in row]

    return Batch(
        torch.stack([part.content for part in parts], dim=1).flatten(0, 1),
        torch.stack([part.labels for part in parts], dim=1).flatten(),
        dealt(part.captions for part in parts),
        dealt(part.positions for part in parts),
        dealt(part.numbers for part in parts),
        dealt(part.keys for part in parts),
    )


def same(one: Batch, other: Batch) -> bool:
    """Whether they are equal to the last bit."""
    tensors = torch.equal(one.content, other.content) and torch.equal(one.labels, other.labels)
    lists = (one.positions, one.numbers, one.keys, one.captions) == (
        other.positions,
        other.numbers,
        other.keys,
        other.captions,
    )
    return tensors and lists
