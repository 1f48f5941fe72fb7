"""The ladder of studies: base models, searches, the law, the report."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from rich.console import Console

from pipeline.budget import check_pays_for_one
from pipeline.driver import Driver, Rung, driving, open_rung
from pipeline.guide import taught_by
from pipeline.plan import check_memory
from pipeline.results import SweepResult, load_result
from pipeline.side_by_side import SideBySide
from pipeline.storage import storage_of
from pipeline.study import StudyProgramme
from pipeline.workspace import Workspace
from search_spaces.space import Space


def run_sweep(
    space: Space,
    root: Path,
    *,
    cpus: int | None = None,
    console: Console | None = None,
    tracking: str | None = None,
    storage: str | None = None,
    inline: bool = False,
    extend: bool = False,
) -> SweepResult:
    """Run a sweep, or continue it: the same call after any interruption.

    Everything is checked before anything starts. Finished trials are never run again. Base models
    of all resolutions come first, then one study after the other.

    Args:
        root: Folder that holds sweeps, one below the other, and the MLflow database.
        cpus: CPUs to use on this machine, all of them where ``None``.
        tracking: Address of an MLflow; the root's own file where ``None``.
        storage: URL of the studies' storage, as ``open_storage`` takes it; where ``None`` the one the
            sweep was started with, at first an SQLite file in its folder.
        inline: Run trials one after another in this process, without Ray.
        extend: Whether a sweep that is there may grow: more trials, resolutions, leaders or seeds.

    Raises:
        ValueError: Missing shards, the name belongs to another configuration, or MLflow does not answer.
        BudgetSpent: The budget does not pay for all of it.
        Interrupted: Ctrl-C.
    """
    workspace = Workspace(root, space.name, tracking)
    check_memory(space)
    needed = {"a base model": space.pretraining.budget_kpass, "a trial": space.finetuning.budget_kpass}
    check_pays_for_one(space.budget, needed)
    rungs = [
        open_rung(
            space.shards,
            space.network.at(resolution),
            partial(space.base_config, resolution),
            prompts=space.prompts,
        )
        for resolution in space.ladder
    ]
    console = console or Console()
    with driving(space, rungs, workspace, cpus=cpus, console=console, inline=inline, extend=extend) as driver:
        storage_url = storage_of(workspace.folder, storage, workspace.study_uri)
        driver.run_bases()
        search = _side_by_side if space.side_by_side else _in_sequence
        search(space, rungs, driver, storage_url)
    return load_result(workspace)


def _in_sequence(space: Space, rungs: Sequence[Rung], driver: Driver, storage_url: str) -> None:
    """One resolution after the other, each taught by those before it."""
    for rung in rungs:
        resolution = rung.shards.resolution
        finished = [study for study in load_result(driver.workspace).studies if study.resolution < resolution]
        taught = taught_by(finished, space.domains.norms()) if space.transfers else {}
        with closing(StudyProgramme(space, rung.base, storage_url, taught)) as study:
            driver.run(study, f"study {resolution}px", kpass=space.finetuning.budget_kpass, resolution=resolution)
        driver.require_complete(resolution, "search")


def _side_by_side(space: Space, rungs: Sequence[Rung], driver: Driver, storage_url: str) -> None:
    """All resolutions at once."""
    with ExitStack() as opened:
        studies = [opened.enter_context(closing(StudyProgramme(space, rung.base, storage_url))) for rung in rungs]
        driver.run(SideBySide(studies), "all studies", kpass=space.finetuning.budget_kpass)
    for rung in rungs:
        driver.require_complete(rung.shards.resolution, "search")
