"""Text-conditional U-Nets of Stable Diffusion's shape: ``network(noisy, timesteps, prompt=..., guidance=...)``."""

import math
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from atdiff_core.config import Config
from atdiff_core.networks import NoisePredictor, check_levels, level_resolutions

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from atdiff_core.data.batch import Batch
    from atdiff_core.data.prompts import Prompts

GUIDANCE_SCALE = 1000
"""The embedding of w is sinusoidal in a thousand w (arXiv:2310.04378; diffusers' pipeline)."""
NEW_IN_A_STUDENT = "unet.time_embedding.cond_proj."
"""Weights that a student has and its teacher has not."""


class TextUNet(Config):
    """Shape of a U-Net that attends to a prompt, on the latents of an autoencoder.

    Attributes:
        kind: ``text`` always; tells it from the unconditional and class-conditional ``UNet``.
        resolution: Height and width of the latents.
        image_channels: Channels of the latents.
        channels: Width of each level; every level after the first halves the resolution.
        layers_per_block: Residual blocks a level.
        attention_at: Resolutions of the levels whose blocks attend to themselves and to the
            prompt; the block between the two halves always does.
        attention_heads: Heads of every attention, or those of each level.
        prompt_width: Numbers for each token of a prompt's embedding.
        linear_projection: Whether attention is entered by a linear layer, as from Stable
            Diffusion 2 on, and not by a convolution.
        dropout: Probability, in [0, 1).
        norm_groups: Groups of every group normalisation; each width is a multiple of it.
        guidance_width: Numbers of the embedding of the guidance scale w that a student is told;
            zero: it is told none. Base models and teachers never are.
        lora_rank: Rank of the updates that are learned instead of the weights of the attention
            layers, the residual convolutions and the resampling (arXiv:2106.09685; alpha is the rank); all
            other weights stay, but for the embedding of w. Zero: all weights learn. A network
            that starts from random weights always learns all of them.
    """

    kind: Literal["text"] = "text"
    resolution: Annotated[int, Field(ge=1)]
    image_channels: Annotated[int, Field(ge=1)] = 4
    channels: Annotated[tuple[int, ...], Field(min_length=1)] = (32, 64)
    layers_per_block: Annotated[int, Field(ge=1)] = 1
    attention_at: tuple[int, ...] = ()
    attention_heads: Annotated[int, Field(ge=1)] | tuple[int, ...] = 8
    prompt_width: Annotated[int, Field(ge=1)] = 768
    linear_projection: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm_groups: Annotated[int, Field(ge=1)] = 32
    guidance_width: Annotated[int, Field(ge=0)] = 0
    lora_rank: Annotated[int, Field(ge=0)] = 0

    learned_variance: ClassVar[bool] = False
    num_classes: ClassVar[int] = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_levels(self.resolution, self.channels, self.norm_groups, self.attention_at)
        heads = self._heads
        if len(heads) != len(self.channels):
            raise ValueError(f"attention_heads must be one number, or one a level ({len(self.channels)}), got {heads}")
        uneven = [pair for pair in zip(self.channels, heads, strict=True) if pair[1] < 1 or pair[0] % pair[1]]
        if uneven:
            raise ValueError(f"channels must be multiples of attention_heads, got {uneven[0][0]} and {uneven[0][1]}")
        if self.guidance_width % 2 or self.guidance_width == 2:
            raise ValueError(f"guidance_width must be even and at least 4, or 0 for none, got {self.guidance_width}")
        return self

    @property
    def _heads(self) -> tuple[int, ...]:
        if isinstance(self.attention_heads, int):
            return (self.attention_heads,) * len(self.channels)
        return self.attention_heads

    @property
    def level_resolutions(self) -> tuple[int, ...]:
        """Places of each level."""
        return level_resolutions(self.resolution, self.channels)

    @property
    def dimension(self) -> int:
        """Elements of one latent, D."""
        return self.image_channels * self.resolution**2

    def condition_of(self, batch: "Batch", prompts: "Prompts | None") -> dict[str, Tensor]:
        """What of a minibatch the network is told beside the latents, by the name of its argument."""
        if prompts is None:
            raise ValueError("a text-conditional network is told embeddings of prompts: give the folder of theirs")
        return {"prompt": prompts.of(batch.captions)}

    def at(self, resolution: int) -> Self:
        """The same network for another size of latents; a level keeps its attention."""
        attends = [at in self.attention_at for at in self.level_resolutions]
        levels = (resolution // 2**level for level in range(len(self.channels)))
        return self.but(
            resolution=resolution, attention_at=tuple(at for at, has in zip(levels, attends, strict=True) if has)
        )

    def fitting(self, *, embeds_guidance: bool, adapts: bool) -> Self:
        """The network of one run, without what only other runs of the same study have.

        Args:
            embeds_guidance: Whether the run's objective tells the guidance scale.
            adapts: Whether the run starts from weights, so that LoRA has something to adapt.
        """
        return self.but(
            guidance_width=self.guidance_width if embeds_guidance else 0, lora_rank=self.lora_rank if adapts else 0
        )

    def build(self, seed: int = 0) -> "TextNoisePredictor":
        """The network with freshly drawn weights, a function of the seed, all of which learn.

        The guidance scale has no influence yet: a student starts exactly at its teacher.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = TextNoisePredictor(self.build_unet())
        if self.guidance_width:
            nn.init.zeros_(network.unet.time_embedding.cond_proj.weight)
        return network

    def build_unet(self) -> "UNet2DConditionModel":
        """The network of diffusers with its default weights; its config says all but ``lora_rank``."""
        from diffusers import UNet2DConditionModel

        attends = [at in self.attention_at for at in self.level_resolutions]
        heads = self.attention_heads
        return UNet2DConditionModel(
            sample_size=self.resolution,
            in_channels=self.image_channels,
            out_channels=self.image_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            down_block_types=tuple("CrossAttnDownBlock2D" if at else "DownBlock2D" for at in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if at else "UpBlock2D" for at in reversed(attends)),
            cross_attention_dim=self.prompt_width,
            attention_head_dim=heads,  # diffusers has always meant the number of heads here.
            use_linear_projection=self.linear_projection,
            norm_num_groups=self.norm_groups,
            dropout=self.dropout,
            time_cond_proj_dim=self.guidance_width or None,
        )


class TextNoisePredictor(NoisePredictor):
    """A diffusers U-Net that is told a prompt, and perhaps a guidance scale.

    Attributes:
        prompt_width: Numbers for each token of a prompt.
        guidance_width: Of the embedding of w; zero where it has none.
    """

    def __init__(self, unet: "UNet2DConditionModel") -> None:
        super().__init__(unet)
        self.prompt_width: int = unet.config.cross_attention_dim
        self.guidance_width: int = unet.config.time_cond_proj_dim or 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares the weights that never change: a LoRA student's averages hold its base once."""
        memo |= {id(weight): weight for weight in self.parameters() if not weight.requires_grad}
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = deepcopy(self.__dict__, memo)
        return copied

    def forward(  # type: ignore[override]
        self, noisy: Tensor, timesteps: Tensor, *, prompt: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """The network's output.

        Args:
            noisy: ``[batch, image_channels, height, width]``.
            timesteps: ``[batch]``, from zero.
            prompt: ``[batch, tokens, prompt_width]``.
            guidance: w, ``[batch]``: 0 is no guidance, diffusers' ``guidance_scale`` less one. A
                network without an embedding of it must not be told any.

        Returns:
            ``[batch, image_channels, height, width]``.
        """
        self._check_image(noisy)
        if prompt.dim() != 3 or prompt.shape[0] != len(noisy) or prompt.shape[2] != self.prompt_width:
            raise ValueError(
                f"the network attends to prompts [{len(noisy)}, tokens, {self.prompt_width}], got {list(prompt.shape)}"
            )
        if (guidance is None) != (self.guidance_width == 0):
            told = "none" if guidance is None else "one"
            raise ValueError(f"the network embeds a guidance scale in {self.guidance_width} numbers, got {told}")
        embedded = None if guidance is None else guidance_embedding(guidance, self.guidance_width).to(noisy)
        predicted: Tensor = self.unet(
            noisy, timesteps, encoder_hidden_states=prompt.to(noisy), timestep_cond=embedded, return_dict=False
        )[0]
        return predicted


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """sin and cos of 1000 w at ``width / 2`` frequencies from 1 down to 1 / 10,000, ``[batch, width]``, float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=guidance.device) / (half - 1))
    angles = GUIDANCE_SCALE * guidance.float()[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


TEXT_PRESETS: dict[str, TextUNet] = {
    "text_tiny": TextUNet(
        resolution=8,
        channels=(32, 64),
        attention_at=(8, 4),
        attention_heads=4,
        prompt_width=64,
        norm_groups=8,
        guidance_width=64,
    ),
    "sd15": TextUNet(
        resolution=64,
        channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_at=(64, 32, 16),
        attention_heads=8,
        prompt_width=768,
        guidance_width=256,
    ),
}


def text_preset(name: str, *, resolution: int | None = None, prompt_width: int | None = None) -> TextUNet:
    """A named text-conditional U-Net, for latents and prompts of one's choice.

    ``text_tiny`` (1.1 M parameters) for two CPU cores; ``sd15``: the 860 M network of Stable Diffusion 1.
    """
    if name not in TEXT_PRESETS:
        raise ValueError(f"network preset must be one of {', '.join(TEXT_PRESETS)}, got {name!r}")
    named = TEXT_PRESETS[name]
    sized = named.at(named.resolution if resolution is None else resolution)
    return sized if prompt_width is None else sized.but(prompt_width=prompt_width)
