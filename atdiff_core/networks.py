"""U-Nets of diffusers, described by a config and called as ``network(noisy, timesteps)``."""

from typing import Annotated, Self

import torch
from diffusers import UNet2DModel
from pydantic import Field, model_validator
from torch import Tensor, nn

from atdiff_core.config import Config

NORM_GROUPS = 8


class UNet(Config):
    """Shape of a noise-predicting U-Net.

    Attributes:
        resolution: Height and width of the images, in pixels.
        image_channels: 1 for grey, 3 for colour.
        channels: Width of each level; every level after the first halves the resolution.
        layers_per_block: Residual blocks a level.
        attention_at: Resolutions (pixels) at which self-attention is added.
        dropout: Probability, in [0, 1).
    """

    resolution: Annotated[int, Field(ge=2)]
    image_channels: Annotated[int, Field(ge=1)] = 1
    channels: tuple[int, ...] = (16, 32)
    layers_per_block: Annotated[int, Field(ge=1)] = 1
    attention_at: tuple[int, ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.channels:
            raise ValueError("channels must name at least one level, got ()")
        halvings = 2 ** (len(self.channels) - 1)
        if self.resolution % halvings:
            raise ValueError(
                f"resolution must be divisible by {halvings} for {len(self.channels)} levels, got {self.resolution}"
            )
        odd = [width for width in self.channels if width <= 0 or width % NORM_GROUPS]
        if odd:
            raise ValueError(f"channels must be positive multiples of {NORM_GROUPS}, got {odd[0]}")
        return self

    @property
    def dimension(self) -> int:
        """Elements of one image, D."""
        return self.image_channels * self.resolution**2

    def build(self, seed: int = 0) -> "NoisePredictor":
        """The network with freshly drawn weights, a function of the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return NoisePredictor(self.build_unet())

    def build_unet(self) -> UNet2DModel:
        attends = [self.resolution // 2**level in self.attention_at for level in range(len(self.channels))]
        return UNet2DModel(
            sample_size=self.resolution,
            in_channels=self.image_channels,
            out_channels=self.image_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if at else "DownBlock2D" for at in attends),
            up_block_types=tuple("AttnUpBlock2D" if at else "UpBlock2D" for at in reversed(attends)),
            add_attention=bool(self.attention_at),
            norm_num_groups=NORM_GROUPS,
            dropout=self.dropout,
        )


class NoisePredictor(nn.Module):
    """A diffusers U-Net that takes and returns plain tensors."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Predicted noise, ``[batch, channels, height, width]``."""
        predicted: Tensor = self.unet(noisy, timesteps, return_dict=False)[0]
        return predicted


PRESETS: dict[str, UNet] = {
    "digits": UNet(resolution=16, channels=(16, 32)),
    "small": UNet(resolution=32, channels=(32, 64, 64), layers_per_block=1, attention_at=(8,)),
    "ddpm_cifar10": UNet(
        resolution=32,
        image_channels=3,
        channels=(128, 256, 256, 256),
        layers_per_block=2,
        attention_at=(16,),
        dropout=0.1,
    ),
}


def preset(name: str, *, resolution: int, image_channels: int) -> UNet:
    """A named U-Net at a resolution of one's choice.

    ``digits``: 0.16 M parameters, for two CPU cores. ``small``: 0.9 M. ``ddpm_cifar10``: the
    35.7 M network of Ho et al. (arXiv:2006.11239).
    """
    if name not in PRESETS:
        raise ValueError(f"network preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name].but(resolution=resolution, image_channels=image_channels)
