"""A tiny text-to-image world: coloured shapes with sentences, their latents, prompts, and networks on them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from text_models import stamps_folder, text_encoder

from atdiff_core.autoencoders import load_autoencoder
from atdiff_core.data.latent_writing import begin_latents, encode_shard, finish_latents, plan_latents
from atdiff_core.data.prompts import Prompts, load_prompts, plan_prompts, write_prompts
from atdiff_core.data.stamps import stamps
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.text_encoders import load_text_encoder
from atdiff_core.text_networks import TextUNet

STUDENT = TextUNet(
    resolution=4, image_channels=3, channels=(8, 16), attention_at=(4,), attention_heads=2, prompt_width=16,
    norm_groups=4, guidance_width=8,
)  # fmt: skip
TEACHER = STUDENT.fitting(embeds_guidance=False, adapts=False)


@dataclass(frozen=True)
class World:
    """Folders of a set of latents with captions and of the prompts that go with it."""

    latents: Path
    prompts: Path

    @property
    def shards(self) -> ShardSet:
        return open_shards(self.latents)

    @property
    def texts(self) -> Prompts:
        return load_prompts(self.prompts)


def autoencoder(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, norm_num_groups=4, scaling_factor=0.5,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def world(root: Path) -> World:
    """8 px pictures, 4 x 4 latents below ``root / latents / 4px``, prompts of 16 numbers a token."""
    source = stamps(stamps_folder(root / "pictures"), "all")
    list(write_shards(source, root / "images", [8], image_channels=3, samples_per_shard=16))
    encoder = load_text_encoder(str(text_encoder(root / "encoder")))
    list(write_prompts(plan_prompts(open_shards(root / "images" / "8px"), encoder, root / "prompts")))
    vae = load_autoencoder(str(autoencoder(root / "vae")))
    plan = plan_latents(root / "images" / "8px", root / "latents" / "4px", vae, batch_size=8, device="cpu")
    begin_latents(plan)
    for number in range(len(plan.index.shards)):
        list(encode_shard(plan, number))
    finish_latents(plan)
    return World(root / "latents" / "4px", root / "prompts")
