"""Runs a programme's trials one after another in this process, without Ray."""

from collections.abc import Iterator

from pipeline.bookkeeping import Bookkeeper, last_line
from pipeline.places import Places
from pipeline.records import Assignment, declare, is_complete
from pipeline.trial import run_trial
from pipeline.trial_events import Judged, Trained


def run_inline(keeper: Bookkeeper) -> None:
    """Run trials until nothing is left to ask for; the order of events is that of Ray Tune."""
    while not keeper.must_stop and (assignment := keeper.ask()) is not None:
        keeper.began(assignment)
        for event in _events(assignment, keeper.places(assignment)):
            if keeper.must_stop:
                return
            if isinstance(event, str):
                keeper.failed(assignment, event)
            elif isinstance(event, Judged) and (event.final or assignment.may_stop_early):
                goes_on = event.final or keeper.judged(assignment, event)
                keeper.changed(assignment)
                if event.final or not goes_on:
                    keeper.ended(assignment, event)
                    break


def _events(assignment: Assignment, places: Places) -> Iterator[Judged | Trained | str]:
    """What happens in a trial; where it fails, why, at the end."""
    try:
        if not is_complete(places.folder):
            declare(places.folder, assignment)
        yield from run_trial(assignment, places)
    except Exception as error:
        yield f"{type(error).__name__}: {last_line(error)}"
