"""Runs a programme's trials through Ray Tune until nothing is left to ask for."""

import logging
import uuid
import warnings
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial

from pipeline.actor import TrialActor, encode
from pipeline.bookkeeping import Bookkeeper, last_line
from pipeline.capacity import Demand
from pipeline.cluster import driver_share, require_room, room_for
from pipeline.searcher import KeeperStopper, ProgrammeSearcher, RungScheduler, assignment_of, judged_of
from search_spaces.resources import Resources, Workers

ON_ONE_CPU = Resources()


def tune_trials(
    keeper: Bookkeeper,
    *,
    title: str,
    storage: Path,
    cpus: float,
    workers: Workers,
    resources: Resources = ON_ONE_CPU,
) -> None:
    """Run trials side by side, each in an actor that is used again.

    Args:
        storage: Folder for Tune's own bookkeeping, which nothing is ever read back from.
        cpus: CPUs that trials may use together.
        workers: Ranks of each trial.
        resources: Of each rank.

    Raises:
        ValueError: The cluster has no room for a single trial.
    """
    trainable = type(f"Trial_{uuid.uuid4().hex[:8]}", (TrialActor,), {})  # Clusters share a registry by name.
    demand = Demand(workers, resources)
    require_room(demand, cpus)
    actor = resources.per_worker if workers == 1 else driver_share()  # Ranks reserve their own.
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([actor])),
        tune_config=tune.TuneConfig(
            search_alg=ProgrammeSearcher(
                keeper, lambda assignment: encode(assignment, keeper.places(assignment)), room_for(demand, cpus)
            ),
            scheduler=RungScheduler(keeper),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=title.replace(" ", "-"),
            storage_path=str(storage.resolve()),
            stop=KeeperStopper(keeper),
            callbacks=[_Observer(keeper)],
            failure_config=tune.FailureConfig(max_failures=0),  # The programme asks again, and remembers how often.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # Failures are told by the observer.
        tuner.fit()


class _Observer(Callback):
    """Passes Tune's events on to the bookkeeper."""

    def __init__(self, keeper: Bookkeeper) -> None:
        self._keeper = keeper

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Observer":
        return self  # Tune copies its callbacks; the keeper must stay the one the caller holds.

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that is never done.

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._keeper.began(assignment_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._keeper.changed(assignment_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if "metric" in trial.last_result:
            self._keeper.ended(assignment_of(trial), judged_of(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._keeper.failed(assignment_of(trial), last_line(trial.get_error()))
