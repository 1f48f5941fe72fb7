"""Kills the driver of a sweep at every awkward moment: ``python -m benchmarks.faults``.

For each named moment and seed a real sweep of real trials runs in a process of its own, which
kills itself with SIGKILL when it comes to the moment. The same sweep is then started again until it
ends. In the end its trials must be those of a sweep that nobody killed, with the same ends and the
same figures, each told once, none left running, and MLflow must show each once. The processes are
forks, so that a death costs no imports.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from atdiff_core.data.sources import mnist_digits
from atdiff_core.data.writing import write_shards
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.metrics.features import feature_network
from atdiff_core.networks import UNet
from atdiff_core.optimization import Optimization
from atdiff_core.samplers import Sampler
from benchmarks.fault_moments import MOMENTS, Moment, arm
from benchmarks.measuring import machine_line
from pipeline.finish import finish_sweep
from pipeline.records import load_records
from pipeline.storage import open_storage
from pipeline.sweep import run_sweep
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.space import Phase, Replication, Space, Stopping

NAME = "killed"
SEEDS_TRIED = 4


@dataclass(frozen=True)
class Verdict:
    """What became of one killed sweep.

    Attributes:
        killed: Whether the moment came and the driver died.
        complaints: What is not as if nobody had killed it; empty is a pass.
    """

    moment: Moment
    seed: int
    killed: bool
    complaints: tuple[str, ...]


def space_of(shards: Path, seed: int) -> Space:
    """Eight real trials in seconds: a base model, two controls, four of a search with a rung, a random control."""
    phase = Optimization(learning_rate=1e-3, ema_half_life_kpass=0.05)
    return Space(
        name=NAME,
        shards=str(shards),
        ladder=(8,),
        predict_at=16,
        network=UNet(resolution=8, channels=(8, 16)),
        pretraining=Phase(budget_kpass=0.064, optimization=phase),
        finetuning=Phase(budget_kpass=0.128, optimization=phase),
        batch_size=16,
        domains=ReachDomains(eta=log_range(0.003, 0.3), num_replays=choice(2)),
        evaluation=EvaluationConfig(samples=8, samplers=(Sampler(kind="ddim", nfe=2),), reference=32),
        trials=4,
        stopping=Stopping(rung=0.5, keep=0.5),
        replication=Replication(leaders=1, seeds=1),
        seed=seed,
    )


def drive(space: Space, root: Path, *, storage: str | None, report: bool) -> None:
    """The whole sweep, as ``atdiff sweep --inline`` does it."""
    console = Console(quiet=True)
    result = run_sweep(space, root, storage=storage, inline=True, console=console)
    if report:
        finish_sweep(result, Workspace(root, space.name), "atdiff sweep", console)


def state_of(space: Space, root: Path, storage: str | None) -> dict[str, Any]:
    """What a sweep left: trials of the storage, of the folders and of MLflow, by key."""
    workspace = Workspace(root, space.name)
    opened = open_storage(storage or workspace.study_uri)
    told: list[tuple[str, str, float | None]] = []
    for name in optuna.get_all_study_names(storage=opened):
        for trial in optuna.load_study(study_name=name, storage=opened).trials:
            value = trial.value if trial.state.name == "COMPLETE" else None
            told.append((trial.user_attrs.get("key", "keyless"), trial.state.name, value))
    client = MlflowClient(tracking_uri=workspace.tracking_uri)
    experiment = client.get_experiment_by_name(space.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {
        "told": sorted(told, key=str),
        "folders": sorted((record.key, record.status) for record in load_records(workspace.folder / "trials")),
        "parents": sum("atdiff.sweep" in run.data.tags for run in runs),
        "children": sorted(
            (run.data.tags["atdiff.trial"], run.info.status) for run in runs if "atdiff.trial" in run.data.tags
        ),
        "points": sorted(
            len(client.get_metric_history(run.info.run_id, "train/loss"))
            for run in runs
            if "atdiff.trial" in run.data.tags
        ),
    }


def complaints_of(state: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """Where a killed sweep differs from one that nobody killed."""
    keys = [key for key, _, _ in state["told"]]
    found = []
    if len(set(keys)) < len(keys):
        found.append("a trial was told twice")
    if any(name in ("RUNNING", "WAITING") for _, name, _ in state["told"]):
        found.append("a trial is left running")
    found += [f"{what} differ" for what in whole if state[what] != whole[what]]
    return found


def in_fork(work: Callable[[], None]) -> int:
    """Run in a child of this process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Harness:
    """Runs killed sweeps below a scratch folder."""

    def __init__(self, work: Path, kind: str = "sqlite") -> None:
        """``kind`` of storage: ``sqlite`` or ``journal``."""
        torch.set_num_threads(1)
        _preload()
        self._work, self._kind = work, kind
        self._shards = work / "digits"
        for _ in write_shards(mnist_digits(), self._shards, [8], image_channels=1):
            pass
        self._template = work / "template"
        self._template.mkdir()
        prepared = space_of(self._shards, 0).but(name="template")
        if in_fork(lambda: _prepare(self._template, prepared)):  # An empty database takes seconds to make.
            raise RuntimeError("MLflow's database could not be made")
        self._whole: dict[int, dict[str, Any]] = {}

    def verdicts(self, moments: Sequence[Moment], seeds: int, jobs: int) -> Iterator[Verdict]:
        """One for each moment and seed, as they come; ``jobs`` at a time.

        Where the moment never comes, say because no trial of that seed is stopped, another seed takes its place.
        """
        tasks = [(moment, range(seed, SEEDS_TRIED * seeds, seeds)) for seed in range(seeds) for moment in moments]
        global _at_work  # Its forks inherit it, with what they remember of sweeps that nobody kills.
        _at_work = self
        with get_context("fork").Pool(jobs) as pool:
            yield from pool.imap_unordered(_verdict, tasks)

    def verdict(self, moment: Moment, seed: int) -> Verdict:
        """Kill one sweep, end it, compare it."""
        whole = self._uncut(seed)
        root = self._root()
        space = space_of(self._shards, seed)

        def dying() -> None:
            arm(moment, seed)
            self._drive(space, root, moment.reports)

        killed = in_fork(dying) == -signal.SIGKILL
        complaints = [] if killed else ["the moment never came"]
        if in_fork(lambda: self._drive(space, root, moment.reports)):
            complaints.append("the sweep did not end when started again")
        else:
            complaints += complaints_of(self._state(space, root), whole)
        return Verdict(moment, seed, killed, tuple(complaints))

    def _uncut(self, seed: int) -> dict[str, Any]:
        if seed not in self._whole:
            root, space = self._root(), space_of(self._shards, seed)
            if in_fork(lambda: self._drive(space, root, False)):
                raise RuntimeError("the sweep that nobody kills did not end")
            self._whole[seed] = self._state(space, root)
        return self._whole[seed]

    def _root(self) -> Path:
        """A new root with an MLflow database that is made already."""
        return Path(shutil.copytree(self._template, tempfile.mkdtemp(dir=self._work), dirs_exist_ok=True))

    def _drive(self, space: Space, root: Path, report: bool) -> None:
        drive(space, root, storage=self._storage(root), report=report)

    def _state(self, space: Space, root: Path) -> dict[str, Any]:
        """Read in a fork too: a database that this process has opened must not be forked."""
        file = root / "state.json"
        if in_fork(lambda: _write(file, state_of(space, root, self._storage(root)))):
            raise RuntimeError("the state of a sweep could not be read")
        state: dict[str, Any] = json.loads(file.read_text())
        return state

    def _storage(self, root: Path) -> str | None:
        return f"journal:///{root / 'study.log'}" if self._kind == "journal" else None


_at_work: Harness


def _verdict(task: tuple[Moment, Sequence[int]]) -> Verdict:
    moment, seeds = task
    for seed in seeds:
        verdict = _at_work.verdict(moment, seed)
        if verdict.killed:
            break
    return verdict


def _preload() -> None:
    """Load here what every fork would load for itself."""
    for module in (
        "mlflow.store.tracking.sqlalchemy_store",
        "alembic.command",
        "pipeline.report.page",
        "pipeline.inline",
        "torchmetrics.image.kid",
    ):
        import_module(module)
    feature_network("efflite0_64")
    UNet(resolution=8, channels=(8, 16)).build()


def _prepare(root: Path, space: Space) -> None:
    Tracker(Workspace(root, space.name), space)


def _write(file: Path, state: dict[str, Any]) -> None:
    file.write_text(json.dumps(state))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--storage", choices=["sqlite", "journal"], default="sqlite")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="killed sweeps at a time")
    parser.add_argument("--moments", default="", help="only those whose name contains this")
    given = parser.parse_args(arguments)
    sqlite = given.storage == "sqlite"
    chosen = [moment for moment in MOMENTS if given.moments in moment.name and (sqlite or not moment.sqlite_only)]
    began = time.monotonic()
    verdicts = []
    with tempfile.TemporaryDirectory() as scratch:
        harness = Harness(Path(scratch), given.storage)
        for verdict in harness.verdicts(chosen, given.seeds, given.jobs):
            verdicts.append(verdict)
            said = "; ".join(verdict.complaints) or "killed, and whole again"
            print(f"{verdict.moment.name}, seed {verdict.seed}: {said}", flush=True)
    table = Table("moment of death", "kills", "whole again", title=f"{machine_line()}; {given.storage}")
    for moment in chosen:
        here = [verdict for verdict in verdicts if verdict.moment == moment]
        whole = sum(not verdict.complaints for verdict in here)
        table.add_row(moment.name, str(sum(verdict.killed for verdict in here)), f"{whole} of {len(here)}")
    Console(width=110).print(table)
    whole = sum(not verdict.complaints for verdict in verdicts)
    print(
        f"faults: {whole} of {len(verdicts)} killed sweeps ({len(chosen)} moments x {given.seeds} seeds) ended as if "
        f"nobody had killed them; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
