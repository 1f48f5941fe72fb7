"""Looking at a set: some of its samples, and figures about them."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atdiff_core.data.addresses import Address, scheme_of
from atdiff_core.data.batch import scaled
from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import ShardIndex
from atdiff_core.data.order import Places
from atdiff_core.data.samples import SampleReader, Samples
from atdiff_core.data.shard_files import ShardFiles, files_at

if TYPE_CHECKING:  # diffusers takes seconds to import, and pictures do not need it.
    from atdiff_core.autoencoders import Autoencoder

MAX_LABELS = 50_000
"""Labels that are counted; of a larger set, those of as many evenly spaced samples."""
LATENT_SPREAD = 3.0
"""Latents within so many are drawn from black to white: training wants their deviation near 1."""


@dataclass(frozen=True)
class Overview:
    """Evenly spaced samples of a set, and what they tell.

    Attributes:
        shown: The samples.
        content: ``[samples, channels, height, width]``: pictures in [-1, 1], or latents.
        labels: How often each of the labels that were counted comes; empty without classes.
    """

    index: ShardIndex
    shown: Samples
    content: Tensor
    labels: Counter[int]

    @property
    def channel_means(self) -> list[float]:
        """Of the samples shown."""
        return [float(value) for value in self.content.mean(dim=(0, 2, 3))]

    @property
    def channel_deviations(self) -> list[float]:
        """Standard deviations of the samples shown."""
        return [float(value) for value in self.content.std(dim=(0, 2, 3))]


def overview(address: Address, count: int) -> Overview:
    """Read ``count`` evenly spaced samples of a set, or all if it has fewer.

    Of a remote set, only their labels are counted: counting all would fetch it whole.

    Raises:
        ValueError: If ``count`` is below 1, or the set or one of the samples is damaged.
    """
    if count < 1:
        raise ValueError(f"the number of samples to show must be >= 1, got {count}")
    files = files_at(address)
    shown = SampleReader(files, 0).at(_evenly(files.index, count))
    labels = _labels(files, MAX_LABELS if scheme_of(address) is None else count)
    return Overview(files.index, shown, scaled(shown.content), labels)


def pictures_of(content: Tensor, index: ShardIndex, autoencoder: "Autoencoder | None") -> Tensor:
    """``[samples, 1 or 3, height, width]`` in [-1, 1]: pictures as they are, latents decoded.

    Without an autoencoder, the first three channels of the latents stand for colours.
    """
    if index.latents is None:
        return content
    if autoencoder is None:
        return (content[:, : 3 if content.shape[1] >= 3 else 1] / LATENT_SPREAD).clamp(-1, 1)
    decoded = torch.cat([autoencoder.decode(part) for part in content.split(8)])
    return decoded.mean(dim=1, keepdim=True) if index.image_channels == 1 else decoded


def _evenly(index: ShardIndex, count: int) -> Places:
    """Where evenly spaced samples lie."""
    total = index.num_samples
    count = min(count, total)
    numbers = torch.arange(count) * total // count
    counts = torch.tensor([shard.samples for shard in index.shards])
    ends = counts.cumsum(0)
    shards = torch.searchsorted(ends, numbers, right=True)
    return Places(shards, numbers - (ends - counts)[shards])


def _labels(files: ShardFiles, count: int) -> Counter[int]:
    if not files.index.classes:
        return Counter()
    places, decoder = _evenly(files.index, count), SampleDecoder(files.index)
    labels: Counter[int] = Counter()
    for shard, row in zip(places.shards.tolist(), places.rows.tolist(), strict=True):
        place = files.table(shard).place(row, "cls")
        content = None if place is None else files.read(shard, place.offset, place.offset + place.size)
        labels[decoder.label(content)] += 1
    return labels
