"""Dirty data: a set seen through a corruption that is drawn once per sample and stays."""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.data.batch import Batch
from atdiff_core.randomness import Randomness, derived_seed

if TYPE_CHECKING:
    from atdiff_core.data.stream import ShardSet

PURPOSE = "corruption"
Fraction = Annotated[float, Field(ge=0, le=1)]


class Clean(Config):
    """The data as they are."""

    kind: Literal["clean"] = "clean"


class GaussianNoise(Config):
    """Noise on some of the samples; nobody tells the network on which.

    Attributes:
        fraction: Share of the set that is noisy: each sample is with this probability.
        sigma: Standard deviation of the noise per element, in [-1, 1] image units.
        clip: Whether noisy images are cut off at -1 and 1. The source does not say that it does.
        seed: Decides which samples are noisy, and their noise: the same in every epoch and run.

    Source:
        AT-DM (see ``Equivariant``) trains on sets of which 50 or 90 % are noisy with sigma 0.1 or
        0.2, and compares with the clean set. Whether it draws the noise anew is not known.
    """

    kind: Literal["noise"] = "noise"
    fraction: Fraction
    sigma: Annotated[float, Field(gt=0)]
    clip: bool = False
    seed: int = 0


class Outliers(Config):
    """Some of the samples replaced by samples of another set.

    Attributes:
        fraction: Share of the set that is replaced: each sample is with this probability.
        dataset: Fingerprint of the other set.
        seed: Decides which samples are replaced, and by which: the same in every epoch and run.
    """

    kind: Literal["outliers"] = "outliers"
    fraction: Fraction
    dataset: str
    seed: int = 0


Corruption = Annotated[Clean | GaussianNoise | Outliers, Field(discriminator="kind")]


def is_corrupt(corruption: GaussianNoise | Outliers, numbers: list[int]) -> Tensor:
    """Which samples of a set are corrupted, by their numbers, ``[samples]``, bool."""
    drawn = [derived_seed(corruption.seed, PURPOSE, number) / 2**63 for number in numbers]
    return torch.tensor([value < corruption.fraction for value in drawn], dtype=torch.bool)


def corrupted(batch: Batch, corruption: Corruption, outliers: "ShardSet | None") -> Tensor:
    """The images of a minibatch as a network sees them, ``[batch, channels, height, width]`` in [-1, 1].

    Args:
        outliers: The set to take outliers from; see ``check_outliers``.
    """
    if isinstance(corruption, Clean):
        return batch.images
    rows = is_corrupt(corruption, batch.numbers).nonzero().flatten()
    numbers = [batch.numbers[row] for row in rows.tolist()]
    if not numbers:
        return batch.images
    if isinstance(corruption, GaussianNoise):
        noise = Randomness(corruption.seed, numbers, f"{PURPOSE}/noise").normal(batch.images.shape[1:])
        noisy = batch.images[rows] + corruption.sigma * noise
        return batch.images.index_copy(0, rows, noisy.clamp(-1, 1) if corruption.clip else noisy)
    assert outliers is not None
    chosen = [derived_seed(corruption.seed, PURPOSE, "outlier", number) % outliers.num_samples for number in numbers]
    return batch.images.index_copy(0, rows, outliers.samples_at(chosen))


def check_outliers(corruption: Corruption, shards: "ShardSet", outliers: "ShardSet | None") -> None:
    """Refuse a corruption whose other set is missing, another one, or of another shape."""
    if not isinstance(corruption, Outliers):
        return
    if outliers is None:
        raise ValueError(f"the corruption takes outliers from dataset {corruption.dataset[:12]}; give that set too")
    if outliers.fingerprint != corruption.dataset:
        raise ValueError(
            f"the corruption takes outliers from dataset {corruption.dataset[:12]}, got {outliers.fingerprint[:12]}"
        )
    theirs, ours = ((each.image_channels, each.resolution, each.index.kind) for each in (outliers, shards))
    if theirs != ours:
        raise ValueError(f"outliers must have the shape of the data {ours} (channels, side, kind), got {theirs}")
