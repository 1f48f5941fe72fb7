"""Averaged networks for inference, as diffusers folders that stock diffusers opens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDPMPipeline,
    DDPMScheduler,
    LCMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from pydantic import TypeAdapter

from atdiff_core.data.contents import Latents
from atdiff_core.files import read_json, sha256_of, write_json
from atdiff_core.karras import KarrasNoise, Noise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.lora import without_updates
from atdiff_core.networks import NoisePredictor, UNet
from atdiff_core.objectives.objective import Teacher
from atdiff_core.schedulers import PREDICTION_TYPES
from atdiff_core.text_networks import TextNoisePredictor, TextUNet
from atdiff_core.text_snapshots import (
    BETA_SCHEDULES,
    Surroundings,
    load_text_network,
    save_text_pipeline,
    schedule_in,
)
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import TrainState

RECORD = "atdiff.json"
NOTHING_AROUND = Surroundings()
_LEARNED = "learned_range"
_MAY_DIFFER = {"sample_size", "dropout"}
_MAY_BE_NEW = {"time_cond_proj_dim"}
"""What a student has and its teacher has not."""


@dataclass(frozen=True)
class Snapshot:
    """A network ready to sample from.

    Attributes:
        network: In evaluation mode.
        noise: What it was trained on, and what its output means.
        key: The trial that made it, or the sha256 of its weights where no trial is known.
        latents: What it makes, where that is no pictures and a trial of ours made it.
    """

    network: NoisePredictor
    noise: Noise
    key: str
    latents: Latents | None = None

    @property
    def teacher(self) -> Teacher:
        """The network as one that is asked and never changed."""
        return Teacher(self.network, self.noise)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        config = self.network.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def num_classes(self) -> int:
        """Classes the network is conditioned on; zero for none."""
        return self.network.num_classes

    def check_needs_no_prompt(self, name: str) -> None:
        """Refuse a network that attends to prompts, where there are none to tell it.

        Args:
            name: Its folder, for the error.
        """
        if isinstance(self.network, TextNoisePredictor):
            raise ValueError(
                f"{name}: the network attends to prompts; sample it with diffusers' pipelines, or judge it with "
                "`atdiff evaluate-text`"
            )

    @property
    def learned_variance(self) -> bool:
        """Whether the output holds v behind the noise."""
        return self.network.learned_variance

    def check_fits(self, unet: UNet | TextUNet) -> None:
        """Refuse to start a run of another network from these weights.

        The image size and the dropout may differ, nothing else: some differences, like the
        width of the heads, would load without an error and compute something else.
        """
        with torch.device("meta"):
            wanted = unet.build_unet().config
        names = [name for name in wanted if name not in _MAY_DIFFER and not name.startswith("_")]
        for name in names:
            found, asked = (_plain(config.get(name)) for config in (self.network.unet.config, wanted))
            if found != asked and not (name in _MAY_BE_NEW and found is None):
                raise ValueError(
                    f"snapshot {self.key[:12]} holds another network than the run: its {name} is {found}, "
                    f"the run's is {asked}; give the run the preset of the snapshot"
                )


def save_snapshot(state: TrainState, config: TrainConfig, folder: Path, around: Surroundings = NOTHING_AROUND) -> None:
    """Write the averaged weights as a pipeline of diffusers.

    ``DDPMPipeline.from_pretrained(folder)`` samples from a network that predicts noise,
    ``ConsistencyModelPipeline`` from a consistency model. diffusers has no pipeline for an EDM
    denoiser: it is written as the latter, whose single step gives E[x_0 | noise], no sample.
    Text-conditional networks become the pipelines of ``atdiff_core.text_snapshots``.

    Args:
        around: What such a pipeline has beside the network.
    """
    network = state.averaged
    if isinstance(config.network, TextUNet) and config.network.lora_rank:
        network = without_updates(network, config.network)
    weights = _save(network, config.objective.noise, folder, around)
    record = {"key": config.key, "config": config.model_dump(mode="json"), "sha256": weights}
    latents = {} if around.latents is None else {"latents": around.latents.model_dump(mode="json")}
    write_json(folder / RECORD, record | latents)


def save_imported(
    network: NoisePredictor, unet: UNet, noise: Noise, folder: Path, *, origin: Mapping[str, str]
) -> None:
    """Write weights that no run of ours made, as a snapshot to sample from and to start runs from.

    Args:
        unet: What ``network`` was built from.
        noise: What it was trained on; no file of weights tells.
        origin: Where the weights come from, for people.
    """
    weights = _save(network, noise, folder)
    record = {"network": unet.model_dump(mode="json"), "noise": noise.model_dump(mode="json"), "origin": dict(origin)}
    write_json(folder / RECORD, record | {"key": weights, "sha256": weights})


def _save(network: NoisePredictor, noise: Noise, folder: Path, around: Surroundings = NOTHING_AROUND) -> str:
    """The diffusers pipeline; the sha256 of its weights."""
    if isinstance(network, TextNoisePredictor):
        save_text_pipeline(network, noise, folder, around)
        return sha256_of(_weights(folder))
    assert not isinstance(noise, LatentConsistencyNoise)  # Its networks are told a guidance scale.
    if isinstance(noise, KarrasNoise):
        names = ("sigma_min", "sigma_max", "sigma_data", "rho")
        levels = CMStochasticIterativeScheduler(
            num_train_timesteps=noise.num_levels, **{name: getattr(noise, name) for name in names}
        )
        ConsistencyModelPipeline(unet=network.unet, scheduler=levels).save_pretrained(folder)
        return sha256_of(_weights(folder))
    scheduler = DDPMScheduler(
        num_train_timesteps=noise.num_timesteps,
        beta_schedule=BETA_SCHEDULES[noise.kind],
        beta_start=1e-4 if noise.kind == "cosine" else float(noise.betas[0]),
        beta_end=0.02 if noise.kind == "cosine" else float(noise.betas[-1]),
        variance_type=_LEARNED if network.learned_variance else "fixed_large",
        prediction_type=PREDICTION_TYPES[noise.predicts],
        clip_sample=around.latents is None,
    )
    DDPMPipeline(unet=network.unet, scheduler=scheduler).save_pretrained(folder)
    return sha256_of(_weights(folder))


def load_snapshot(folder: Path, device: str = "cpu") -> Snapshot:
    """Open a snapshot of ours, or any diffusers folder of a DDPM or consistency model.

    Raises:
        ValueError: The folder is missing, is no such pipeline whose network predicts noise (and
            at most the range of a learned variance) or is a consistency model, lacks its
            scheduler, or has a noise schedule that is neither linear nor cosine.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"there is no diffusers snapshot (model_index.json) in {folder}")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    weights = _weights(folder)
    if record is not None and not (weights.is_file() and record.get("sha256") == sha256_of(weights)):
        raise ValueError(f"{weights} is missing or damaged: its sha256 differs from the one in {RECORD}")
    kind = read_json(folder / "unet" / "config.json").get("_class_name")
    if kind == UNet2DConditionModel.__name__:
        return _text_snapshot(folder, record, device)
    if kind != UNet2DModel.__name__:  # diffusers would load what fits and draw the other weights at random.
        raise ValueError(f"{folder} is not a diffusers DDPM pipeline: its network is a {kind}, not a UNet2DModel")
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
        scheduler = _scheduler(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is not a diffusers DDPM pipeline: {error}") from None
    network = NoisePredictor(unet).to(device).eval()
    if record is not None:
        made_from = record["config"]["objective"] if "config" in record else record
        noise: Noise = TypeAdapter(Noise).validate_python(made_from["noise"])
        return Snapshot(network, noise, record["key"], _latents_in(record))
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        _check_classes(network, folder)
        return Snapshot(network, _levels_of(scheduler), sha256_of(weights))
    _check_foreign(network, scheduler, folder)
    return Snapshot(network, schedule_in(scheduler, folder), sha256_of(weights))


def _text_snapshot(folder: Path, record: Any, device: str) -> Snapshot:
    """The same where the network attends to prompts."""
    network = load_text_network(folder)
    network.to(device).eval()
    if record is not None:
        noise: Noise = TypeAdapter(Noise).validate_python(record["config"]["objective"]["noise"])
        return Snapshot(network, noise, record["key"], _latents_in(record))
    try:
        scheduler = _scheduler(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is not a text-to-image pipeline: {error}") from None
    noise = schedule_in(scheduler, folder)
    if isinstance(scheduler, LCMScheduler):
        steps, scaling = scheduler.config.original_inference_steps, scheduler.config.timestep_scaling
        noise = LatentConsistencyNoise(schedule=noise, num_steps=steps, timestep_scaling=scaling)
    return Snapshot(network, noise, sha256_of(_weights(folder)))


def _latents_in(record: Any) -> Latents | None:
    return Latents.model_validate(record["latents"]) if "latents" in record else None


def _scheduler(folder: Path) -> DDPMScheduler | CMStochasticIterativeScheduler | LCMScheduler:
    """The folder's own scheduler; the noise schedule of any DPM's is read as DDPM's."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise ValueError(f"it has no {file.relative_to(folder)}, so the noise it was trained on is unknown")
    if read_json(file).get("_class_name") == LCMScheduler.__name__:
        return LCMScheduler.from_pretrained(folder / "scheduler")
    if read_json(file).get("_class_name") == CMStochasticIterativeScheduler.__name__:
        return CMStochasticIterativeScheduler.from_pretrained(folder / "scheduler")
    return DDPMScheduler.from_pretrained(folder / "scheduler")


def _levels_of(scheduler: CMStochasticIterativeScheduler) -> KarrasNoise:
    names = ("sigma_min", "sigma_max", "sigma_data", "rho")
    scales = {name: scheduler.config[name] for name in names}
    return KarrasNoise(kind="consistency", num_levels=scheduler.config.num_train_timesteps, **scales)


def _check_foreign(network: NoisePredictor, scheduler: DDPMScheduler, folder: Path) -> None:
    """Its output must mean what ours means."""
    config = network.unet.config
    predicts, variance, channels = scheduler.config.prediction_type, scheduler.config.variance_type, config.out_channels
    learned = network.learned_variance and variance == _LEARNED
    if predicts != "epsilon" or not (learned or channels == config.in_channels):
        raise ValueError(
            f"the network of {folder} must predict the noise (epsilon) in {config.in_channels} channels, or twice as "
            f"many with variance_type {_LEARNED}, got {predicts} in {channels} with {variance}"
        )
    _check_classes(network, folder)


def _check_classes(network: NoisePredictor, folder: Path) -> None:
    config = network.unet.config
    if config.class_embed_type is not None:
        raise ValueError(
            f"the classes of {folder} must be an embedding, got class_embed_type {config.class_embed_type}"
        )


def _plain(value: object) -> object:
    """A tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value


def _weights(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"
