"""A small ``AutoencoderKL``, trained on the pixels of a set."""

from pathlib import Path
from typing import Annotated, Any, Self

import torch
from diffusers import AutoencoderKL
from pydantic import Field, model_validator
from torch import Tensor, nn

from atdiff_core.config import Config
from atdiff_core.data.batch import Batch
from atdiff_core.data.stream import ShardSet
from atdiff_core.pretraining.augmentation import mirrored
from atdiff_core.pretraining.loop import Schedule
from atdiff_core.randomness import Randomness

SCALED_BY = 2048
"""Images whose latents decide the scale."""


class AutoencoderShape(Config):
    """A convolutional autoencoder whose every level but the last halves the side.

    Attributes:
        resolution: Side of the images, in pixels.
        channels: Of the levels; n of them reduce the side by 2 ** (n - 1).
        latent_channels: Of a latent.
    """

    resolution: Annotated[int, Field(ge=1)]
    image_channels: Annotated[int, Field(ge=1)] = 3
    channels: Annotated[tuple[int, ...], Field(min_length=1)] = (16, 32, 32)
    latent_channels: Annotated[int, Field(ge=1)] = 4
    groups: Annotated[int, Field(ge=1)] = 8

    @model_validator(mode="after")
    def _fits(self) -> Self:
        reduction = 2 ** (len(self.channels) - 1)
        if self.resolution % reduction:
            raise ValueError(f"the resolution must be a multiple of {reduction}, got {self.resolution}")
        if any(width % self.groups for width in self.channels):
            raise ValueError(f"channels must be multiples of groups = {self.groups}, got {self.channels}")
        return self

    def build(self, *, seed: int) -> Any:
        """The network with weights drawn by the seed; the same seed gives the same weights."""
        levels = len(self.channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoencoderKL(
                in_channels=self.image_channels,
                out_channels=self.image_channels,
                sample_size=self.resolution,
                block_out_channels=self.channels,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                layers_per_block=1,
                latent_channels=self.latent_channels,
                norm_num_groups=self.groups,
                mid_block_add_attention=False,
                scaling_factor=1.0,
                shift_factor=None,  # StableDiffusionPipeline ignores a shift.
            )


class AutoencoderRun(Config):
    """Everything that decides the weights an autoencoder ends with.

    Attributes:
        posterior_weight: Weight of the posterior's divergence from the standard normal, per
            element of a latent, beside the mean absolute error of a pixel in [-1, 1].
    """

    shape: AutoencoderShape
    posterior_weight: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Schedule

    def losses(self, network: nn.Module, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """Mean absolute error of reconstructions from latents that are drawn, and the divergence."""
        module: Any = network
        images = mirrored(batch.images, randomness).to(module.device)
        posterior = module.encode(images).latent_dist
        noise = randomness.for_("posterior").normal(tuple(posterior.mean.shape[1:])).to(images)
        decoded = module.decode(posterior.mean + posterior.std * noise).sample
        error = (decoded - images).abs().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": error + self.posterior_weight * divergence, "absolute_error": error, "divergence": divergence}


@torch.inference_mode()
def save_autoencoder(network: Any, shards: ShardSet, folder: Path) -> dict[str, float]:
    """Write the folder that diffusers opens, with the scale at which latents have deviation one.

    Returns:
        The scale, and the mean absolute error of reconstructions of the images it was measured on.
    """
    network.eval()
    latents, errors = [], []
    for images in shards.images(limit=SCALED_BY, batch_size=64):
        mean = network.encode(images.to(network.device)).latent_dist.mode()
        errors.append((network.decode(mean).sample.clamp(-1, 1).cpu() - images).abs().flatten(1).mean(1))
        latents.append(mean.cpu())
    scale = 1 / float(torch.cat(latents).std())
    network.register_to_config(scaling_factor=scale)
    network.save_pretrained(folder)
    return {"scaling_factor": scale, "absolute_error": float(torch.cat(errors).mean())}
