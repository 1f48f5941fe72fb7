"""How near a network's samples are to a dataset, at fixed latents, for several samplers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.data.stream import ShardSet
from atdiff_core.karras import PREDICTS, Noise
from atdiff_core.metrics.distances import DistanceMeter, Distances
from atdiff_core.metrics.features import (
    METRIC_NAMES,
    DistanceName,
    FeatureName,
    Inception,
    feature_network,
    features_of,
)
from atdiff_core.metrics.inception_score import SPLITS, inception_score
from atdiff_core.metrics.judged_samples import CaptionsOf, PicturesOf
from atdiff_core.metrics.precision_recall import NEIGHBOURS, precision_recall
from atdiff_core.metrics.reference import reference_features
from atdiff_core.metrics.robustness import Attack, robustness
from atdiff_core.networks import NoisePredictor
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.samplers import Sampler, sample
from atdiff_core.team import ALONE, Team
from atdiff_core.text_networks import TextNoisePredictor

if TYPE_CHECKING:
    from atdiff_core.data.prompts import Prompts

PICTURES = 64


class EvaluationConfig(Config):
    """How a network is judged.

    Attributes:
        features: Feature network: ``efflite0_64`` (offline) or ``inception`` (FID).
        distance: Which distance is the trial metric. The kernel distance is unbiased and tells
            small differences from few samples; the Fréchet distance is the usual one.
        samples: Images generated for each sampler.
        reference: Images of the dataset to compare with: its first ones in shard order, which is
            random but fixed; all of them where it has no more.
        samplers: Samplers to run; the first decides the trial metric, that of most evaluations makes the pictures.
            Only those that can step a network are given it: where a teacher and its students are
            judged alike, there may be some for each.
        seed: Seed of the latents, the same for every trial.
        attacks: Attacks under which the finished network's loss is measured as well.
        attacked_images: Images of the dataset that they are given.
        full: Precision and recall besides the distances, and the inception score where the
            features are Inception's. A search judges often and needs the distances only.
    """

    features: FeatureName = "efflite0_64"
    distance: DistanceName = "kernel"
    samples: Annotated[int, Field(ge=2)] = 512
    reference: Annotated[int, Field(ge=2)] = 50_000
    samplers: Annotated[tuple[Sampler, ...], Field(min_length=1)] = (Sampler(),)
    seed: int = 0
    attacks: tuple[Attack, ...] = ()
    attacked_images: Annotated[int, Field(ge=2)] = 512
    full: bool = False

    @model_validator(mode="after")
    def _enough(self) -> Self:
        needed = SPLITS if self.features == "inception" else NEIGHBOURS + 1
        if self.full and min(self.samples, self.reference) < needed:
            raise ValueError(
                f"a full evaluation needs at least {needed} samples and reference images, "
                f"got {self.samples} and {self.reference}"
            )
        return self

    def fitting(self, noise: Noise) -> Self:
        """The same with those samplers only that can step a network trained on this noise."""
        fitting = tuple(sampler for sampler in self.samplers if sampler.fits(noise))
        if not fitting:
            names = ", ".join(sampler.name for sampler in self.samplers)
            raise ValueError(f"none of the samplers {names} can step a network that {PREDICTS[noise.kind]}; add one")
        return self if fitting == self.samplers else self.but(samplers=fitting)

    def check_fits(self, noise: Noise) -> None:
        """Refuse at once what would fail at the first judgement."""
        for sampler in self.samplers:
            sampler.check_steps(noise)
        if self.attacks and not isinstance(noise, NoiseSchedule):
            raise ValueError(
                f"evaluation.attacks are measured on networks that predict noise, this one {PREDICTS[noise.kind]}; "
                "leave them out"
            )

    @property
    def metric_name(self) -> str:
        """Name of the trial metric, say ``kd_efflite0_64``."""
        return METRIC_NAMES[self.features][self.distance]

    @property
    def pictured(self) -> Sampler:
        """Whose samples are shown: the sampler of most evaluations."""
        return max(self.samplers, key=lambda sampler: sampler.nfe)

    @property
    def metric_label(self) -> str:
        """The same in words, for axes and tables."""
        if self.features == "inception":
            return METRIC_NAMES[self.features][self.distance].upper()
        kind = "Fréchet" if self.distance == "frechet" else "kernel"
        return f"{kind} distance of {self.features} features"


@dataclass(frozen=True)
class Evaluated:
    """What one sampler made of a network.

    Attributes:
        figures: Everything that was measured, by name without the sampler, say ``fd_efflite0_64``.
        images: The first samples, ``[up to 64, channels, height, width]`` in [-1, 1].
    """

    sampler: Sampler
    distances: Distances
    figures: dict[str, float]
    images: Tensor


class Evaluator:
    """Judges networks against one dataset; its reference features are computed once and cached.

    Latents are judged as the pictures that their autoencoder makes of them, on both sides. A network
    that attends to prompts is given the first caption of one sample after the other.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        shards: ShardSet,
        cache: Path,
        *,
        device: str = "cpu",
        batch_size: int = 64,
        prompts: "Prompts | None" = None,
    ) -> None:
        """Open the reference.

        Args:
            cache: Folder of reference features.
            device: Where features are computed; samples are drawn where the network is.
            batch_size: Images that are drawn at once. The result does not depend on it.
            prompts: Embeddings of the dataset's captions, for networks that attend to prompts.
        """
        self.config = config
        self._pictures = PicturesOf(shards.index, device)
        self._captions = CaptionsOf(shards, prompts)
        self.network = feature_network(config.features, device)
        self._batch_size = batch_size
        self._shards = shards
        self._reference = reference_features(shards, config.reference, config.features, self.network, cache)
        self._meter = DistanceMeter(self._reference)

    def evaluate(
        self,
        network: NoisePredictor,
        noise: Noise,
        samplers: tuple[Sampler, ...] | None = None,
        *,
        team: Team = ALONE,
    ) -> Iterator[Evaluated]:
        """Yields what each sampler makes of the network, those of the config where none are given."""
        for sampler in samplers or self.config.samplers:
            for event in self.judge(network, noise, sampler, team=team):
                if isinstance(event, Evaluated):
                    yield event

    def judge(
        self, network: NoisePredictor, noise: Noise, sampler: Sampler, *, team: Team = ALONE
    ) -> Iterator[int | Evaluated]:
        """Yields the number of images made so far, again and again, and at the end the judgement.

        Args:
            team: Ranks that share the sampling; all of them get the judgement, which is that of one
                rank, to the rounding of the network's outputs.
        """
        network.eval()
        side = network.unet.config.sample_size
        deal = team.deal(self.config.samples, self._batch_size)
        features: list[Tensor] = []
        images: list[Tensor] = []
        made = 0
        for indices in deal.mine:
            drawn, _ = sample(
                network,
                noise,
                sampler,
                shape=(network.image_channels, side, side),
                indices=indices,
                seed=self.config.seed,
                num_classes=network.num_classes,
                conditioning=self._captions.of(network, indices),
                bounded=not self._pictures.decodes,
                device=next(network.parameters()).device,
            )
            batch = self._pictures(drawn)
            features.append(features_of([batch], self.network))
            if not images or indices.start < PICTURES:
                images.append(batch.cpu())
            made += len(batch)
            yield made
        yield self._evaluated(sampler, deal.collected(features), deal.collected(images, first=PICTURES))

    def _evaluated(self, sampler: Sampler, features: Tensor, images: Tensor) -> Evaluated:
        distances = self._meter(features)
        figures = distances.named(self.config.features)
        if self.config.full:
            coverage = precision_recall(features, self._reference)
            space = "" if self.config.features == "inception" else f"_{self.config.features}"
            figures |= {f"precision{space}": coverage.precision, f"recall{space}": coverage.recall}
        if self.config.full and isinstance(self.network, Inception):
            figures["inception_score"] = inception_score(self.network.class_logits(features).cpu())
        return Evaluated(sampler, distances, figures, images)

    def attacked(self, network: NoisePredictor, noise: Noise, *, team: Team = ALONE) -> dict[str, float]:
        """Attack gains over all noise levels, by the names of the attacks."""
        if not self.config.attacks:
            return {}
        assert isinstance(noise, NoiseSchedule)  # See EvaluationConfig.check_fits.
        if isinstance(network, TextNoisePredictor):
            raise ValueError("evaluation.attacks are measured on networks that attend to no prompt; leave them out")
        network.eval()
        batch = next(self._shards.batches(seed=self.config.seed, batch_size=self.config.attacked_images))
        labels = batch.labels if network.num_classes else None
        device = next(network.parameters()).device
        gains = {}
        for attack in self.config.attacks:
            overall = next(
                robustness(
                    network, Denoising(noise=noise), batch.images, attack,
                    labels=labels, seed=self.config.seed, num_bins=1, device=device, team=team,
                )
            )  # fmt: skip
            gains[attack.name] = overall.gain
        return gains

    def named(self, evaluated: Evaluated) -> dict[str, float]:
        """Figures under the names of feature network and sampler, say ``fd_efflite0_64/ddim_10``."""
        return {f"{name}/{evaluated.sampler.name}": value for name, value in evaluated.figures.items()}

    def metric(self, evaluated: Evaluated) -> float:
        """The trial metric."""
        distances = evaluated.distances
        return distances.frechet if self.config.distance == "frechet" else distances.kernel
