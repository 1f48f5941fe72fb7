"""Copying trials to MLflow beside the sweep, waiting out a server that is away.

Trials write ahead: each point goes to the trial's own folder first, and only from there to
MLflow. So nothing that happens to MLflow stops a trial, and nothing is lost by it: a folder that
could not be copied stays marked and is copied whole later. Copying is idempotent (see
``pipeline.tracking``), so an answer that was lost does no harm either.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

FIRST_PAUSE_SEC, LONGEST_PAUSE_SEC = 0.5, 10.0
PATIENCE_SEC = 60.0
GATHER_SEC = 0.2
"""What a trial has to say comes in bursts: the thread lets the driver end one, and copies it at once."""
SILENCES = ("connection refused", "connection reset", "timed out", "remote end closed connection")


class BackgroundCopy:
    """Marks folders and copies them in a thread of its own, one after the other.

    MLflow has one writer still: nothing else may write to it while the thread lives.
    """

    def __init__(self, copy: Callable[[Path], None], console: Console) -> None:
        """Start the thread.

        Args:
            copy: Copies one trial's folder, idempotently; raises where MLflow does not take it.
        """
        self._copy = copy
        self._console = console
        self._marked: dict[Path, int] = {}  # In order of arrival, with the number of the last mark.
        self._marks = 0
        self._failed: dict[Path, str] = {}
        self._hurried, self._ending = False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow-copy", daemon=True)
        self._thread.start()

    def copy_trial(self, folder: Path) -> None:
        """Mark a trial's folder as having something new; returns at once."""
        with self._changed:
            self._marks += 1
            self._marked[folder] = self._marks
            self._changed.notify_all()

    def copy_all(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            self.copy_trial(folder)

    def settle(self, patience_sec: float) -> int:
        """Wait until everything marked is copied; the number of folders that still are not."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._marked, timeout=patience_sec)
            self._hurried = False
            return len(self._marked)

    def end(self) -> None:
        """Let the thread go once its present request is over."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    @property
    def last_error(self) -> str:
        """What MLflow said last about a folder that it did not take; empty where there is none."""
        return next(reversed(self._failed.values()), "")

    def _work(self) -> None:
        pause = FIRST_PAUSE_SEC
        while True:
            with self._changed:
                if not self._marked:
                    self._changed.wait_for(lambda: self._marked or self._ending)
                    self._changed.wait_for(lambda: self._hurried or self._ending, timeout=GATHER_SEC)
                if self._ending:
                    return
                folder, mark = next(iter(self._marked.items()))
            try:
                self._copy(folder)
            except Exception as error:  # MLflow, its HTTP client and its databases have each their own.
                self._refused(folder, error)
                with self._changed:
                    self._marked[folder] = self._marked.pop(folder)  # To the end: others may fare better.
                    self._changed.wait_for(lambda: self._ending, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE_SEC)
                continue
            pause = FIRST_PAUSE_SEC
            self._taken(folder)
            with self._changed:
                if self._marked[folder] == mark:  # Else it changed meanwhile, and is copied again.
                    del self._marked[folder]
                self._changed.notify_all()

    def _refused(self, folder: Path, error: Exception) -> None:
        if not self._failed:
            self._console.print(
                f"[yellow]MLflow does not take what we copy ({escape(_first_line(error))}); the trials go on, "
                "their curves wait in their folders[/]"
            )
        self._failed[folder] = _first_line(error)

    def _taken(self, folder: Path) -> None:
        if self._failed.pop(folder, None) and not self._failed:
            self._console.print("[green]MLflow answers again; what waited is copied[/]")


def _first_line(error: Exception) -> str:
    """What went wrong, without the many words in which an HTTP client wraps it."""
    said = str(error).strip() or type(error).__name__
    known = next((reason for reason in SILENCES if reason.lower() in said.lower()), None)
    return known or said.splitlines()[0][:200]


@contextmanager
def copying(copy: Callable[[Path], None], console: Console) -> Iterator[BackgroundCopy]:
    """A background copy for the length of a block, with patience at its end.

    What is left when patience ends is not lost: the folders have it, and ``atdiff sync`` or the
    next start of the same command copies it.
    """
    copies = BackgroundCopy(copy, console)
    finished = False
    try:
        yield copies
        finished = True
    finally:
        left = copies.settle(PATIENCE_SEC if finished else FIRST_PAUSE_SEC)
        copies.end()
        if left and finished:
            console.print(
                f"[yellow]{left} trials are not in MLflow yet ({escape(copies.last_error)}); "
                "`atdiff sync FOLDER` copies them when it is back[/]"
            )
