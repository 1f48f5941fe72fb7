"""The Tune trainable: runs trials in its own process, one after another, without restarting."""

from collections.abc import Iterator
from typing import Any

from ray import tune

from pipeline.places import Places
from pipeline.records import Assignment, declare, is_complete
from pipeline.trial_events import Judged, Trained


def encode(assignment: Assignment, places: Places) -> dict[str, Any]:
    """The Tune config of a trial."""
    return {"assignment": assignment, "places": places}


class TrialActor(tune.Trainable):
    """Each step trains to the next judgement that Tune may act upon.

    The actor is reused: a trial after the first pays for no process, no import and no reference
    features. Tune's checkpoints are not used; the trial's folder is what an attempt after a
    crash continues from.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._events.close()  # type: ignore[attr-defined]
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._assignment: Assignment = config["assignment"]
        self._events: Iterator[Judged | Trained] = _events(self._assignment, config["places"])

    def cleanup(self) -> None:
        """Ranks of a trial that is stopped early end before their resources go to the next one."""
        self._events.close()  # type: ignore[attr-defined]

    def step(self) -> dict[str, Any]:
        for event in self._events:
            if isinstance(event, Judged) and (event.final or self._assignment.may_stop_early):
                return {
                    "kpass": event.kpass,
                    "metric": event.metric,
                    "final": event.final,
                    "done": event.final,
                }
        raise RuntimeError("a trial ended without its final judgement")


def _events(assignment: Assignment, places: Places) -> Iterator[Judged | Trained]:
    """All of a trial, nothing of it before the first is asked for.

    While an actor starts, Tune may give its trial to one that is free already: the folder then
    belongs to that one.
    """
    if not is_complete(places.folder):
        declare(places.folder, assignment)
    if assignment.config.workers != 1:
        from pipeline.distributed import run_distributed

        yield from run_distributed(assignment, places)
    else:
        from pipeline.trial import run_trial  # The driver, which knows this class too, never trains.

        yield from run_trial(assignment, places)
