"""The U-Net of ADM and improved DDPM in plain torch, with the parameter names of the public files.

An oracle for ``atdiff_core.adm``: its networks share no code with diffusers or with the mapping.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from atdiff_core.adm import AttentionOrder
from atdiff_core.networks import UNet


@dataclass(frozen=True)
class Shape:
    """What the public code's flags say.

    Attributes:
        factors: Width of each level, in multiples of ``width``.
        attention_factors: Downsampling factors that attend; the middle always does.
    """

    width: int
    factors: tuple[int, ...]
    blocks: int
    attention_factors: tuple[int, ...]
    head_width: int
    groups: int
    image_channels: int = 3
    learned_variance: bool = False
    num_classes: int = 0
    scale_shift: bool = False
    residual_resampling: bool = False
    legacy_order: bool = False


class Residual(nn.Module):
    def __init__(self, shape: Shape, inner: int, outer: int, resample: str = "") -> None:
        super().__init__()
        self.scale_shift, self.resample = shape.scale_shift, resample
        time = 4 * shape.width
        self.in_layers = nn.Sequential(
            nn.GroupNorm(shape.groups, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outer * (2 if shape.scale_shift else 1)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(shape.groups, outer), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        hidden = silu(self.in_layers[0](image))
        if self.resample == "down":
            hidden, image = avg_pool2d(hidden, 2), avg_pool2d(image, 2)
        if self.resample == "up":
            hidden, image = (interpolate(each, scale_factor=2, mode="nearest") for each in (hidden, image))
        hidden, embedded = self.in_layers[2](hidden), self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        else:
            hidden = self.out_layers[0](hidden + embedded)
        return self.skip_connection(image) + self.out_layers[3](self.out_layers[2](silu(hidden)))


class Attention(nn.Module):
    def __init__(self, shape: Shape, channels: int) -> None:
        super().__init__()
        self.heads, self.legacy_order = channels // shape.head_width, shape.legacy_order
        self.norm = nn.GroupNorm(shape.groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        flat = image.flatten(2)
        joint = self.qkv(self.norm(flat))
        if self.legacy_order:
            query, key, value = joint.unflatten(1, (self.heads, 3, -1)).unbind(dim=2)
        else:
            query, key, value = joint.unflatten(1, (3, self.heads, -1)).unbind(dim=1)
        similarity = torch.einsum("bhcq,bhck->bhqk", query, key) / math.sqrt(query.shape[2])
        mixed = torch.einsum("bhqk,bhck->bhcq", similarity.softmax(dim=-1), value)
        return (flat + self.proj_out(mixed.flatten(1, 2))).view_as(image)


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        return self.op(image)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        return self.conv(interpolate(image, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        return super().forward(image)


class ReferenceADM(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.width = shape.width
        time = 4 * shape.width
        self.time_embed = nn.Sequential(nn.Linear(shape.width, time), nn.SiLU(), nn.Linear(time, time))
        if shape.num_classes:
            self.label_emb = nn.Embedding(shape.num_classes, time)
        channels = shape.width * shape.factors[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(shape.image_channels, channels, 3, padding=1)])])
        skips = [channels]
        for level, factor in enumerate(shape.factors):
            attends = 2**level in shape.attention_factors
            for _ in range(shape.blocks):
                block = [Residual(shape, channels, channels := shape.width * factor)]
                self.input_blocks.append(nn.ModuleList(block + [Attention(shape, channels)] * attends))
                skips.append(channels)
            if level < len(shape.factors) - 1:
                residual = Residual(shape, channels, channels, "down")
                self.input_blocks.append(nn.ModuleList([residual if shape.residual_resampling else Down(channels)]))
                skips.append(channels)
        middle = [Residual(shape, channels, channels), Attention(shape, channels), Residual(shape, channels, channels)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(shape.factors))):
            attends = 2**level in shape.attention_factors
            for number in range(shape.blocks + 1):
                block = [Residual(shape, channels + skips.pop(), channels := shape.width * factor)]
                block += [Attention(shape, channels)] * attends
                if level and number == shape.blocks:
                    residual = Residual(shape, channels, channels, "up")
                    block.append(residual if shape.residual_resampling else Up(channels))
                self.output_blocks.append(nn.ModuleList(block))
        output_channels = shape.image_channels * (2 if shape.learned_variance else 1)
        last = nn.Conv2d(channels, output_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(shape.groups, channels), nn.SiLU(), last)

    def forward(self, image: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(self.width // 2) / (self.width // 2))
        angles = timesteps[:, None].float() * frequencies
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(image.dtype))
        if labels is not None:
            time = time + self.label_emb(labels)
        kept = []
        for block in self.input_blocks:
            for layer in block:
                image = layer(image, time)
            kept.append(image)
        for layer in self.middle_block:
            image = layer(image, time)
        for block in self.output_blocks:
            image = torch.cat([image, kept.pop()], dim=1)
            for layer in block:
                image = layer(image, time)
        return self.out(image)


def shape_of(unet: UNet, order: AttentionOrder) -> Shape:
    """A config in the words of the public code."""
    return Shape(
        width=unet.channels[0],
        factors=tuple(width // unet.channels[0] for width in unet.channels),
        blocks=unet.layers_per_block,
        attention_factors=tuple(unet.resolution // at for at in unet.attention_at),
        head_width=unet.head_width,
        groups=unet.norm_groups,
        image_channels=unet.image_channels,
        learned_variance=unet.learned_variance,
        num_classes=unet.num_classes,
        scale_shift=unet.scale_shift_norm,
        residual_resampling=unet.residual_resampling,
        legacy_order=order == "legacy",
    )


def reference(unet: UNet, order: AttentionOrder = "new") -> ReferenceADM:
    """The plain-torch network of a config, every weight random: none is zero or one."""
    network = ReferenceADM(shape_of(unet, order)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(unet: UNet) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(4, unet.image_channels, unet.resolution, unet.resolution, generator=generator)
    given = [noisy, torch.tensor([0, 1, 357, 999])]
    return [*given, torch.tensor([0, 4, 2, 4])] if unet.num_classes else given
