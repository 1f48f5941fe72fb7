"""Runs a programme's trials through Ray Tune until nothing is left to ask for."""

import logging
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console

from pipeline.actor import TrialActor, encode
from pipeline.capacity import Demand
from pipeline.cluster import driver_share, require_room, room_for
from pipeline.programme import Programme
from pipeline.progress import TrialBoard
from pipeline.records import Assignment, is_complete, set_status
from pipeline.searcher import ProgrammeSearcher
from pipeline.trial import Places
from search_spaces.resources import Resources, Workers
from search_spaces.space import Space, TrialConfig

ON_ONE_CPU = Resources()
PlacesOf = Callable[[Assignment], Places]
MAX_FAILURES = 1


class Interrupted(Exception):  # noqa: N818
    """The programme was stopped before its end; the same command continues it."""


def run_programme(
    programme: Programme,
    places_of: PlacesOf,
    *,
    title: str,
    storage: Path,
    cpus: float,
    workers: Workers,
    resources: Resources = ON_ONE_CPU,
    scheduler: TrialScheduler | None,
    on_change: Callable[[Path], None],
    console: Console,
) -> None:
    """Run every trial of the programme.

    Args:
        places_of: Where a trial finds its inputs and leaves its outputs.
        storage: Folder for Tune's own bookkeeping, which nothing is ever read back from.
        cpus: CPUs that trials may use together.
        workers: Ranks of each trial.
        resources: Of each rank.
        scheduler: Stops trials early; ``None`` lets all of them finish.
        on_change: Called with a trial's folder whenever it has something new.

    Raises:
        Interrupted: Ctrl-C, or trials that could not be finished.
        ValueError: The cluster has no room for a single trial.
    """
    if programme.finished:
        return
    board = TrialBoard(title, programme.planned_trials(), console)
    observer = _Observer(places_of, board, on_change)
    trainable = type(f"Trial_{uuid.uuid4().hex[:8]}", (TrialActor,), {})  # Clusters share a registry by name.
    demand = Demand(workers, resources)
    require_room(demand, cpus)
    actor = resources.per_worker if workers == 1 else driver_share()  # Ranks reserve their own.
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([actor])),
        tune_config=tune.TuneConfig(
            search_alg=ProgrammeSearcher(
                programme, lambda assignment: encode(assignment, places_of(assignment)), room_for(demand, cpus)
            ),
            scheduler=scheduler or FIFOScheduler(),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=title.replace(" ", "-"),
            storage_path=str(storage.resolve()),
            callbacks=[observer],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with board.shown(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # Failures are told by the observer.
        tuner.fit()
    if not programme.finished:
        raise Interrupted


def trial_scheduler(space: Space) -> TrialScheduler | None:
    """ASHA over ``kpass`` with a single rung, keeping most trials."""
    stopping = space.stopping
    if stopping.rung >= 1:
        return None
    budget = space.finetuning.budget_kpass
    return AsyncHyperBandScheduler(
        time_attr="kpass",
        metric="metric",
        mode="min",
        max_t=2 * budget,  # type: ignore[arg-type]  # The trial ends itself; ASHA must not end it just before.
        grace_period=0.9 * budget * stopping.rung,  # type: ignore[arg-type]  # K replays round the rung down by a minibatch.
        reduction_factor=1 / stopping.keep,
    )


class _Observer(Callback):
    """Passes Tune's events on to the board and to whoever copies the folders."""

    def __init__(self, places_of: PlacesOf, board: TrialBoard, on_change: Callable[[Path], None]) -> None:
        self._places_of = places_of
        self._board = board
        self._on_change = on_change

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Observer":
        return self  # Tune copies its callbacks; the board must stay the one that is drawn.

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that is never done.

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = _assignment(trial)
        self._board.begin(assignment, self._places_of(assignment).folder)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._on_change(self._places_of(_assignment(trial)).folder)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        folder = self._places_of(_assignment(trial)).folder
        if not is_complete(folder):
            set_status(folder, "pruned", "stopped by ASHA")
        self._on_change(folder)
        metric = trial.last_result.get("metric")
        self._board.end(folder, f"last {metric:.4g}" if metric is not None else "")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        folder = self._places_of(_assignment(trial)).folder
        said = str(trial.get_error() or "").strip().splitlines()
        set_status(folder, "failed", said[-1] if said else "the process died")
        self._on_change(folder)
        self._board.end(folder, "failed")


def _assignment(trial: Trial) -> Assignment:
    config = trial.config
    return Assignment(TrialConfig.model_validate(config["config"]), config["role"], config["of"])
