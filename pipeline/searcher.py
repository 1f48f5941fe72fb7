"""Ray Tune's searcher and trial scheduler, which only pass on what the bookkeeper says."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from pipeline.bookkeeping import Bookkeeper
from pipeline.records import Assignment
from pipeline.trial_events import Judged

Encode = Callable[[Assignment], dict[str, Any]]
"""Makes the Tune config of an assignment."""


class ProgrammeSearcher(Searcher):
    """Hands out trials; how they end is told by the callback that sees their folders."""

    def __init__(self, keeper: Bookkeeper, encode: Encode, room: Callable[[], int] | None = None) -> None:
        """Hand out no more trials at a time than there is ``room`` for, now; all of them without it."""
        super().__init__(metric="metric", mode="min")
        self._keeper, self._encode, self._room = keeper, encode, room
        self._at_work: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str.
        if self._room is not None and self._at_work and len(self._at_work) >= self._room():
            return None
        assignment = self._keeper.ask()
        if assignment is None:
            return Searcher.FINISHED if self._keeper.finished else None
        self._at_work.add(trial_id)
        return self._encode(assignment)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """How it ended is told by the callback, after the trial's folder."""
        self._at_work.discard(trial_id)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProgrammeSearcher":
        """Tune copies its searcher; the programme must stay the one the caller holds."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for a restore that is never done."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the programme's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the programme's storage has it all."""


class RungScheduler(FIFOScheduler):
    """Stops a trial where the programme says so: rungs survive the driver, Tune's own would not."""

    def __init__(self, keeper: Bookkeeper) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keeper = keeper

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        goes_on = self._keeper.judged(assignment_of(trial), judged_of(result))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def __deepcopy__(self, memo: dict[int, Any]) -> "RungScheduler":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class KeeperStopper(Stopper):
    """Ends the whole run where the bookkeeper cannot go on."""

    def __init__(self, keeper: Bookkeeper) -> None:
        self._keeper = keeper

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._keeper.must_stop

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeeperStopper":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


def judged_of(result: dict[str, Any]) -> Judged:
    return Judged(result["kpass"], result["metric"], result["final"])


def assignment_of(trial: Trial) -> Assignment:
    """What a Tune trial runs."""
    assignment: Assignment = trial.config["assignment"]
    return assignment
