"""U-Nets of diffusers, described by a config and called as ``network(noisy, timesteps, labels)``."""

from typing import TYPE_CHECKING, Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from atdiff_core.config import Config

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from atdiff_core.data.batch import Batch
    from atdiff_core.data.prompts import Prompts


class UNet(Config):
    """Shape of a noise-predicting U-Net.

    Attributes:
        resolution: Height and width of the images, in pixels.
        image_channels: 1 for grey, 3 for colour.
        channels: Width of each level; every level after the first halves the resolution.
        layers_per_block: Residual blocks a level.
        attention_at: Resolutions (pixels) of the levels that have self-attention.
        middle_attention: Whether the block between the two halves has self-attention.
        dropout: Probability, in [0, 1).
        norm_groups: Groups of every group normalisation; each width is a multiple of it.
        head_width: Channels an attention head.
        residual_resampling: Resolutions change inside residual blocks, not in a convolution.
        scale_shift_norm: The time scales and shifts the second normalisation, not only shifts its input.
        learned_variance: The output has twice the channels: the noise, then v in [-1, 1], which
            interpolates between the smallest and the largest log variance (arXiv:2102.09672, Eq. 15).
        num_classes: Classes to condition on. Zero: none.
        zero_outputs: The last layer of every residual and attention block, and of the network,
            starts at zero: a fresh network predicts no noise at all.

    Source:
        The last six are the flags of ADM (Dhariwal & Nichol, arXiv:2105.05233).
    """

    resolution: Annotated[int, Field(ge=2)]
    image_channels: Annotated[int, Field(ge=1)] = 1
    channels: tuple[int, ...] = (16, 32)
    layers_per_block: Annotated[int, Field(ge=1)] = 1
    attention_at: tuple[int, ...] = ()
    middle_attention: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm_groups: Annotated[int, Field(ge=1)] = 8
    head_width: Annotated[int, Field(ge=1)] = 8
    residual_resampling: bool = False
    scale_shift_norm: bool = False
    learned_variance: bool = False
    num_classes: Annotated[int, Field(ge=0)] = 0
    zero_outputs: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.channels:
            raise ValueError("channels must name at least one level, got ()")
        check_levels(self.resolution, self.channels, self.norm_groups, self.attention_at)
        odd = [width for width in self._attending_widths if width % self.head_width]
        if odd:
            raise ValueError(
                f"channels with attention must be multiples of {self.head_width} (head_width), got {odd[0]}"
            )
        return self

    @property
    def level_resolutions(self) -> tuple[int, ...]:
        """Pixels of each level."""
        return level_resolutions(self.resolution, self.channels)

    @property
    def _attending_widths(self) -> list[int]:
        levels = zip(self.channels, self.level_resolutions, strict=True)
        attending = [width for width, at in levels if at in self.attention_at]
        return attending + ([self.channels[-1]] if self.middle_attention else [])

    @property
    def dimension(self) -> int:
        """Elements of one image, D."""
        return self.image_channels * self.resolution**2

    def condition_of(self, batch: "Batch", prompts: "Prompts | None") -> dict[str, Tensor]:
        """What of a minibatch the network is told beside the images, by the name of its argument."""
        return {"labels": batch.labels} if self.num_classes else {}

    def fitting(self, *, embeds_guidance: bool, adapts: bool) -> Self:
        """The network of one run; see ``TextUNet``. This one is the same in all of them."""
        return self

    def at(self, resolution: int) -> Self:
        """The same network for another image size: attention keeps its pixel sizes, where a level has them."""
        levels = [resolution // 2**level for level in range(len(self.channels))]
        return self.but(resolution=resolution, attention_at=tuple(at for at in self.attention_at if at in levels))

    def build(self, seed: int = 0) -> "NoisePredictor":
        """The network with freshly drawn weights, a function of the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = NoisePredictor(self.build_unet())
        if self.zero_outputs:
            _zero_last_layers(network.unet)
        return network

    def build_unet(self) -> "UNet2DModel":
        """The network of diffusers with its default weights; its config says all but ``zero_outputs``."""
        from diffusers import UNet2DModel  # Takes seconds: not whoever describes a network has to wait for it.

        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if not self.residual_resampling:
            plain = ("DownBlock2D", "UpBlock2D")
        attends = [at in self.attention_at for at in self.level_resolutions]
        resampling = "resnet" if self.residual_resampling else "conv"
        return UNet2DModel(
            sample_size=self.resolution,
            in_channels=self.image_channels,
            out_channels=self.image_channels * (2 if self.learned_variance else 1),
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if at else plain[0] for at in attends),
            up_block_types=tuple("AttnUpBlock2D" if at else plain[1] for at in reversed(attends)),
            add_attention=self.middle_attention,
            # diffusers leaves the middle attention without its normalisation next to scale-shift, ADM does not.
            attn_norm_num_groups=self.norm_groups if self.scale_shift_norm else None,
            attention_head_dim=self.head_width,
            norm_num_groups=self.norm_groups,
            resnet_time_scale_shift="scale_shift" if self.scale_shift_norm else "default",
            downsample_type=resampling,
            upsample_type=resampling,
            num_class_embeds=self.num_classes or None,
            dropout=self.dropout,
        )


def level_resolutions(resolution: int, channels: tuple[int, ...]) -> tuple[int, ...]:
    """Places along a side of each level."""
    return tuple(resolution // 2**level for level in range(len(channels)))


def check_levels(resolution: int, channels: tuple[int, ...], norm_groups: int, attention_at: tuple[int, ...]) -> None:
    """Refuse levels that a U-Net cannot have: each halves the resolution, is normalised in groups, and may attend."""
    halvings = 2 ** (len(channels) - 1)
    if resolution % halvings:
        raise ValueError(f"resolution must be divisible by {halvings} for {len(channels)} levels, got {resolution}")
    odd = [width for width in channels if width <= 0 or width % norm_groups]
    if odd:
        raise ValueError(f"channels must be positive multiples of {norm_groups} (norm_groups), got {odd[0]}")
    levels = level_resolutions(resolution, channels)
    strangers = [at for at in attention_at if at not in levels]
    if strangers:
        known = ", ".join(map(str, levels))
        raise ValueError(f"attention_at must name resolutions of levels ({known}), got {strangers[0]}")


def _zero_last_layers(unet: "UNet2DModel") -> None:
    for name, parameter in unet.named_parameters():
        if name.startswith("conv_out.") or ".conv2." in name or ".to_out.0." in name:
            nn.init.zeros_(parameter)


class NoisePredictor(nn.Module):
    """A diffusers U-Net that takes and returns plain tensors.

    Attributes:
        image_channels: Of the images, and of the predicted noise.
        num_classes: Classes the network is conditioned on; zero for none.
        learned_variance: Whether v follows the noise in the output.
    """

    def __init__(self, unet: "UNet2DModel") -> None:
        super().__init__()
        self.unet = unet
        self.image_channels: int = unet.config.in_channels
        self.num_classes: int = unet.config.num_class_embeds or 0
        self.learned_variance: bool = unet.config.out_channels == 2 * unet.config.in_channels
        self._halvings = 2 ** (len(unet.config.block_out_channels) - 1)

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predicted noise, and the variance's v behind it where that is learned.

        Args:
            noisy: ``[batch, image_channels, height, width]``.
            timesteps: ``[batch]``, from zero.
            labels: ``[batch]``, int64, below ``num_classes``; given exactly if there are classes.

        Returns:
            ``[batch, image_channels, height, width]``, or twice the channels.
        """
        self._check_image(noisy)
        self._check_labels(labels)
        predicted: Tensor = self.unet(noisy, timesteps, class_labels=labels, return_dict=False)[0]
        return predicted

    def _check_image(self, noisy: Tensor) -> None:
        if noisy.dim() != 4 or noisy.shape[1] != self.image_channels:
            raise ValueError(f"the network takes images of {self.image_channels} channels, got {list(noisy.shape)}")
        if noisy.shape[2] % self._halvings or noisy.shape[3] % self._halvings:
            raise ValueError(f"height and width must be divisible by {self._halvings}, got {list(noisy.shape[2:])}")

    def _check_labels(self, labels: Tensor | None) -> None:
        if self.num_classes and labels is None:
            raise ValueError(f"the network is conditioned on {self.num_classes} classes: labels are needed, got none")
        if labels is None:
            return
        if not self.num_classes:
            raise ValueError("the network is unconditional: labels must not be given")
        if labels.device.type == "cpu":  # On an accelerator looking would stall every step.
            check_labels(labels, self.num_classes)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are no class: they must be 0 to ``num_classes - 1``."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"a class label must be in 0 to {num_classes - 1}, got {int(outside[0])}")


def predicted_noise(output: Tensor, image_channels: int) -> Tensor:
    """The noise in a network's output, without the channels of a learned variance."""
    return output[:, :image_channels]


PRESETS: dict[str, UNet] = {
    "digits": UNet(resolution=16, channels=(16, 32)),
    "small": UNet(resolution=32, channels=(32, 64, 64), attention_at=(8,), middle_attention=True),
    "ddpm_cifar10": UNet(
        resolution=32,
        image_channels=3,
        channels=(128, 256, 256, 256),
        layers_per_block=2,
        attention_at=(16,),
        middle_attention=True,
        dropout=0.1,
    ),
    "adm_cifar10": UNet(
        resolution=32,
        image_channels=3,
        channels=(128, 256, 256, 256),
        layers_per_block=3,
        attention_at=(16, 8),
        middle_attention=True,
        dropout=0.3,
        norm_groups=32,
        head_width=32,
        residual_resampling=True,
        scale_shift_norm=True,
        learned_variance=True,
        zero_outputs=True,
    ),
}
PRESETS["adm_imagenet64"] = PRESETS["adm_cifar10"].but(
    resolution=64,
    channels=(192, 384, 576, 768),
    attention_at=(32, 16, 8),
    dropout=0.1,
    head_width=64,
    num_classes=1000,
)
PRESETS["adm_small"] = PRESETS["adm_cifar10"].but(
    resolution=16,
    image_channels=1,
    channels=(32, 64),
    layers_per_block=1,
    attention_at=(8,),
    dropout=0.0,
    norm_groups=8,
    head_width=16,
)
PRESETS["iddpm_cifar10"] = PRESETS["adm_cifar10"].but(head_width=64, residual_resampling=False)


def preset(name: str, *, resolution: int | None = None, image_channels: int | None = None) -> UNet:
    """A named U-Net, at a resolution and for images of one's choice.

    For two CPU cores: ``digits`` (0.16 M parameters), ``small`` (1.1 M) and ``adm_small``
    (0.8 M, the flags of ADM). ``ddpm_cifar10``: the 35.7 M network of Ho et al.
    (arXiv:2006.11239). ``adm_cifar10``: the 57.1 M network that AT_Diff fine-tunes
    (arXiv:2502.17099). ``adm_imagenet64``: the class-conditional 296 M network of ADM
    (arXiv:2105.05233). ``iddpm_cifar10``: the 52.5 M network of improved DDPM (arXiv:2102.09672).
    """
    if name not in PRESETS:
        raise ValueError(f"network preset must be one of {', '.join(PRESETS)}, got {name!r}")
    named = PRESETS[name]
    channels = named.image_channels if image_channels is None else image_channels
    return named.at(named.resolution if resolution is None else resolution).but(image_channels=channels)
