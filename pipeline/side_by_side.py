"""All resolutions of a ladder at once: no worker waits for the last trials of one of them."""

from collections.abc import Sequence

from pipeline.programme import Programme
from pipeline.records import Assignment
from pipeline.study import Outcome


class SideBySide:
    """Several programmes that are asked in turn; each is told of its own trials only."""

    def __init__(self, programmes: Sequence[Programme]) -> None:
        """Earlier ones are asked first whenever all wait for their turn."""
        self._turns = list(programmes)
        self._all = tuple(programmes)
        self._owners: dict[str, Programme] = {}

    def ask(self) -> Assignment | None:
        """The next trial of whichever programme has one, those that waited longest first."""
        for programme in list(self._turns):
            assignment = programme.ask()
            if assignment is not None:
                self._turns.remove(programme)
                self._turns.append(programme)
                self._owners[assignment.key] = programme
                return assignment
        return None

    @property
    def finished(self) -> bool:
        return all(programme.finished for programme in self._all)

    @property
    def must_stop(self) -> bool:
        return any(programme.must_stop for programme in self._all)

    def planned_trials(self) -> int:
        return sum(programme.planned_trials() for programme in self._all)

    def report(self, key: str, kpass: float, metric: float) -> bool:
        return self._owners[key].report(key, kpass, metric)

    def tell(self, key: str, outcome: Outcome, metric: float | None = None, reason: str = "") -> None:
        self._owners[key].tell(key, outcome, metric, reason)
