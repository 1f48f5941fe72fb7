"""What a dataset tells of the samples that are compared with it: how they become pictures, and what they show."""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor

from atdiff_core.data.index import ShardIndex
from atdiff_core.data.overview import pictures_of
from atdiff_core.data.stream import ShardSet
from atdiff_core.guidance import Conditioning
from atdiff_core.networks import NoisePredictor
from atdiff_core.prompting import untold
from atdiff_core.text_networks import TextNoisePredictor

if TYPE_CHECKING:
    from atdiff_core.autoencoders import Autoencoder
    from atdiff_core.data.prompts import Prompts


class PicturesOf:
    """Samples of a set as pictures: latents through the set's autoencoder, everything else as it is."""

    def __init__(self, index: ShardIndex, device: str) -> None:
        self._index, self._device = index, device

    @property
    def decodes(self) -> bool:
        """Whether the samples are latents."""
        return self._index.latents is not None

    @cached_property
    def _autoencoder(self) -> "Autoencoder":
        from atdiff_core.autoencoders import load_autoencoder

        latents = self._index.latents
        assert latents is not None
        found = load_autoencoder(latents.autoencoder, device=self._device)
        if found.key != latents.autoencoder_key:
            raise ValueError(f"{latents.autoencoder}: no longer the autoencoder that the latents were encoded with")
        return found

    def __call__(self, samples: Tensor) -> Tensor:
        """``[samples, 1 or 3, height, width]`` in [-1, 1]."""
        return pictures_of(samples, self._index, self._autoencoder if self.decodes else None)


class CaptionsOf:
    """Captions of a set as prompts of the samples that are compared with it."""

    def __init__(self, shards: ShardSet, prompts: "Prompts | None") -> None:
        self._shards, self._prompts = shards, prompts
        self._first: list[str] = []

    def of(self, network: NoisePredictor, indices: Sequence[int]) -> Conditioning:
        """What a network is told of the samples with these indices: the captions come in the order of the shards.

        Where there are more samples than captions, they come again.

        Raises:
            ValueError: The network attends to prompts, and there are none.
        """
        if not isinstance(network, TextNoisePredictor):
            return Conditioning()
        if self._prompts is None:
            raise ValueError("a network that attends to prompts is judged on some: give the folder of their embeddings")
        count = self._shards.num_samples
        needed = min(count, max(indices) + 1)
        if len(self._first) < needed:
            captions = islice(self._shards.captions(), needed)
            self._first = [texts[0] if texts else "" for texts in captions]
        told = self._prompts.of([self._first[index % count] for index in indices])
        return Conditioning({"prompt": told}, untold(self._prompts))
