"""Distance of a network's samples to a dataset, at fixed latents, for several samplers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.data.stream import ShardSet
from atdiff_core.metrics.distances import DistanceMeter, Distances
from atdiff_core.metrics.features import METRIC_NAMES, DistanceName, FeatureName, feature_network, features_of
from atdiff_core.networks import NoisePredictor
from atdiff_core.noise import NoiseSchedule
from atdiff_core.randomness import derived_seed
from atdiff_core.samplers import Sampler, sample_batches


class EvaluationConfig(Config):
    """How a network is judged.

    Attributes:
        features: Feature network: ``efflite0_64`` (offline) or ``inception`` (FID).
        distance: Which distance is the trial metric. The kernel distance is unbiased and tells
            small differences from few samples; the Fréchet distance is the usual one.
        samples: Images generated for each sampler.
        reference: Images of the dataset to compare with: its first ones in shard order, which is
            random but fixed; all of them where it has no more.
        samplers: Samplers to run; the first decides the trial metric, the last makes the pictures.
        seed: Seed of the latents, the same for every trial.
    """

    features: FeatureName = "efflite0_64"
    distance: DistanceName = "kernel"
    samples: Annotated[int, Field(ge=2)] = 512
    reference: Annotated[int, Field(ge=2)] = 50_000
    samplers: Annotated[tuple[Sampler, ...], Field(min_length=1)] = (Sampler(),)
    seed: int = 0

    @property
    def metric_name(self) -> str:
        """Name of the trial metric, say ``kd_efflite0_64``."""
        return METRIC_NAMES[self.features][self.distance]

    @property
    def metric_label(self) -> str:
        """The same in words, for axes and tables."""
        if self.features == "inception":
            return METRIC_NAMES[self.features][self.distance].upper()
        kind = "Fréchet" if self.distance == "frechet" else "kernel"
        return f"{kind} distance of {self.features} features"


@dataclass(frozen=True)
class Evaluated:
    """Distances and some pictures for one sampler.

    Attributes:
        images: The first samples, ``[up to 64, channels, height, width]`` in [-1, 1].
    """

    sampler: Sampler
    distances: Distances
    images: Tensor


class Evaluator:
    """Judges networks against one dataset; its reference features are computed once and cached."""

    def __init__(self, config: EvaluationConfig, shards: ShardSet, cache: Path) -> None:
        self.config = config
        self.network = feature_network(config.features)
        self._meter = DistanceMeter(self._reference(shards, cache))

    def _reference(self, shards: ShardSet, cache: Path) -> Tensor:
        """Features of the dataset, kept under what they depend on."""
        count = min(self.config.reference, shards.num_samples)
        file = cache / f"{self.config.features}-{count}-{shards.fingerprint[:32]}.safetensors"
        if not file.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            features = features_of(shards.images(limit=count), self.network)
            scratch = file.with_suffix(f".{derived_seed(id(self))}")
            save_file({"features": features}, scratch)
            scratch.replace(file)
        return load_file(file)["features"]

    def evaluate(
        self, network: NoisePredictor, noise: NoiseSchedule, samplers: tuple[Sampler, ...] | None = None
    ) -> Iterator[Evaluated]:
        """Yields the distances for each sampler, those of the config where none are given."""
        network.eval()
        unet = network.unet.config
        shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        device = next(network.parameters()).device
        for sampler in samplers or self.config.samplers:
            batches = list(
                sample_batches(
                    network,
                    noise,
                    sampler,
                    shape=shape,
                    count=self.config.samples,
                    seed=self.config.seed,
                    device=device,
                )
            )
            distances = self._meter(features_of(batches, self.network))
            yield Evaluated(sampler, distances, batches[0][:64].cpu())

    def named(self, evaluated: Evaluated) -> dict[str, float]:
        """Figures under the names of feature network and sampler, say ``fd_efflite0_64/ddim_10``."""
        names, suffix = METRIC_NAMES[self.config.features], f"{evaluated.sampler.kind}_{evaluated.sampler.nfe}"
        return {
            f"{names['frechet']}/{suffix}": evaluated.distances.frechet,
            f"{names['kernel']}/{suffix}": evaluated.distances.kernel,
            f"{names['kernel']}_std/{suffix}": evaluated.distances.kernel_std,
        }

    def metric(self, evaluated: Evaluated) -> float:
        """The trial metric."""
        distances = evaluated.distances
        return distances.frechet if self.config.distance == "frechet" else distances.kernel
