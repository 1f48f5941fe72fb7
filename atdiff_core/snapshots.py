"""Averaged networks for inference, as diffusers folders that stock diffusers opens."""

from dataclasses import dataclass
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from atdiff_core.files import read_json, sha256_of, write_json
from atdiff_core.networks import NoisePredictor
from atdiff_core.noise import NoiseSchedule
from atdiff_core.trainer import TrainConfig, TrainState

RECORD = "atdiff.json"
_BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Snapshot:
    """A network ready to sample from.

    Attributes:
        network: Predicts noise; in evaluation mode.
        noise: The schedule it was trained with.
        key: The trial that made it, or the sha256 of its weights where no trial is known.
    """

    network: NoisePredictor
    noise: NoiseSchedule
    key: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        config = self.network.unet.config
        return config.in_channels, config.sample_size, config.sample_size


def save_snapshot(state: TrainState, config: TrainConfig, folder: Path) -> None:
    """Write the averaged weights; ``DDPMPipeline.from_pretrained(folder)`` samples from them."""
    noise = config.objective.noise
    scheduler = DDPMScheduler(
        num_train_timesteps=noise.num_timesteps,
        beta_schedule=_BETA_SCHEDULES[noise.kind],
        beta_start=float(noise.betas[0]) if noise.kind == "linear" else 1e-4,
        beta_end=float(noise.betas[-1]) if noise.kind == "linear" else 0.02,
        variance_type="fixed_large",
        clip_sample=True,
    )
    DDPMPipeline(unet=state.averaged.unet, scheduler=scheduler).save_pretrained(folder)
    record = {"key": config.key, "config": config.model_dump(mode="json"), "sha256": sha256_of(_weights(folder))}
    write_json(folder / RECORD, record)


def load_snapshot(folder: Path, device: str = "cpu") -> Snapshot:
    """Open a snapshot of ours, or any diffusers folder of an unconditional DDPM.

    Raises:
        ValueError: The folder is missing, is not a DDPM pipeline whose network predicts noise, or
            has a noise schedule that is neither linear nor cosine.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"there is no diffusers snapshot (model_index.json) in {folder}")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    weights = _weights(folder)
    if record is not None and not (weights.is_file() and record.get("sha256") == sha256_of(weights)):
        raise ValueError(f"{weights} is missing or damaged: its sha256 differs from the one in {RECORD}")
    kind = read_json(folder / "unet" / "config.json").get("_class_name")
    if kind != UNet2DModel.__name__:  # diffusers would load what fits and draw the other weights at random.
        raise ValueError(f"{folder} is not a diffusers DDPM pipeline: its network is a {kind}, not a UNet2DModel")
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is not a diffusers DDPM pipeline: {error}") from None
    network = NoisePredictor(unet).to(device).eval()
    if record is not None:
        config = TrainConfig.model_validate(record["config"])
        return Snapshot(network, config.objective.noise, record["key"])
    predicts, channels = scheduler.config.prediction_type, unet.config.out_channels
    if predicts != "epsilon" or channels != unet.config.in_channels:
        raise ValueError(
            f"the network of {folder} must predict the noise (epsilon) in {unet.config.in_channels} channels, "
            f"got {predicts} in {channels}"
        )
    return Snapshot(network, _noise_of(scheduler, folder), sha256_of(weights))


def _weights(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def _noise_of(scheduler: DDPMScheduler, folder: Path) -> NoiseSchedule:
    named = scheduler.config.beta_schedule
    for kind, theirs in _BETA_SCHEDULES.items():
        noise = NoiseSchedule.model_validate({"kind": kind, "num_timesteps": scheduler.config.num_train_timesteps})
        if named == theirs and (scheduler.betas - noise.betas).abs().max() < 1e-4:
            return noise
    raise ValueError(f"the noise schedule of {folder} must be linear (from 1e-4 to 0.02) or cosine, got {named!r}")
