"""A Ray Tune ``Searcher`` that hands out a programme's trials and reports back to it."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from pipeline.programme import Programme
from pipeline.records import Assignment

Encode = Callable[[Assignment], dict[str, Any]]
"""Makes the Tune config of an assignment."""


class ProgrammeSearcher(Searcher):
    """Knows only which Tune trial runs which key; the programme's storage is the truth."""

    def __init__(self, programme: Programme, encode: Encode, room: Callable[[], int] | None = None) -> None:
        """Hand out no more trials at a time than there is ``room`` for, now; all of them without it."""
        super().__init__(metric="metric", mode="min")
        self._room = room
        self._programme = programme
        self._encode = encode
        self._keys: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str.
        if self._room is not None and self._keys and len(self._keys) >= self._room():
            return None
        assignment = self._programme.ask()
        if assignment is None:
            return Searcher.FINISHED if self._programme.finished else None
        self._keys[trial_id] = assignment.key
        return self._encode(assignment)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._programme.report(self._keys[trial_id], result["kpass"], result["metric"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Complete only at full fidelity; stopped before is pruned."""
        key = self._keys.pop(trial_id, None)
        if key is None:
            return
        if error or result is None or "metric" not in result:
            self._programme.tell(key, "failed")
        elif result["final"]:
            self._programme.tell(key, "complete", result["metric"])
        else:
            self._programme.tell(key, "pruned")

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
