"""Text-conditional networks as pipelines of diffusers that stock code samples from, and such folders as teachers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, UNet2DConditionModel, __version__

from atdiff_core.autoencoders import SUBFOLDER, load_autoencoder
from atdiff_core.data.contents import Latents
from atdiff_core.data.prompts import Prompts
from atdiff_core.files import read_json, write_json
from atdiff_core.hub import first_line
from atdiff_core.karras import Noise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.schedulers import PREDICTION_TYPES
from atdiff_core.text_encoders import ENCODER, TOKENIZER, load_text_encoder
from atdiff_core.text_networks import TextNoisePredictor

INDEX = "model_index.json"
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "scaled_linear": "scaled_linear"}
PIPELINES = {"latent_consistency": "LatentConsistencyModelPipeline"}
"""Of kinds of noise; all others are sampled by ``StableDiffusionPipeline``."""
_UNCONDITIONED = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")


@dataclass(frozen=True)
class Surroundings:
    """What a text-to-image pipeline has beside its network; ``None`` where that is not known.

    Attributes:
        latents: The set that the network was trained on, which names its autoencoder.
        prompts: The embeddings that it was told, which name their text encoder.
    """

    latents: Latents | None = None
    prompts: Prompts | None = None


def save_text_pipeline(network: TextNoisePredictor, noise: Noise, folder: Path, around: Surroundings) -> None:
    """Write a pipeline of diffusers: network, scheduler, autoencoder, text encoder and tokenizer.

    ``StableDiffusionPipeline.from_pretrained(folder)`` samples from a diffusion model,
    ``LatentConsistencyModelPipeline`` from a latent consistency model.

    Raises:
        ValueError: Autoencoder or text encoder is no longer there, or no longer the same.
    """
    network.unet.save_pretrained(folder / "unet")
    scheduler = _scheduler_for(noise)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": PIPELINES.get(noise.kind, "StableDiffusionPipeline"),
        "_diffusers_version": __version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        **{name: [None, None] for name in ("vae", "text_encoder", "tokenizer")},
        **{name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")},
        "requires_safety_checker": False,
    }
    if around.latents is not None:
        autoencoder = load_autoencoder(around.latents.autoencoder)
        if autoencoder.key != around.latents.autoencoder_key:
            raise ValueError(f"{autoencoder.name}: no longer the autoencoder that the latents were encoded with")
        autoencoder.network.save_pretrained(folder / SUBFOLDER)
        index[SUBFOLDER] = ["diffusers", "AutoencoderKL"]
    if around.prompts is not None:
        encoder = load_text_encoder(around.prompts.encoder)
        around.prompts.check_encoder(encoder.key, encoder.name)
        encoder.network.save_pretrained(folder / ENCODER)
        encoder.tokenizer.save_pretrained(folder / TOKENIZER)
        index |= {ENCODER: ["transformers", "CLIPTextModel"], TOKENIZER: ["transformers", "CLIPTokenizer"]}
    write_json(folder / INDEX, index)


def _scheduler_for(noise: Noise) -> Any:
    """The scheduler with which stock diffusers samples from a network of this noise."""
    schedule = noise.schedule if isinstance(noise, LatentConsistencyNoise) else noise
    assert isinstance(schedule, NoiseSchedule)
    common = {
        "num_train_timesteps": schedule.num_timesteps,
        "beta_schedule": BETA_SCHEDULES[schedule.kind],
        "beta_start": float(schedule.betas[0]),
        "beta_end": float(schedule.betas[-1]),
        "prediction_type": PREDICTION_TYPES[schedule.predicts],
        "clip_sample": False,
    }
    if isinstance(noise, LatentConsistencyNoise):
        return LCMScheduler(**common, original_inference_steps=noise.num_steps, timestep_scaling=noise.timestep_scaling)
    return DDIMScheduler(**common, set_alpha_to_one=False, steps_offset=1)


def load_text_network(folder: Path) -> TextNoisePredictor:
    """The network of a Stable-Diffusion-shaped folder, whose parts must belong together.

    Raises:
        ValueError: The network is told more than a prompt and a guidance scale, or its autoencoder,
            text encoder or tokenizer does not fit it.
    """
    config = read_json(folder / "unet" / "config.json")
    for name in _UNCONDITIONED:
        if config.get(name) is not None:
            raise ValueError(
                f"{folder}: the network must be told a prompt and nothing else, its {name} is {config[name]}"
            )
    try:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers and safetensors each raise their own kinds.
        raise ValueError(f"{folder}: no UNet2DConditionModel can be read there ({first_line(error)})") from None
    if unet.config.in_channels != unet.config.out_channels or not isinstance(unet.config.cross_attention_dim, int):
        raise ValueError(
            f"{folder}: the network must have one prompt width and as many channels out as in, got "
            f"{unet.config.cross_attention_dim}, {unet.config.in_channels} in and {unet.config.out_channels} out"
        )
    _check_autoencoder(folder, unet.config.in_channels)
    _check_text(folder, unet.config.cross_attention_dim)
    return TextNoisePredictor(unet.float())


def check_belongs(folder: Path, around: Surroundings) -> None:
    """Refuse a pipeline as the teacher of latents or prompts that another autoencoder or text encoder made.

    Raises:
        ValueError: They are others than the folder's own, or the folder's own cannot be read.
    """
    if around.latents is not None and (folder / SUBFOLDER).is_dir():
        found = load_autoencoder(str(folder / SUBFOLDER))
        if found.key != around.latents.autoencoder_key:
            raise ValueError(
                f"{folder}: not the autoencoder of the latents, which is {around.latents.autoencoder}; "
                "encode them with the teacher's"
            )
    if around.prompts is not None and (folder / ENCODER).is_dir():
        around.prompts.check_encoder(load_text_encoder(str(folder)).key, str(folder))


def _check_autoencoder(folder: Path, channels: int) -> None:
    file = folder / SUBFOLDER / "config.json"
    if file.is_file() and (found := read_json(file).get("latent_channels")) != channels:
        raise ValueError(f"{folder}: the network takes latents of {channels} channels, its autoencoder makes {found}")


def _check_text(folder: Path, width: int) -> None:
    """By their configurations: the encoder is not loaded."""
    file = folder / ENCODER / "config.json"
    if not file.is_file():
        return
    encoder = read_json(file)
    if encoder.get("hidden_size") != width:
        raise ValueError(
            f"{folder}: the network attends to prompts {width} numbers wide, its text encoder makes "
            f"{encoder.get('hidden_size')}"
        )
    settings = folder / TOKENIZER / "tokenizer_config.json"
    if not settings.is_file():
        raise ValueError(f"{folder}: there is a text encoder, but no tokenizer ({settings.relative_to(folder)})")
    longest, places = read_json(settings).get("model_max_length"), encoder.get("max_position_embeddings")
    if longest != places:
        raise ValueError(
            f"{folder}: the tokenizer makes up to {longest} tokens of a sentence, its encoder takes {places}; "
            "they do not belong together"
        )
    last = max(_token_ids(folder / TOKENIZER), default=-1)
    if last >= encoder.get("vocab_size", 0):
        raise ValueError(
            f"{folder}: the tokenizer knows {last + 1} tokens, its encoder only {encoder.get('vocab_size')}; "
            "they do not belong together"
        )


def _token_ids(folder: Path) -> set[int]:
    """Every token's number, as either kind of tokenizer file tells it."""
    if (folder / "vocab.json").is_file():
        return set(read_json(folder / "vocab.json").values())
    if (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        return set(content["model"]["vocab"].values()) | {token["id"] for token in content.get("added_tokens", [])}
    raise ValueError(f"{folder}: holds neither vocab.json nor tokenizer.json")


def schedule_in(scheduler: DDPMScheduler, folder: Path) -> NoiseSchedule:
    """The noise schedule that a scheduler's betas are, and what its network predicts.

    Raises:
        ValueError: It is none of ours.
    """
    named, predicts = scheduler.config.beta_schedule, scheduler.config.prediction_type
    ours = {theirs: mine for mine, theirs in PREDICTION_TYPES.items()}
    if predicts not in ours:
        raise ValueError(f"the network of {folder} must predict one of {', '.join(ours)}, got {predicts!r}")
    for kind, theirs in BETA_SCHEDULES.items():
        noise = NoiseSchedule.model_validate(
            {"kind": kind, "num_timesteps": scheduler.config.num_train_timesteps, "predicts": ours[predicts]}
        )
        if named == theirs and (scheduler.betas - noise.betas).abs().max() < 1e-4:
            return noise
    raise ValueError(
        f"the noise schedule of {folder} must be linear (from 1e-4 to 0.02), cosine or scaled_linear (from 0.00085 "
        f"to 0.012), got {named!r} from {scheduler.config.beta_start:g} to {scheduler.config.beta_end:g}"
    )
