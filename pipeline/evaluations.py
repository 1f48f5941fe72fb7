"""Models judged by several samplers at several NFE, cell by cell; a finished cell is never done twice."""

import csv
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atdiff_core.data.stream import ShardSet
from atdiff_core.files import read_json, sha256_of, write_json
from atdiff_core.metrics.evaluation import Evaluated, EvaluationConfig, Evaluator
from atdiff_core.samplers import Sampler
from atdiff_core.snapshots import Snapshot, load_snapshot
from atdiff_core.text_sampling import TextSampler

REVISION = 1
"""Part of every cell's key: to be raised when the same settings give other figures."""


@dataclass(frozen=True)
class Model:
    """A snapshot under the name it has in tables and figures.

    Attributes:
        sha256: Of the weights and the network's configuration.
    """

    name: str
    snapshot: Snapshot
    sha256: str


@dataclass(frozen=True)
class Cell:
    """One model, one sampler at one NFE.

    Attributes:
        figures: What was measured, by name, say ``fd_efflite0_64``.
        time_ms: When it was finished, in milliseconds since 1970.
    """

    model: str
    sampler: Sampler | TextSampler
    figures: dict[str, float]
    time_ms: int


@dataclass(frozen=True)
class Sampled:
    """Progress inside a cell: so many images more."""

    model: str
    sampler: Sampler | TextSampler
    images: int


def opened_models(arguments: Sequence[str], dataset: ShardSet, device: str) -> list[Model]:
    """Snapshots given as ``FOLDER`` or ``NAME=FOLDER``; without a name the folder is the name.

    Raises:
        ValueError: A name occurs twice, or a model makes other images than the dataset holds.
    """
    models: dict[str, Model] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals or Path(argument).exists():
            name, folder = argument, argument
        if name in models:
            raise ValueError(f"every snapshot needs a name of its own (NAME=FOLDER), got {name!r} twice")
        models[name] = Model(name, load_snapshot(Path(folder), device), _sha256(Path(folder)))
        models[name].snapshot.check_needs_no_prompt(folder)
        shape = models[name].snapshot.image_shape
        if shape != (dataset.image_channels, dataset.resolution, dataset.resolution):
            raise ValueError(
                f"{folder} makes images of shape {shape}, {dataset.path} holds "
                f"{dataset.image_channels} channels at {dataset.resolution} px"
            )
    return list(models.values())


def check_samplers(models: Sequence[Model], samplers: Sequence[Sampler]) -> None:
    """Refuse at once what would fail after hours.

    Raises:
        ValueError: A sampler occurs twice, does not fit a model's noise schedule, or needs a
            learned variance that a model lacks.
    """
    names = [sampler.name for sampler in samplers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"every sampler may be named once, got {name} {names.count(name)} times")
    for model in models:
        for sampler in samplers:
            sampler.check_steps(model.snapshot.noise)
            if sampler.kind == "iddpm" and not model.snapshot.learned_variance:
                raise ValueError(f"iddpm needs a network with a learned variance, {model.name} has none; use ancestral")


def judged(models: Sequence[Model], evaluator: Evaluator, dataset: str, folder: Path) -> Iterator[Cell | Sampled]:
    """Yields every cell of the models and the evaluator's samplers, and the progress towards it.

    Args:
        dataset: Fingerprint of what the evaluator compares with.
        folder: Where finished cells are kept, one file each, under the hash of all they depend on:
            interrupted and started again, the work goes on where it was.
    """
    for model in models:
        for sampler in evaluator.config.samplers:
            file = folder / f"{cell_key(model, sampler, evaluator.config, dataset)[:32]}.json"
            if not file.is_file():
                yield from _sampled(model, sampler, evaluator, file)
            kept = read_json(file)
            yield Cell(model.name, sampler, kept["figures"], kept["time_ms"])


def _sampled(model: Model, sampler: Sampler, evaluator: Evaluator, file: Path) -> Iterator[Sampled]:
    before = 0
    for event in evaluator.judge(model.snapshot.network, model.snapshot.noise, sampler):
        if isinstance(event, Evaluated):
            write_json(file, {"figures": event.figures, "time_ms": int(time.time() * 1000)})
            return
        yield Sampled(model.name, sampler, event - before)
        before = event


def cell_key(model: Model, sampler: Sampler, settings: EvaluationConfig, dataset: str) -> str:
    """sha256 of all that the figures of a cell depend on."""
    return _hash([evaluation_key(model, settings, dataset), sampler.key])


def evaluation_key(model: Model, settings: EvaluationConfig, dataset: str) -> str:
    """The same without the sampler: one model, judged on one dataset in one way."""
    judged_by = settings.model_dump(mode="json", exclude={"samplers", "distance"})
    return _hash([REVISION, model.sha256, model.snapshot.noise.key, dataset, judged_by])


def record_of(models: Sequence[Model], cells: Sequence[Cell], settings: EvaluationConfig, dataset: str) -> Any:
    """All figures with where they come from, for a JSON file."""
    figures: dict[str, dict[str, float]] = {model.name: {} for model in models}
    for cell in cells:
        figures[cell.model] |= {f"{name}/{cell.sampler.name}": value for name, value in cell.figures.items()}
    known = {
        model.name: {"snapshot": model.snapshot.key, "sha256": model.sha256, "figures": figures[model.name]}
        for model in models
    }
    return {"dataset": dataset, "settings": settings.model_dump(mode="json"), "models": known}


def write_csv(path: Path, cells: Sequence[Cell]) -> None:
    """A row a cell, a column a figure."""
    names = list(cells[0].figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "sampler", "nfe", *names])
        for cell in cells:
            rows.writerow([cell.model, cell.sampler.label, cell.sampler.nfe, *(cell.figures[name] for name in names)])


def _sha256(folder: Path) -> str:
    network = folder / "unet"
    return _hash(
        [sha256_of(file) for file in (network / "diffusion_pytorch_model.safetensors", network / "config.json")]
    )


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
