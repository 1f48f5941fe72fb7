"""What can be run: something that is asked for trials and told how they ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.records import Assignment, is_complete
from pipeline.study import Outcome

RETRIES = 1


class Programme(Protocol):
    """A source of trials. ``StudyProgramme`` is the one that searches."""

    def ask(self) -> Assignment | None:
        """The next trial, or ``None`` while it depends on trials that still run."""
        ...

    @property
    def finished(self) -> bool: ...

    @property
    def must_stop(self) -> bool:
        """Whether trials at work are to be left at their checkpoints."""
        ...

    def planned_trials(self) -> int: ...

    def report(self, key: str, kpass: float, metric: float) -> bool:
        """Record an intermediate value; whether the trial goes on past it."""
        ...

    def tell(self, key: str, outcome: Outcome, metric: float | None = None, reason: str = "") -> None: ...


class FixedProgramme:
    """A given list of trials, skipping those whose folders are complete (the base models)."""

    def __init__(self, assignments: Sequence[Assignment], folders: dict[str, Path], retries: int = RETRIES) -> None:
        self._all = list(assignments)
        self._waiting = [each for each in assignments if not is_complete(folders[each.key])]
        self._open: dict[str, Assignment] = {}
        self._retries = retries
        self.failures: dict[str, int] = {}

    def ask(self) -> Assignment | None:
        if not self._waiting:
            return None
        assignment = self._waiting.pop(0)
        self._open[assignment.key] = assignment
        return assignment

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._open

    @property
    def must_stop(self) -> bool:
        return False

    def planned_trials(self) -> int:
        return len(self._all)

    def report(self, key: str, kpass: float, metric: float) -> bool:
        return True

    def tell(self, key: str, outcome: Outcome, metric: float | None = None, reason: str = "") -> None:
        assignment = self._open.pop(key, None)
        if outcome == "failed" and assignment is not None:
            self.failures[key] = self.failures.get(key, 0) + 1
            if self.failures[key] <= self._retries:
                self._waiting.append(assignment)
