"""CLIP models of transformers, by which pictures are compared with sentences."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atdiff_core.hub import HUB_ID, first_line, quiet_transformers
from atdiff_core.weights import add_weights

CLIP = "clip"
"""Where the folder of ``atdiff pretrain clip`` keeps both towers."""


def image_features(network: Any, pixels: Tensor) -> Tensor:
    """Unit vectors ``[images, width]`` of prepared pixels."""
    return F.normalize(_tensor(network.get_image_features(pixels.to(network.device))), dim=-1)


def text_features(network: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors ``[sentences, width]`` of tokens and their mask, both ``[sentences, tokens]``."""
    device = network.device
    return F.normalize(_tensor(network.get_text_features(ids.to(device), mask.to(device))), dim=-1)


def _tensor(features: Any) -> Tensor:
    """Since version 5, transformers wraps features into a record of outputs."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return found


@dataclass(frozen=True)
class Clip:
    """A ``CLIPModel`` and the processor that goes with it.

    Attributes:
        name: Folder or hub id.
    """

    name: str
    network: Any
    processor: Any

    @cached_property
    def key(self) -> str:
        """sha256 of the weights in single precision."""
        digest = hashlib.sha256()
        add_weights(digest, self.network)
        return digest.hexdigest()


def load_clip(name: str, *, device: str = "cpu") -> Clip:
    """A CLIP from safetensors, ready to use.

    Args:
        name: A folder that ``save_pretrained`` wrote, one that ``atdiff pretrain clip`` wrote, or
            a hub id.

    Raises:
        ValueError: If there is none.
    """
    from transformers import CLIPModel, CLIPProcessor

    folder = Path(name)
    inner = CLIP if (folder / CLIP).is_dir() else ""
    if not folder.is_dir() and not HUB_ID.fullmatch(name):
        raise ValueError(f"{name}: no such folder of a CLIP, and no id of a hub, owner/name")
    try:
        with quiet_transformers():
            network = CLIPModel.from_pretrained(name, subfolder=inner, use_safetensors=True)
            processor = CLIPProcessor.from_pretrained(name, subfolder=inner)
    except Exception as error:  # transformers, the hub's client and safetensors each raise their own kinds.
        raise ValueError(
            f"{name}: no CLIPModel in safetensors with its processor can be read there ({first_line(error)})"
        ) from error
    return Clip(name, network.to(device=device, dtype=torch.float32).eval().requires_grad_(False), processor)
