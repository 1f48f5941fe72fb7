"""What can be run: something that is asked for trials and told how they ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.records import Assignment, is_complete
from pipeline.study import Outcome


class Programme(Protocol):
    """A source of trials. ``StudyProgramme`` is the one that searches."""

    def ask(self) -> Assignment | None:
        """The next trial, or ``None`` while it depends on trials that still run."""
        ...

    @property
    def finished(self) -> bool: ...

    def planned_trials(self) -> int: ...

    def report(self, key: str, kpass: float, metric: float) -> None: ...

    def tell(self, key: str, outcome: Outcome, metric: float | None = None) -> None: ...


class FixedProgramme:
    """A given list of trials, skipping those whose folders are complete (the base models)."""

    def __init__(self, assignments: Sequence[Assignment], folders: dict[str, Path]) -> None:
        self._all = list(assignments)
        self._waiting = [each for each in assignments if not is_complete(folders[each.key])]
        self._open: set[str] = set()
        self.failed: list[str] = []

    def ask(self) -> Assignment | None:
        if not self._waiting:
            return None
        assignment = self._waiting.pop(0)
        self._open.add(assignment.key)
        return assignment

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._open

    def planned_trials(self) -> int:
        return len(self._all)

    def report(self, key: str, kpass: float, metric: float) -> None:
        pass

    def tell(self, key: str, outcome: Outcome, metric: float | None = None) -> None:
        self._open.discard(key)
        if outcome == "failed":
            self.failed.append(key)
