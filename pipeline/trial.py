"""One config, one training run: trained, judged at its rungs, checkpointed, never run twice."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from atdiff_core.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from atdiff_core.data.addresses import Address
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.files import read_json, write_json
from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
from atdiff_core.objectives.objective import Teacher
from atdiff_core.pictures import save_grid
from atdiff_core.snapshots import Snapshot, load_snapshot, save_snapshot
from atdiff_core.train_config import NO_TEACHER, SCRATCH
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import train
from pipeline.records import CHECKPOINT, RESULT, SAMPLES, SNAPSHOT, Assignment, append_curve, is_complete
from search_spaces.space import TrialConfig

REPORTS_PER_TRIAL = 20
CHECKPOINT_SEC = 20.0


@dataclass(frozen=True)
class Places:
    """Where a trial finds its inputs and leaves its outputs; not part of what it computes.

    Attributes:
        shards: Shard set of its resolution.
        folder: The trial's own.
        start: Snapshot that it fine-tunes; ignored by a trial that starts from scratch.
        cache: Reference features.
        threads: CPU threads of the process.
        execution: Device, memory layout and slicing.
        teacher: Snapshot that teaches it; ignored by a trial without a teacher.
        outliers: Shard set that the config's corruption takes outliers from, where it takes some.
    """

    shards: Address
    folder: Path
    start: Path
    cache: Path
    threads: int = 1
    execution: Execution = field(default_factory=Execution)
    teacher: Path = Path()
    outliers: Address | None = None


@dataclass(frozen=True)
class Judged:
    """The trial metric after ``kpass``; ``final`` once the whole budget is spent."""

    kpass: float
    metric: float
    final: bool


@dataclass(frozen=True)
class Trained:
    """Progress between judgements, for progress bars."""

    kpass: float
    budget_kpass: float


@lru_cache(maxsize=8)
def _opened(shards: Address) -> ShardSet:
    return open_shards(shards)


@lru_cache(maxsize=8)
def _evaluator(config: EvaluationConfig, shards: Address, cache: Path, device: str) -> Evaluator:
    return Evaluator(config, _opened(shards), cache, device=device)


def run_trial(
    assignment: Assignment,
    places: Places,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Judged | Trained]:
    """Run a trial to its end from wherever an earlier attempt left it.

    A complete trial yields its recorded result at once. Rank 0 alone judges and writes. The
    state is checkpointed at the rung, and besides whenever ``CHECKPOINT_SEC`` have passed.
    """
    if is_complete(places.folder):
        recorded = read_json(places.folder / RESULT)
        yield Judged(recorded["kpass"], recorded["values"]["metric"], final=True)
        return
    torch.set_num_threads(places.threads)
    began = saved = time.monotonic()
    config, shards = assignment.config, _opened(places.shards)
    state = _state(config, places)
    budget = config.train.minibatches * config.train.kpass_per_minibatch
    rungs = [max(1, round(config.train.minibatches * config.rung))] if config.rung < 1 else []
    every = budget / REPORTS_PER_TRIAL
    for progress in train(
        config.train,
        state,
        shards,
        report_every_kpass=every,
        stop_at=rungs,
        rank=rank,
        world_size=world_size,
        execution=places.execution,
        outliers=None if places.outliers is None else _opened(places.outliers),
    ):
        if rank == 0:
            append_curve(places.folder, progress.kpass, progress.metrics)
            rung = state.minibatches in rungs and not progress.done
            judged = _judge(config, places, state, progress.kpass) if rung else None
            if rung or time.monotonic() - saved > CHECKPOINT_SEC:
                save_checkpoint(state, config.train, places.folder / CHECKPOINT)
                saved = time.monotonic()
            if judged:
                yield judged
        yield Trained(progress.kpass, budget)
    if rank == 0:
        yield _finish(config, places, state, budget, began)


def _state(config: TrialConfig, places: Places) -> TrainState:
    teacher: Teacher | None = None
    if config.train.teacher != NO_TEACHER:
        teacher = _snapshot(places.teacher, config.train.teacher, places.execution.device).teacher
    if has_checkpoint(places.folder / CHECKPOINT):
        return load_checkpoint(config.train, places.folder / CHECKPOINT, places.execution, teacher)
    start: nn.Module | None = None
    if config.train.start_from != SCRATCH:
        snapshot = _snapshot(places.start, config.train.start_from)
        snapshot.check_fits(config.train.network)
        config.train.objective.check_start(snapshot.noise)
        start = snapshot.network
    return TrainState.fresh(config.train, start, places.execution, teacher)


def _snapshot(folder: Path, key: str, device: str = "cpu") -> Snapshot:
    snapshot = load_snapshot(folder, device)
    if snapshot.key != key:
        raise ValueError(f"the trial was made for snapshot {key[:12]}, but {folder} holds {snapshot.key[:12]}")
    return snapshot


def _judge(config: TrialConfig, places: Places, state: TrainState, kpass: float) -> Judged:
    evaluator = _evaluator(config.evaluation, places.shards, places.cache, places.execution.device)
    first = config.evaluation.samplers[:1]
    (evaluated,) = evaluator.evaluate(state.averaged, config.train.objective.noise, first)
    figures = {f"eval/{name}": value for name, value in evaluator.named(evaluated).items()}
    metric = evaluator.metric(evaluated)
    append_curve(places.folder, kpass, {"eval/metric": metric, **figures})
    return Judged(kpass, metric, final=False)


def _finish(config: TrialConfig, places: Places, state: TrainState, kpass: float, began: float) -> Judged:
    """Judge the trained network with every sampler and write the result, which ends the trial."""
    evaluator = _evaluator(config.evaluation, places.shards, places.cache, places.execution.device)
    noise, network = config.train.objective.noise, state.averaged
    figures: dict[str, float] = {}
    for evaluated in evaluator.evaluate(network, noise):
        figures.setdefault("metric", evaluator.metric(evaluated))
        figures |= evaluator.named(evaluated)
        pictures = evaluated.images
    figures |= evaluator.attacked(network, noise)
    save_snapshot(state, config.train, places.folder / SNAPSHOT)
    save_grid(pictures, places.folder / SAMPLES)
    append_curve(places.folder, kpass, {f"eval/{name}": value for name, value in figures.items()})
    write_json(places.folder / RESULT, {"kpass": kpass, "values": figures, "sec": time.monotonic() - began})
    return Judged(kpass, figures["metric"], final=True)
