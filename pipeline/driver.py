"""What drives trials: one process that holds a workspace, a cluster and the MLflow records."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from atdiff_core.data.addresses import Address, anywhere, joined
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.networks import UNet
from atdiff_core.train_state import Execution
from pipeline.background_copy import BackgroundCopy, copying
from pipeline.cluster import ray_session
from pipeline.nodes import require_fit
from pipeline.programme import FixedProgramme, Programme
from pipeline.records import SNAPSHOT, Assignment, Role, load_records
from pipeline.tracking import Tracker
from pipeline.trial import Places
from pipeline.tuning import run_programme
from pipeline.workspace import Declared, Workspace
from search_spaces.resources import Resources, Workers
from search_spaces.space import TrialConfig


@dataclass(frozen=True)
class Rung:
    """One resolution: its data and its base model.

    Attributes:
        base: The base model's trial, or the pattern of all trials where there is none.
        start: Snapshot of a base model that no trial here makes; the base trial's without it.
        teacher: Snapshot of a teacher that is not the base model.
    """

    shards: ShardSet
    folder: Address
    base: TrialConfig
    start: Path | None = None
    teacher: Path | None = None


def open_rung(
    shards: str,
    network: UNet,
    base_config: Callable[[str], TrialConfig],
    start: Path | None = None,
    teacher: Path | None = None,
) -> Rung:
    """The shard set of the network's resolution, and the base model on it.

    Args:
        shards: Folder of ``<resolution>px`` shard sets, or a remote address of one.
        base_config: From the fingerprint of a dataset to the base model.
        start: Snapshot of a base model that exists already.
        teacher: Snapshot of a teacher that is not the base model.
    """
    folder = joined(shards, f"{network.resolution}px")
    opened = open_shards(folder)
    if opened.image_channels != network.image_channels:
        raise ValueError(f"the network takes {network.image_channels} channels, {folder} holds {opened.image_channels}")
    return Rung(opened, folder, base_config(opened.fingerprint), start, teacher)


@contextmanager
def driving(
    declared: Declared, rungs: Sequence[Rung], workspace: Workspace, *, cpus: int | None, console: Console
) -> Iterator["Driver"]:
    """Claim the workspace, start or join Ray, and copy to MLflow whatever the folders hold."""
    workspace.check_disk()
    workspace.claim(declared)
    sets = [rung.shards.index for rung in rungs]
    with workspace.locked(), copying(Tracker(workspace, declared, sets).copy_trial, console) as copy:
        copy.copy_all(workspace.trial_folders())  # What a killed driver did not copy.
        with ray_session(cpus, dashboard=declared.workers != 1) as available:
            if os.environ.get("RAY_ADDRESS"):
                require_fit(workspace.folder.resolve())
            yield Driver(tuple(rungs), workspace, copy, available, declared.workers, declared.resources, console)
        copy.copy_all(workspace.trial_folders())


@dataclass(frozen=True)
class Driver:
    """Runs programmes one after the other.

    Attributes:
        rungs: Data and base models, one a resolution.
        copy: Told of every trial that has something new for MLflow.
        cpus: CPUs that trials may use together.
        workers: Ranks of each trial.
        resources: Of each rank.
    """

    rungs: tuple[Rung, ...]
    workspace: Workspace
    copy: BackgroundCopy
    cpus: float
    workers: Workers
    resources: Resources
    console: Console

    def run(self, programme: Programme, title: str, scheduler: TrialScheduler | None = None) -> None:
        """Run every trial of a programme; without a scheduler all of them finish."""
        run_programme(
            programme,
            self._places,
            title=title,
            storage=self.workspace.folder / "ray",
            cpus=self.cpus,
            workers=self.workers,
            resources=self.resources,
            scheduler=scheduler,
            on_change=self.copy.copy_trial,
            console=self.console,
        )

    def run_all(self, assignments: Sequence[Assignment], title: str) -> None:
        """Run a given list of trials, those that are complete left out."""
        folders = {each.key: self.workspace.trial(each.key) for each in assignments}
        self.run(FixedProgramme(assignments, folders), title)

    def run_bases(self) -> None:
        """Base models, the largest first, so that no core waits long for the last one."""
        largest_first = sorted(self.rungs, key=lambda rung: -rung.shards.resolution)
        self.run_all([Assignment(rung.base, "base") for rung in largest_first], "base models")
        for rung in self.rungs:
            self.require_complete(rung.shards.resolution, "base")

    def require_complete(self, resolution: int, role: Role) -> None:
        """Stop with the first failure's own words where no trial of a role came through."""
        records = load_records(self.workspace.folder / "trials")
        here = [record for record in records if (record.resolution, record.assignment.role) == (resolution, role)]
        failed = [record for record in here if record.status == "failed"]
        if failed and not any(record.status == "complete" for record in here):
            raise ValueError(
                f"all {len(failed)} {role} trials at {resolution} px failed; the first ({failed[0].folder}) says: "
                f"{failed[0].reason}"
            )

    def _places(self, assignment: Assignment) -> Places:
        resolution = assignment.config.train.network.resolution
        rung = next(rung for rung in self.rungs if rung.shards.resolution == resolution)
        start = (rung.start or self.workspace.trial(rung.base.key) / SNAPSHOT).resolve()
        return Places(
            shards=anywhere(rung.folder),
            folder=self.workspace.trial(assignment.key).resolve(),
            start=start,
            teacher=rung.teacher.resolve() if rung.teacher else start,
            cache=self.workspace.cache.resolve(),
            threads=max(1, int(self.resources.cpus)),
            execution=Execution(
                device="cuda" if self.resources.gpus else "cpu",
                slice_size=self.resources.slice_size,
                compile=self.resources.compile,
                channels_last=True,  # Seen faster on CPUs too, at 16 px.
                sharded=self.resources.sharded,
                data_workers=rung.shards.suggested_workers,
            ),
            resources=self.resources,
        )
