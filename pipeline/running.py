"""Runs a programme from where it stands to its end, whoever executes its trials."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.bookkeeping import Bookkeeper, PlacesOf
from pipeline.programme import Programme
from pipeline.progress import TrialBoard

Execute = Callable[[Bookkeeper], None]
"""Runs trials until the bookkeeper has no more: through Ray Tune, or in this process."""


class Interrupted(Exception):  # noqa: N818
    """The programme was stopped before its end; the same command continues it."""


def run_programme(
    programme: Programme,
    places_of: PlacesOf,
    execute: Execute,
    *,
    title: str,
    on_change: Callable[[Path], None],
    console: Console,
) -> None:
    """Run every trial of the programme.

    Args:
        places_of: Where a trial finds its inputs and leaves its outputs.
        on_change: Called with a trial's folder whenever it has something new.

    Raises:
        Interrupted: Ctrl-C, or trials that could not be finished.
    """
    if programme.finished:
        return
    board = TrialBoard(title, programme.planned_trials(), console)
    keeper = Bookkeeper(programme, places_of, board, on_change)
    with board.shown():
        execute(keeper)
    if keeper.error:
        raise keeper.error
    if not programme.finished:
        raise Interrupted
