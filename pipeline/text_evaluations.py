"""Text-to-image models judged at several NFE, cell by cell; a finished cell is never done twice."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from atdiff_core.clip import Clip
from atdiff_core.config import Config
from atdiff_core.data.prompts import Prompts
from atdiff_core.data.stream import ShardSet
from atdiff_core.files import read_json, write_json
from atdiff_core.metrics.distances import DistanceMeter
from atdiff_core.metrics.features import FeatureName, feature_network, features_of
from atdiff_core.metrics.reference import reference_features
from atdiff_core.metrics.text_match import TextMatch
from atdiff_core.text_sampling import TextPipeline, TextSampler, chosen_pairs, open_pipeline, pipeline_key
from pipeline.evaluations import Cell, Sampled

REVISION = 1
"""Part of every cell's key: to be raised when the same settings give other figures."""
SHOWN = 8
"""Images of a cell that are kept for the grid."""


class TextEvaluationConfig(Config):
    """How text-to-image models are judged.

    Attributes:
        features: Feature network of the distances to the captioned images.
        count: Images of each model and NFE, one a caption.
        reference: Images of the set to compare with, its first ones in shard order.
        seed: Of the latents, of the noise between steps and of the choice among captions; the
            same for all models.
    """

    features: FeatureName = "efflite0_64"
    count: Annotated[int, Field(ge=3)] = 512
    reference: Annotated[int, Field(ge=2)] = 50_000
    samplers: Annotated[tuple[TextSampler, ...], Field(min_length=1)]
    seed: int = 0


@dataclass(frozen=True)
class TextModel:
    """One pipeline of an arm.

    Attributes:
        arm: What several pipelines have in common that differ in their seed only.
        name: Of this one; the arm's, numbered where there are several.
    """

    arm: str
    name: str
    folder: Path
    key: str


def named_models(arguments: Sequence[str]) -> list[TextModel]:
    """Pipelines given as ``FOLDER`` or ``ARM=FOLDER``; an arm that occurs again has several seeds.

    Raises:
        ValueError: A folder is no pipeline, or is given twice.
    """
    arms: dict[str, list[Path]] = {}
    for argument in arguments:
        arm, equals, folder = argument.partition("=")
        if not equals or Path(argument).exists():
            arm, folder = Path(argument).name, argument
        if any(Path(folder) in folders for folders in arms.values()):
            raise ValueError(f"every pipeline may be given once, got {folder} twice")
        arms.setdefault(arm, []).append(Path(folder))
    return [
        TextModel(arm, arm if len(folders) == 1 else f"{arm}-{number}", folder, pipeline_key(folder))
        for arm, folders in arms.items()
        for number, folder in enumerate(folders)
    ]


class TextEvaluator:
    """Judges text-to-image models on the captions of one set."""

    def __init__(
        self,
        config: TextEvaluationConfig,
        shards: ShardSet,
        clip: Clip,
        cache: Path,
        *,
        prompts: Prompts | None = None,
        device: str = "cpu",
        batch_size: int = 16,
    ) -> None:
        """Open the reference.

        Args:
            cache: Folder of reference features and finished cells.
            prompts: Embeddings to use instead of the pipelines' own text encoders.
            batch_size: Images made at once. The result does not depend on it.

        Raises:
            ValueError: If the set holds latents, or no caption.
        """
        if shards.index.latents is not None:
            raise ValueError(f"{shards.path}: holds latents; the pictures that they were made of are needed")
        self.config, self._shards, self._clip, self._cache = config, shards, clip, cache
        self._prompts, self._device, self._batch_size = prompts, device, batch_size
        self.pairs = chosen_pairs(shards, config.count, config.seed)
        self._network = feature_network(config.features, device)
        reference = reference_features(shards, config.reference, config.features, self._network, cache)
        self._meter = DistanceMeter(reference)

    def anchors(self) -> dict[str, float]:
        """Scores of the set's own images: with their captions, and with those of the next one in the set."""
        file = self._cache / "cells" / f"{self._key(['anchors'])[:32]}.json"
        if not file.is_file():
            numbers = list(dict.fromkeys(self.pairs.samples))
            captions = [self.pairs.captions[self.pairs.samples.index(number)] for number in numbers]
            images = self._shards.samples_at(numbers)
            right, wrong = TextMatch(self._clip), TextMatch(self._clip)
            right.add(images, captions)
            wrong.add(images, captions[1:] + captions[:1])
            write_json(file, {"clip_score_real": right.clip_score, "clip_score_mismatched": wrong.clip_score})
        anchors: dict[str, float] = read_json(file)
        return anchors

    def judged(self, models: Sequence[TextModel]) -> Iterator[Cell | Sampled]:
        """Yields every cell, and the progress towards it; kept cells cost nothing."""
        for model in models:
            opened: TextPipeline | None = None
            for sampler in self.config.samplers:
                file = self.cell_file(model, sampler)
                if not file.is_file():
                    opened = opened or self._opened(model)
                    yield from self._sampled(model, opened, sampler, file)
                kept = read_json(file)
                yield Cell(model.name, sampler, kept["figures"], kept["time_ms"])

    def cell_file(self, model: TextModel, sampler: TextSampler) -> Path:
        """Where a cell's figures are kept, under the hash of all that they depend on; its images lie beside it."""
        return self._cache / "cells" / f"{self._key([model.key, sampler.key])[:32]}.json"

    def shown(self, model: TextModel, sampler: TextSampler) -> Tensor:
        """The first images of a finished cell, ``[up to 8, 3, height, width]`` in [-1, 1]."""
        return load_file(self.cell_file(model, sampler).with_suffix(".safetensors"))["images"]

    def real(self) -> Tensor:
        """The set's own images of the captions that are shown."""
        return self._shards.samples_at(self.pairs.samples[:SHOWN])

    def model_key(self, model: TextModel) -> str:
        """sha256 of a model and of how it is judged, whatever the samplers."""
        return self._key([model.key])

    def _key(self, parts: list[str]) -> str:
        judged_by = self.config.model_dump(mode="json", exclude={"samplers"})
        prompts = self._prompts.fingerprint if self._prompts else ""
        known: list[Any] = [REVISION, "text", self._shards.fingerprint, self._clip.key, prompts, judged_by, *parts]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _opened(self, model: TextModel) -> TextPipeline:
        opened = open_pipeline(model.folder, device=self._device, prompts=self._prompts)
        if opened.resolution != self._shards.resolution:
            raise ValueError(
                f"{model.folder} makes images of {opened.resolution} px, "
                f"{self._shards.path} holds {self._shards.resolution} px"
            )
        return opened

    def _sampled(self, model: TextModel, opened: TextPipeline, sampler: TextSampler, file: Path) -> Iterator[Sampled]:
        features, kept, match, evaluations = [], [], TextMatch(self._clip), 0
        for start in range(0, self.config.count, self._batch_size):
            captions = self.pairs.captions[start : start + self._batch_size]
            indices = range(start, start + len(captions))
            images, evaluations = opened.images(captions, indices, sampler, seed=self.config.seed)
            features.append(features_of([images], self._network))
            match.add(images, captions)
            if start < SHOWN:
                kept.append(images)
            yield Sampled(model.name, sampler, len(captions))
        figures = self._meter(torch.cat(features)).named(self.config.features)
        figures |= {"clip_score": match.clip_score, "unet_evaluations": float(evaluations)}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": torch.cat(kept)[:SHOWN].contiguous()}, file.with_suffix(".safetensors"))
        write_json(file, {"figures": figures, "time_ms": int(time.time() * 1000)})


def by_arm(models: Sequence[TextModel], cells: Sequence[Cell], figure: str) -> dict[str, dict[int, list[float]]]:
    """By arm and NFE, a figure of each of the arm's seeds, in the order they were given in."""
    arms = {model.name: model.arm for model in models}
    series: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        series.setdefault(arms[cell.model], {}).setdefault(cell.sampler.nfe, []).append(cell.figures[figure])
    return series


def record_of(
    models: Sequence[TextModel], cells: Sequence[Cell], evaluator: TextEvaluator, clip_key: str
) -> dict[str, Any]:
    """All figures with where they come from, for a JSON file."""
    figures: dict[str, dict[str, float]] = {model.name: {} for model in models}
    for cell in cells:
        figures[cell.model] |= {f"{name}/{cell.sampler.name}": value for name, value in cell.figures.items()}
    known = {model.name: {"arm": model.arm, "sha256": model.key, "figures": figures[model.name]} for model in models}
    settings = evaluator.config.model_dump(mode="json")
    return {"settings": settings, "clip": clip_key, "anchors": evaluator.anchors(), "models": known}
