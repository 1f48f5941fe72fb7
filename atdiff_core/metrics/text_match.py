"""How well images fit their captions: the CLIP score, by torchmetrics."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.multimodal.clip_score import CLIPScore

from atdiff_core.clip import Clip, image_features, text_features
from atdiff_core.metrics.features import as_uint8


class _Adapter(nn.Module):
    """Stands where torchmetrics expects a CLIP whose features are tensors, as they were before transformers 5."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.config = network.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return image_features(self.network, pixels)

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return text_features(self.network, ids, mask)


class TextMatch:
    """Agreement of images with their captions, as one CLIP sees it, gathered batch by batch."""

    def __init__(self, clip: Clip) -> None:
        self._device = clip.network.device
        self._metric = CLIPScore(model_name_or_path=lambda: (_Adapter(clip.network), clip.processor)).to(self._device)

    @torch.inference_mode()
    def add(self, images: Tensor, captions: Sequence[str]) -> None:
        """Images ``[images, 1 or 3, height, width]`` in [-1, 1], each with its caption."""
        pixels = as_uint8(images).expand(-1, 3, -1, -1).to(self._device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # That a long caption is cut.
            self._metric.update(pixels, list(captions))

    @property
    def clip_score(self) -> float:
        """Mean of 100 times the cosine between the features of an image and those of its caption.

        0 where that is negative (Hessel et al., arXiv:2104.08718, without their factor of 2.5). It
        depends on the CLIP as much as on the images: compare figures of one CLIP only.
        """
        return float(self._metric.compute())
