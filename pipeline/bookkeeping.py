"""What is written around a trial, in the one order that survives a kill at any moment.

A trial's folder is written first, then the programme is told, then MLflow is given its copy. A
trial that was written and not told is asked for again and answers from its folder; one that was
told and not copied is copied when the sweep continues.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.places import Places
from pipeline.programme import Programme
from pipeline.progress import TrialBoard
from pipeline.records import Assignment, set_status
from pipeline.trial_events import Judged

Answer = TypeVar("Answer")
PlacesOf = Callable[[Assignment], Places]


class Bookkeeper:
    """Stands between whoever runs trials and the programme they belong to.

    The first error of the programme ends the run without touching the trials at work: their
    folders hold all they have done.

    Attributes:
        error: What the programme raised, if it did.
    """

    def __init__(
        self, programme: Programme, places_of: PlacesOf, board: TrialBoard, on_change: Callable[[Path], None]
    ) -> None:
        """``on_change`` is called with a trial's folder whenever it has something new."""
        self._programme, self._places_of, self._board = programme, places_of, board
        self._on_change = on_change
        self.error: Exception | None = None

    def places(self, assignment: Assignment) -> Places:
        return self._places_of(assignment)

    def ask(self) -> Assignment | None:
        """The next trial; ``None`` where there is none now, or an error ends the run."""
        return None if self.error else self._guarded(self._programme.ask)

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be run."""
        return self.error is not None or bool(self._guarded(lambda: self._programme.finished))

    @property
    def must_stop(self) -> bool:
        """Whether trials at work are to be left where they are."""
        return self.error is not None or bool(self._guarded(lambda: self._programme.must_stop))

    def began(self, assignment: Assignment) -> None:
        self._board.begin(assignment, self._folder(assignment))

    def judged(self, assignment: Assignment, judged: Judged) -> bool:
        """Whether the trial goes on."""
        goes_on = self._guarded(lambda: self._programme.report(assignment.key, judged.kpass, judged.metric))
        return goes_on is not False

    def changed(self, assignment: Assignment) -> None:
        """Pass a trial's news on."""
        self._on_change(self._folder(assignment))

    def ended(self, assignment: Assignment, judged: Judged) -> None:
        """A trial came to its end, or to the rung where it was stopped; another one will go on."""
        goes_on = self.judged(assignment, judged)
        if self.error or (goes_on and not judged.final):
            return
        if judged.final:
            self._tell(assignment, lambda: self._programme.tell(assignment.key, "complete", judged.metric))
        else:
            set_status(self._folder(assignment), "pruned", "stopped by ASHA")
            self._tell(assignment, lambda: self._programme.tell(assignment.key, "pruned"))
        self._board.end(self._folder(assignment), f"last {judged.metric:.4g}")

    def failed(self, assignment: Assignment, reason: str) -> None:
        """A trial crashed, or its loss is no longer a number; the programme may ask for it again."""
        set_status(self._folder(assignment), "failed", reason)
        self._tell(assignment, lambda: self._programme.tell(assignment.key, "failed", reason=reason))
        self._board.end(self._folder(assignment), "failed")

    def _folder(self, assignment: Assignment) -> Path:
        return self._places_of(assignment).folder

    def _tell(self, assignment: Assignment, tell: Callable[[], None]) -> None:
        self._guarded(tell)
        self.changed(assignment)

    def _guarded(self, call: Callable[[], Answer]) -> Answer | None:
        try:
            return call()
        except Exception as error:  # Ray Tune would wrap it, or go on without it.
            self.error = self.error or error
            return None


def last_line(error: object) -> str:
    """The end of an error's text, which says what happened."""
    said = str(error or "").strip().splitlines()
    return said[-1].strip() if said else "the process died"
