"""One config, one training run: trained, judged at its rungs, checkpointed, never run twice."""

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from atdiff_core.data.addresses import Address
from atdiff_core.data.prompts import Prompts
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.files import read_json, write_json
from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
from atdiff_core.objectives.objective import Teacher
from atdiff_core.pictures import save_grid
from atdiff_core.sharding import shard, whole
from atdiff_core.snapshots import Snapshot, load_snapshot, save_snapshot
from atdiff_core.team import ALONE, Team
from atdiff_core.text_snapshots import Surroundings
from atdiff_core.train_config import NO_TEACHER, SCRATCH
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import train
from pipeline.audit import AuditedShards
from pipeline.keeping import FolderKeeper, Keeper
from pipeline.places import Places
from pipeline.records import (
    CHECKPOINT,
    RESULT,
    SAMPLES,
    SNAPSHOT,
    Assignment,
    append_curve,
    is_complete,
    metric_after,
    rung_minibatches,
)
from pipeline.spending import TrialMeter
from pipeline.trial_events import Judged, Trained
from search_spaces.space import TrialConfig

REPORTS_PER_TRIAL = 20, 1000
"""The least and the most: between two of them nothing is kept, and no stop is heard."""
MINIBATCHES_PER_REPORT = 50


class Diverged(RuntimeError):  # noqa: N818
    """A loss or a figure is no longer a number; the next attempt starts from the beginning."""


@lru_cache(maxsize=8)
def _opened(shards: Address) -> ShardSet:
    return open_shards(shards)


@lru_cache(maxsize=8)
def _evaluator(
    config: EvaluationConfig, shards: Address, cache: Path, device: str, prompts: Prompts | None
) -> Evaluator:
    return Evaluator(config, _opened(shards), cache, device=device, prompts=prompts)


def run_trial(
    assignment: Assignment,
    places: Places,
    *,
    team: Team = ALONE,
    keeper: Keeper | None = None,
) -> Iterator[Judged | Trained]:
    """Run a trial to its end from wherever an earlier attempt left it.

    A complete trial yields its recorded result at once, and one that was left at its rung the
    judgement there: whoever decides may not have heard it. All ranks train and judge, rank 0 writes.
    The state is kept at the rung, and besides whenever ``places.resources.checkpoint_sec`` have passed.

    Args:
        team: The ranks; each of them runs this with the same arguments otherwise.
        keeper: Keeps resumable states; by default in the trial's folder.

    Raises:
        Diverged: A loss or a figure is NaN or infinite.
    """
    (complete,) = team.agreed(is_complete(places.folder))
    if complete:
        recorded = read_json(places.folder / RESULT)
        yield Judged(recorded["kpass"], recorded["values"]["metric"], final=True)
        return
    torch.set_num_threads(places.threads)
    began = saved = time.monotonic()
    meter = TrialMeter(places.folder) if team.leads else None
    config, shards = assignment.config, _opened(places.shards)
    if places.resources.audit:
        shards = AuditedShards(shards, places.folder, team)
    keeper = keeper or FolderKeeper(places.folder / CHECKPOINT)
    state = _begun(config, places, keeper, team)
    rung, kpass = rung_minibatches(config), state.minibatches * config.train.kpass_per_minibatch
    if state.minibatches == rung and (heard := metric_after(places.folder, kpass)) is not None:
        yield Judged(kpass, heard, final=False)
    budget = config.train.minibatches * config.train.kpass_per_minibatch
    least, most = REPORTS_PER_TRIAL
    every = budget / min(max(least, config.train.minibatches // MINIBATCHES_PER_REPORT), most)
    for progress in train(
        config.train,
        state,
        shards,
        report_every_kpass=every,
        stop_at=() if rung is None else (rung,),
        rank=team.rank,
        world_size=team.size,
        execution=places.execution,
        outliers=None if places.outliers is None else _opened(places.outliers),
        prompts=places.texts,
    ):
        if meter:
            meter.trained(progress.kpass - kpass)
        kpass = progress.kpass
        _check_finite(places, kpass, progress.metrics)
        if team.leads:
            append_curve(places.folder, kpass, progress.metrics)
        judged = _judge(config, places, state, kpass, team) if state.minibatches == rung else None
        overdue = time.monotonic() - saved > places.resources.checkpoint_sec
        due, stopped = team.agreed(keeper.ready and overdue, keeper.stopped)
        if judged or (due and not progress.done):
            keeper.keep(state, config.train)
            saved = time.monotonic()
        if judged:
            if meter:
                meter.judged()
            yield judged
        if stopped:
            return
        yield Trained(kpass, budget)
    finished = _finish(config, places, state, budget, began, team)
    if meter:
        meter.judged()
    yield finished


def _begun(config: TrialConfig, places: Places, keeper: Keeper, team: Team) -> TrainState:
    """The state from which this attempt goes on."""
    teacher: Teacher | None = None
    if config.train.teacher != NO_TEACHER:
        teacher = _snapshot(places.teacher, config.train.teacher, places.execution.device).teacher
    execution = places.execution
    if not execution.sharded or team.size == 1:
        return keeper.load(config.train, execution, teacher) or _fresh(config, places, execution, teacher)
    whole_first = replace(execution, device="cpu")
    state = keeper.load(config.train, whole_first, teacher) or _fresh(config, places, whole_first, teacher)
    shard(state, config.train, execution.device)
    return state


def _fresh(config: TrialConfig, places: Places, execution: Execution, teacher: Teacher | None) -> TrainState:
    """The state before the first step."""
    start: nn.Module | None = None
    if config.train.start_from != SCRATCH:
        snapshot = _snapshot(places.start, config.train.start_from)
        snapshot.check_fits(config.train.network)
        config.train.objective.check_start(snapshot.noise)
        start = snapshot.network
    return TrainState.fresh(config.train, start, execution, teacher)


def _snapshot(folder: Path, key: str, device: str = "cpu") -> Snapshot:
    snapshot = load_snapshot(folder, device)
    if snapshot.key != key:
        raise ValueError(f"the trial was made for snapshot {key[:12]}, but {folder} holds {snapshot.key[:12]}")
    return snapshot


def _judge(config: TrialConfig, places: Places, state: TrainState, kpass: float, team: Team) -> Judged:
    evaluator = _evaluator(config.evaluation, places.shards, places.cache, places.execution.device, places.texts)
    noise, first = config.train.objective.noise, config.evaluation.samplers[:1]
    (evaluated,) = evaluator.evaluate(whole(state, config.train).averaged, noise, first, team=team)
    figures = {f"eval/{name}": value for name, value in evaluator.named(evaluated).items()}
    metric = evaluator.metric(evaluated)
    _check_finite(places, kpass, {"eval/metric": metric, **figures})
    if team.leads:
        append_curve(places.folder, kpass, {"eval/metric": metric, **figures})
    return Judged(kpass, metric, final=False)


def _finish(config: TrialConfig, places: Places, state: TrainState, kpass: float, began: float, team: Team) -> Judged:
    """Judge the trained network with every sampler and write the result, which ends the trial."""
    evaluator = _evaluator(config.evaluation, places.shards, places.cache, places.execution.device, places.texts)
    state = whole(state, config.train)
    noise, network = config.train.objective.noise, state.averaged
    figures: dict[str, float] = {}
    for evaluated in evaluator.evaluate(network, noise, team=team):
        figures.setdefault("metric", evaluator.metric(evaluated))
        figures |= evaluator.named(evaluated)
        if evaluated.sampler == config.evaluation.pictured:
            pictures = evaluated.images
    figures |= evaluator.attacked(network, noise, team=team)
    _check_finite(places, kpass, figures)
    if team.leads:
        around = Surroundings(_opened(places.shards).index.latents, places.texts)
        save_snapshot(state, config.train, places.folder / SNAPSHOT, around)
        save_grid(pictures, places.folder / SAMPLES)
        append_curve(places.folder, kpass, {f"eval/{name}": value for name, value in figures.items()})
        write_json(places.folder / RESULT, {"kpass": kpass, "values": figures, "sec": time.monotonic() - began})
    return Judged(kpass, figures["metric"], final=True)


def _check_finite(places: Places, kpass: float, figures: dict[str, float]) -> None:
    """Stop at the first figure that is not a number, and have the next attempt start afresh."""
    broken = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        shutil.rmtree(places.folder / CHECKPOINT, ignore_errors=True)
        raise Diverged(f"{broken[0]} after {kpass:g} kpass")
