"""Image autoencoders of diffusers: pictures to latents that are fit for training, and back."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from atdiff_core.data.contents import Latents
from atdiff_core.hub import HUB_ID, first_line, quiet_diffusers
from atdiff_core.weights import add_weights

Precision = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SUBFOLDER = "vae"
"""Where a diffusers pipeline keeps its autoencoder."""


@dataclass(frozen=True)
class Autoencoder:
    """An ``AutoencoderKL`` with its latents scaled as training wants them: ``(z - shift) * scaling``.

    Attributes:
        name: Folder or hub id.
    """

    name: str
    network: Any

    @property
    def scaling(self) -> float:
        return float(self.network.config.scaling_factor)

    @property
    def shift(self) -> float:
        return float(self.network.config.shift_factor or 0.0)

    @property
    def reduction(self) -> int:
        """Pixels of the image's side that become one place of the latent's."""
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    @property
    def dtype(self) -> Precision:
        """In which it computes."""
        return "bfloat16" if self.network.dtype == torch.bfloat16 else "float32"

    def describe(self, resolution: int, image_channels: int) -> Latents:
        """The latents of images of some size.

        Raises:
            ValueError: If it does not take such images.
        """
        if resolution % self.reduction:
            raise ValueError(f"{self.name}: resolutions must be multiples of {self.reduction}, got {resolution}")
        takes = int(self.network.config.in_channels)
        if image_channels not in (1, takes):
            raise ValueError(f"{self.name}: takes images of {takes} channels, got {image_channels}")
        return Latents(
            autoencoder=self.name,
            autoencoder_key=self.key,
            channels=int(self.network.config.latent_channels),
            side=resolution // self.reduction,
            scaling=self.scaling,
            shift=self.shift,
            dtype=self.dtype,
        )

    @property
    def key(self) -> str:
        """sha256 of the configuration and the weights in single precision, whatever file they came from."""
        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
        add_weights(digest, self.network)
        return digest.hexdigest()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Posterior means of images ``[batch, channels, height, width]`` in [-1, 1], scaled; grey images are spread."""
        takes = int(self.network.config.in_channels)
        spread = images.to(self.network.device, self.network.dtype).expand(-1, takes, -1, -1)
        mean: Tensor = self.network.encode(spread).latent_dist.mode()
        return ((mean - self.shift) * self.scaling).cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images ``[batch, channels, height, width]``, float32 clamped to [-1, 1], of scaled latents."""
        raw = latents.to(self.network.device, self.network.dtype) / self.scaling + self.shift
        images: Tensor = self.network.decode(raw).sample
        return images.float().clamp(-1, 1).cpu()


@lru_cache(maxsize=1)
def load_autoencoder(
    name: str, *, device: str = "cpu", dtype: Literal["float32", "bfloat16"] = "float32"
) -> Autoencoder:
    """An ``AutoencoderKL`` from safetensors, ready to use.

    Args:
        name: A folder that ``save_pretrained`` wrote, that of a pipeline with a ``vae`` in it, or a
            hub id. No pickled weights are read.

    Raises:
        ValueError: If there is no such autoencoder.
    """
    folder = Path(name)
    options: dict[str, Any] = {}
    if folder.is_dir() and not (folder / "config.json").is_file() and (folder / SUBFOLDER).is_dir():
        options["subfolder"] = SUBFOLDER
    if not folder.is_dir() and not HUB_ID.fullmatch(name):
        raise ValueError(f"{name}: no such folder of an autoencoder, and no id of a hub, owner/name")
    try:
        network = AutoencoderKL.from_pretrained(name, use_safetensors=True, low_cpu_mem_usage=False, **options)
    except Exception as error:  # diffusers, the hub's client and safetensors each raise their own kinds.
        raise ValueError(f"{name}: no AutoencoderKL in safetensors can be read there ({first_line(error)})") from error
    with quiet_diffusers():
        network = network.to(device, DTYPES[dtype]).eval().requires_grad_(False)
    return Autoencoder(name, network)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
