"""The ladder of studies: base models, searches, the law, the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from atdiff_core.data.stream import ShardSet, open_shards
from pipeline.cluster import ray_session
from pipeline.programme import FixedProgramme, Programme
from pipeline.records import SNAPSHOT, TRIAL, Assignment, Role, load_records
from pipeline.results import SweepResult, load_result
from pipeline.study import StudyProgramme
from pipeline.tracking import Tracker
from pipeline.trial import Places
from pipeline.tuning import run_programme, trial_scheduler
from pipeline.workspace import Workspace
from search_spaces.space import Space, TrialConfig


@dataclass(frozen=True)
class Rung:
    """One resolution of the ladder: its data and its base model."""

    shards: ShardSet
    folder: Path
    base: TrialConfig


def run_sweep(space: Space, root: Path, *, cpus: int | None = None, console: Console | None = None) -> SweepResult:
    """Run a sweep, or continue it: the same call after any interruption.

    Everything is checked before anything starts. Finished trials are never run again.

    Args:
        root: Folder that holds sweeps, one below the other, and the MLflow database.
        cpus: CPUs to use on this machine, all of them where ``None``.

    Raises:
        ValueError: Missing shards, or the name belongs to another configuration.
        Interrupted: Ctrl-C.
    """
    console = console or Console()
    workspace = Workspace(root, space.name)
    rungs = {resolution: _rung(space, resolution) for resolution in space.ladder}
    workspace.check_disk()
    workspace.claim(space)
    with workspace.locked():
        tracker = Tracker(workspace, space)
        tracker.copy_all(_folders(workspace))  # What a killed driver did not copy.
        with ray_session(cpus, dashboard=space.workers > 1) as available:
            _run_ladder(space, rungs, workspace, tracker, available, console)
        tracker.copy_all(_folders(workspace))
    return load_result(workspace)


def _run_ladder(
    space: Space, rungs: dict[int, Rung], workspace: Workspace, tracker: Tracker, cpus: int, console: Console
) -> None:
    """Base models of all resolutions first, then one study after the other."""

    def places_of(assignment: Assignment) -> Places:
        rung = rungs[assignment.config.train.network.resolution]
        return Places(
            shards=rung.folder.resolve(),
            folder=workspace.trial(assignment.key).resolve(),
            start=(workspace.trial(rung.base.key) / SNAPSHOT).resolve(),
            cache=workspace.cache.resolve(),
        )

    def run(programme: Programme, title: str, scheduler: TrialScheduler | None) -> None:
        run_programme(
            programme,
            places_of,
            title=title,
            storage=workspace.folder / "ray",
            cpus=cpus,
            workers=space.workers,
            scheduler=scheduler,
            on_change=tracker.copy_trial,
            console=console,
        )

    run(_base_programme(list(rungs.values()), workspace), "base models", None)
    for resolution, rung in rungs.items():
        _require_complete(workspace, resolution, "base")
        run(StudyProgramme(space, rung.base, workspace.study_uri), f"study {resolution}px", trial_scheduler(space))
        _require_complete(workspace, resolution, "search")


def _require_complete(workspace: Workspace, resolution: int, role: Role) -> None:
    """Stop with the first failure's own words where no trial of a role came through."""
    records = load_records(workspace.folder / "trials")
    here = [record for record in records if (record.resolution, record.assignment.role) == (resolution, role)]
    failed = [record for record in here if record.status == "failed"]
    if failed and not any(record.status == "complete" for record in here):
        raise ValueError(
            f"all {len(failed)} {role} trials at {resolution} px failed; the first ({failed[0].folder}) says: "
            f"{failed[0].reason}"
        )


def _rung(space: Space, resolution: int) -> Rung:
    folder = Path(space.shards) / f"{resolution}px"
    shards = open_shards(folder)
    if shards.image_channels != space.network.image_channels:
        raise ValueError(
            f"the network takes {space.network.image_channels} channels, {folder} holds {shards.image_channels}"
        )
    return Rung(shards, folder, space.base_config(resolution, shards.fingerprint))


def _base_programme(rungs: Sequence[Rung], workspace: Workspace) -> FixedProgramme:
    """Base models, the largest first, so that no core waits long for the last one."""
    largest_first = sorted(rungs, key=lambda rung: -rung.shards.resolution)
    assignments = [Assignment(rung.base, "base") for rung in largest_first]
    return FixedProgramme(assignments, {each.key: workspace.trial(each.key) for each in assignments})


def _folders(workspace: Workspace) -> list[Path]:
    return sorted(file.parent for file in (workspace.folder / "trials").glob(f"*/{TRIAL}"))
