"""What a person sees while a sweep runs, read from the folders of the trials at work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.records import Assignment, load_record

POLL_SEC = 1.0


class TrialBoard:
    """A bar for the programme and one for each trial at work."""

    def __init__(self, title: str, planned: int, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )
        self._total = self._progress.add_task(title, total=planned, note="")
        self._at_work: dict[Path, tuple[TaskID, Assignment]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def shown(self) -> Iterator["TrialBoard"]:
        """Draw until the block ends; the trials' own progress is read once a second."""
        stop = threading.Event()
        reader = threading.Thread(target=self._poll, args=(stop,), daemon=True)
        with self._progress:
            reader.start()
            try:
                yield self
            finally:
                stop.set()
                reader.join()

    def begin(self, assignment: Assignment, folder: Path) -> None:
        train = assignment.config.train
        text = f"  {assignment.role} {train.network.resolution}px {assignment.key[:6]}"
        task = self._progress.add_task(text, total=round(train.budget_kpass), note="kpass")
        with self._lock:
            self._at_work[folder] = (task, assignment)

    def end(self, folder: Path, note: str) -> None:
        with self._lock:
            at_work = self._at_work.pop(folder, None)
            if at_work is not None:  # A trial whose process never came up was never begun.
                self._progress.remove_task(at_work[0])
        self._progress.update(self._total, advance=1, note=note)

    def grow(self, planned: int) -> None:
        """Correct the number of trials once it is known exactly."""
        self._progress.update(self._total, total=planned)

    def _poll(self, stop: threading.Event) -> None:
        while not stop.wait(POLL_SEC):
            with self._lock:
                at_work = dict(self._at_work)
            for folder, (task, assignment) in at_work.items():
                try:
                    curves = load_record(folder).curves
                except (ValueError, OSError):
                    continue  # The actor has not written its declaration yet.
                with self._lock:
                    if curves and self._at_work.get(folder) == (task, assignment):  # Else it ended meanwhile.
                        self._progress.update(task, completed=round(curves[-1].kpass))
