"""The ladder of studies: base models, searches, the law, the report."""

from functools import partial
from pathlib import Path

from rich.console import Console

from pipeline.driver import driving, open_rung
from pipeline.results import SweepResult, load_result
from pipeline.study import StudyProgramme
from pipeline.tuning import trial_scheduler
from pipeline.workspace import Workspace
from search_spaces.space import Space


def run_sweep(
    space: Space, root: Path, *, cpus: int | None = None, console: Console | None = None, tracking: str | None = None
) -> SweepResult:
    """Run a sweep, or continue it: the same call after any interruption.

    Everything is checked before anything starts. Finished trials are never run again. Base models
    of all resolutions come first, then one study after the other.

    Args:
        root: Folder that holds sweeps, one below the other, and the MLflow database.
        cpus: CPUs to use on this machine, all of them where ``None``.
        tracking: Address of an MLflow; the root's own file where ``None``.

    Raises:
        ValueError: Missing shards, the name belongs to another configuration, or MLflow does not answer.
        Interrupted: Ctrl-C.
    """
    workspace = Workspace(root, space.name, tracking)
    rungs = [
        open_rung(space.shards, space.network.at(resolution), partial(space.base_config, resolution))
        for resolution in space.ladder
    ]
    with driving(space, rungs, workspace, cpus=cpus, console=console or Console()) as driver:
        driver.run_bases()
        for rung in rungs:
            resolution = rung.shards.resolution
            study = StudyProgramme(space, rung.base, workspace.study_uri)
            driver.run(study, f"study {resolution}px", trial_scheduler(space))
            driver.require_complete(resolution, "search")
    return load_result(workspace)
