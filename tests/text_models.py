"""Tiny text encoders, and pictures with sentences as Tux Paint's stamps lie on a disk."""

from pathlib import Path

import torch
from PIL import Image

from atdiff_core.pretraining.words import trained_tokenizer

SENTENCES = [f"A {colour} {shape}." for colour in ("red", "green", "blue") for shape in ("square", "disc", "star")]


def text_encoder(folder: Path, *, seed: int = 0, tokens: int = 16, width: int = 16, vocabulary: int = 600) -> Path:
    """A randomly initialised text tower with a tokenizer, both as a pipeline keeps them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from atdiff_core.hub import quiet_transformers

    tokenizer = trained_tokenizer(SENTENCES, vocabulary=vocabulary, tokens=tokens)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, projection_dim=width,
        num_attention_heads=2, max_position_embeddings=tokens, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with quiet_transformers():
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def stamps_folder(folder: Path, *, count: int = 40, side: int = 40) -> Path:
    """Transparent pictures in two categories: most with a sentence and translations, some without, one drawing."""
    for number in range(count):
        file = folder / ("shapes/flat", "other")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = ((number % 3 == 0) * 255, (number % 3 == 1) * 255, (number % 3 == 2) * 255, 255)
        picture = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        picture.paste(colour, (side // 4, side // 4, side // 2 + number % 5, side // 2))
        picture.save(file)
        if number % 10 != 9:
            sentence = SENTENCES[number % len(SENTENCES)]
            file.with_suffix(".txt").write_text(f"{sentence}\nes.utf8=En castellano.\nca@valencia.utf8=Una altra.\n")
    (folder / "other" / "drawn.svg").write_text("<svg/>")
    (folder / "other" / "drawn.txt").write_text("A drawing.\n")
    (folder / "other" / "09.txt").write_text("es.utf8=Sin ingles.\n")
    return folder


def clip_folder(folder: Path, *, seed: int = 0) -> Path:
    """A randomly initialised CLIP for pictures of 16 pixels, as ``atdiff pretrain clip`` writes it."""
    from atdiff_core.pretraining.clip import ClipShape, save_clip

    shape = ClipShape(resolution=16, vocabulary=600, tokens=16, width=16, layers=1, heads=2)
    tokenizer = trained_tokenizer(SENTENCES, vocabulary=shape.vocabulary, tokens=shape.tokens)
    save_clip(shape.build(tokenizer, seed=seed), tokenizer, shape, folder)
    return folder


def pipeline_folder(folder: Path, encoder: Path, *, distilled: bool, seed: int = 0) -> Path:
    """A randomly initialised pipeline of diffusers that makes pictures of 16 pixels."""
    from diffusers import (
        DDIMScheduler,
        LatentConsistencyModelPipeline,
        LCMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    from atdiff_core.pretraining.autoencoder import AutoencoderShape
    from atdiff_core.text_encoders import load_text_encoder

    text = load_text_encoder(str(encoder))
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text.width, attention_head_dim=4, time_cond_proj_dim=8 if distilled else None,
    )  # fmt: skip
    vae = AutoencoderShape(resolution=16, channels=(8, 8)).build(seed=seed)
    kind, scheduler = (
        (LatentConsistencyModelPipeline, LCMScheduler()) if distilled else (StableDiffusionPipeline, DDIMScheduler())
    )
    kind(
        vae=vae, text_encoder=text.network, tokenizer=text.tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder
