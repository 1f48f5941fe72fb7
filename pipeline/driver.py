"""What drives trials: one process that holds a workspace, a cluster and the MLflow records."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from atdiff_core.data.addresses import Address, anywhere, joined
from atdiff_core.data.prompts import load_prompts
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.files import write_json
from atdiff_core.train_config import NO_PROMPTS, Network
from atdiff_core.train_state import Execution
from pipeline.background_copy import BackgroundCopy, copying
from pipeline.bookkeeping import Bookkeeper
from pipeline.budget import Budgeted, BudgetSpent
from pipeline.cluster import ray_session, require_head
from pipeline.extension import Declared
from pipeline.history import Event, note_event
from pipeline.ledger import Ledger, figures_of
from pipeline.nodes import require_fit
from pipeline.places import Places
from pipeline.programme import FixedProgramme, Programme
from pipeline.records import SNAPSHOT, Assignment, Role, is_complete, load_records
from pipeline.running import Interrupted, run_programme
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from search_spaces.operation import Budget, Price
from search_spaces.resources import Resources, Workers, worker_range
from search_spaces.space import Space, TrialConfig


@dataclass(frozen=True)
class Rung:
    """One resolution: its data and its base model.

    Attributes:
        base: The base model's trial, or the pattern of all trials where there is none.
        start: Snapshot of a base model that no trial here makes; the base trial's without it.
        teacher: Snapshot of a teacher that is not the base model.
        prompts: Folder of the prompts' embeddings, where the network attends to prompts.
    """

    shards: ShardSet
    folder: Address
    base: TrialConfig
    start: Path | None = None
    teacher: Path | None = None
    prompts: Path | None = None


def open_rung(
    shards: str,
    network: Network,
    base_config: Callable[[str, str], TrialConfig],
    start: Path | None = None,
    teacher: Path | None = None,
    prompts: str = "",
) -> Rung:
    """The shard set of the network's resolution, and the base model on it.

    Args:
        shards: Folder of ``<resolution>px`` shard sets, or a remote address of one.
        base_config: From the fingerprints of a dataset and of its prompts to the base model.
        start: Snapshot of a base model that exists already.
        teacher: Snapshot of a teacher that is not the base model.
        prompts: Folder of the prompts' embeddings; empty where the network attends to none.
    """
    folder = joined(shards, f"{network.resolution}px")
    opened = open_shards(folder)
    if opened.image_channels != network.image_channels:
        raise ValueError(f"the network takes {network.image_channels} channels, {folder} holds {opened.image_channels}")
    texts = load_prompts(Path(prompts)).fingerprint if prompts else NO_PROMPTS
    place = Path(prompts) if prompts else None
    return Rung(opened, folder, base_config(opened.fingerprint, texts), start, teacher, place)


@contextmanager
def driving(
    declared: Declared,
    rungs: Sequence[Rung],
    workspace: Workspace,
    *,
    cpus: int | None,
    console: Console,
    inline: bool = False,
    extend: bool = False,
) -> Iterator["Driver"]:
    """Claim the workspace, start or join Ray, and copy to MLflow whatever the folders hold.

    Args:
        inline: Run trials one after another in this process, without Ray.
        extend: Whether the sweep that is there may grow.
    """
    workspace.check_disk()
    if not inline:
        require_head()  # Before anything is written.
    with workspace.locked():
        workspace.claim(declared, extend=extend)
        try:
            yield from _driven(declared, rungs, workspace, cpus, console, inline)
        except BaseException as error:
            note_event(workspace.folder, _ending(error), reason=str(error))
            raise
        note_event(workspace.folder, "ended")


def _ending(error: BaseException) -> Event:
    match error:
        case BudgetSpent():
            return "budget"
        case KeyboardInterrupt() | Interrupted():
            return "interrupted"
        case _:
            return "failed"


def _driven(
    declared: Declared, rungs: Sequence[Rung], workspace: Workspace, cpus: int | None, console: Console, inline: bool
) -> Iterator["Driver"]:
    budget, price = (declared.budget, declared.price) if isinstance(declared, Space) else (Budget(), Price())
    workers, resources = declared.workers, declared.resources
    ledger = Ledger(workspace)
    ledger.refresh()
    tracker = Tracker(workspace, declared, [rung.shards.index for rung in rungs])
    with copying(_copy_of(tracker, ledger, price, workspace), console) as copy:
        copy.copy_all(workspace.trial_folders())  # What a killed driver did not copy.
        driver = partial(Driver, tuple(rungs), workspace, copy, ledger, budget, price, workers, resources)
        if inline:
            write_json(workspace.driver, {"slots": 1})
            yield driver(cpus=1, console=console, inline=True)
        else:
            with ray_session(cpus, dashboard=workers != 1) as available:
                if os.environ.get("RAY_ADDRESS"):
                    require_fit(workspace.folder.resolve())
                slots = int(available / (worker_range(workers)[1] * resources.cpus)) if math.isfinite(available) else 1
                write_json(workspace.driver, {"slots": max(1, slots)})
                yield driver(cpus=available, console=console)
        copy.copy_all(workspace.trial_folders())


def _copy_of(tracker: Tracker, ledger: Ledger, price: Price, workspace: Workspace) -> Callable[[Path], None]:
    """Brings a trial to MLflow, and the ledger with every trial that ends."""
    counted = {folder for folder in workspace.trial_folders() if is_complete(folder)}

    def copy(folder: Path) -> None:
        tracker.copy_trial(folder)
        ledger.refresh_trial(folder)
        if is_complete(folder) and folder not in counted:
            tracker.log_ledger(figures_of(ledger.total, price), step=ledger.trials)
            counted.add(folder)  # Last: what MLflow did not take is sent again.

    return copy


@dataclass(frozen=True)
class Driver:
    """Runs programmes one after the other.

    Attributes:
        rungs: Data and base models, one a resolution.
        copy: Told of every trial that has something new for MLflow.
        ledger: What trials have cost so far.
        workers: Ranks of each trial.
        resources: Of each rank.
        cpus: CPUs that trials may use together.
        inline: Whether trials run in this process, without Ray.
    """

    rungs: tuple[Rung, ...]
    workspace: Workspace
    copy: BackgroundCopy
    ledger: Ledger
    budget: Budget
    price: Price
    workers: Workers
    resources: Resources
    cpus: float
    console: Console
    inline: bool = False

    def run(self, programme: Programme, title: str, *, kpass: float = 0.0, resolution: int | None = None) -> None:
        """Run every trial of a programme.

        Args:
            kpass: Thousand passes that the dearest of its trials trains.
            resolution: Of its trials; ``None`` where they have several.

        Raises:
            BudgetSpent: The budget does not pay for all of them.
        """
        budgeted = Budgeted(
            programme,
            self.ledger,
            self.workspace,
            budget=self.budget,
            price=self.price,
            kpass_of_a_trial=kpass,
            resolution=resolution,
        )
        try:
            run_programme(
                budgeted,
                self._places,
                self._in_this_process if self.inline else partial(self._tune, title),
                title=title,
                on_change=self.copy.copy_trial,
                console=self.console,
            )
        except Interrupted:
            if budgeted.reached:
                raise BudgetSpent(budgeted.reached) from None
            raise
        if budgeted.reached and not programme.finished:
            raise BudgetSpent(budgeted.reached)

    def _in_this_process(self, keeper: Bookkeeper) -> None:
        from pipeline.inline import run_inline

        run_inline(keeper)

    def _tune(self, title: str, keeper: Bookkeeper) -> None:
        from pipeline.tuning import tune_trials

        storage = self.workspace.folder / "ray"
        tune_trials(
            keeper, title=title, storage=storage, cpus=self.cpus, workers=self.workers, resources=self.resources
        )

    def run_all(self, assignments: Sequence[Assignment], title: str) -> None:
        """Run a given list of trials, those that are complete left out."""
        folders = {each.key: self.workspace.trial(each.key) for each in assignments}
        kpass = max((each.config.train.budget_kpass for each in assignments), default=0.0)
        self.run(FixedProgramme(assignments, folders), title, kpass=kpass)

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
        if assignment.role == "base" and rung.teacher:  # Nothing else is there to begin a base model at.
            start = rung.teacher.resolve()
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
                gradient_checkpointing=self.resources.gradient_checkpointing,
                channels_last=self.resources.gpus > 0,
                sharded=self.resources.sharded,
                data_workers=rung.shards.suggested_workers,
            ),
            resources=self.resources,
            prompts=rung.prompts.resolve() if rung.prompts else None,
        )
