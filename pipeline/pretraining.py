"""Pretraining with a bar, saved as it goes: Ctrl-C loses seconds at most."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from atdiff_core.data.stream import ShardSet
from atdiff_core.files import read_json, write_json
from atdiff_core.pretraining.loop import PretrainingState, Schedule, Task, pretraining, restore_state, save_state

DONE = "pretrained.json"
SAVE_SECONDS = 20.0


def finished(folder: Path, key: str) -> dict[str, float] | None:
    """The figures of a pretraining that was finished in this folder, ``None`` if there is none.

    Raises:
        ValueError: It was another one.
    """
    if not (folder / DONE).is_file():
        return None
    known = read_json(folder / DONE)
    if known["key"] != key:
        raise ValueError(f"{folder}: holds a model of other settings or of other data; choose another --out")
    figures: dict[str, float] = known["figures"]
    return figures


def run_pretraining(
    task: Task, schedule: Schedule, state: PretrainingState, shards: ShardSet, folder: Path, *, key: str
) -> None:
    """Train to the end, from where a former call was interrupted."""
    restore_state(state, key, folder)
    console, saved_at = Console(), time.monotonic()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        bar = progress.add_task("pretraining", total=schedule.steps, completed=state.steps)
        for report in pretraining(task, schedule, state, shards):
            told = ", ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
            progress.update(bar, completed=report.step, description=told)
            if time.monotonic() - saved_at > SAVE_SECONDS or report.step == report.steps:
                save_state(state, key, folder)
                saved_at = time.monotonic()


def finish(folder: Path, key: str, figures: dict[str, float]) -> None:
    """Note that the model is written, and what is known of it."""
    write_json(folder / DONE, {"key": key, "figures": figures})
