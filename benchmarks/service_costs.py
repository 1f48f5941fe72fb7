"""CPU seconds that a sweep's own machinery takes for one trial, from the real things.

CPU seconds, not seconds: other work on the machine hardly changes them.
"""

import os
import random
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from atdiff_core.checkpoints import save_checkpoint
from atdiff_core.networks import UNet, preset
from atdiff_core.perturbations import Unperturbed
from atdiff_core.train_state import TrainState
from pipeline.postgres import running
from pipeline.records import Assignment, append_curve, declare, load_record
from pipeline.serving import Service
from pipeline.study import StudyProgramme
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from search_spaces.demo import space as demo

POINTS = 1_000
"""Points of a trial's curves, as a trial of a long budget leaves them."""


@dataclass(frozen=True)
class Measured:
    """All in CPU seconds.

    Attributes:
        driver_sec: Asking and telling one trial of a study, the searcher's fit included.
        copy_sec: Writing its curves and copying them to a server, in the driver's process.
        mlflow_sec: The same in the server and its database.
        look_sec: Reading what a trial of several ranks has written, once, at the end of its budget.
        checkpoint_sec_per_gb: Writing a checkpoint.
    """

    driver_sec: float
    copy_sec: float
    mlflow_sec: float
    look_sec: float
    checkpoint_sec_per_gb: float


def measure(study: StudyProgramme) -> Measured:
    """All of it, with the driver's share from running a study through."""
    with tempfile.TemporaryDirectory(prefix="atdiff-scaling-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        return Measured(_driver_sec(study), *_mlflow_sec(folder), _checkpoint_sec_per_gb(folder))


def _mlflow_sec(folder: Path, trials: int = 8) -> tuple[float, float, float]:
    """CPU seconds a trial: ours and the server's until its curves are on PostgreSQL the way the driver sends
    them, and those of one look into its folder."""
    with _mlflow_server(folder) as (url, roots):
        workspace = Workspace(folder / "runs", demo.name, url)
        tracker = Tracker(workspace, demo)
        base = demo.base_config(8, "d" * 64)
        ours, theirs = time.process_time(), _cpu_sec(roots)
        for seed in range(trials):
            assignment = Assignment(demo.trial_config(base, Unperturbed(), seed), "search")
            trial = workspace.trial(assignment.key)
            declare(trial, assignment)
            for point in range(POINTS):
                values = {f"train/{name}": random.random() for name in ("loss", "attack_gain", "boundary", "grad_norm")}
                append_curve(trial, (point + 1) * 0.1, values)
                if point == POINTS // 2:  # Tune hears of a trial at its rung and at its end.
                    tracker.copy_trial(trial)
            tracker.copy_trial(trial)
        copied, served = (time.process_time() - ours) / trials, (_cpu_sec(roots) - theirs) / trials
        began = time.process_time()
        load_record(trial)
        return copied, served, time.process_time() - began


def _cpu_sec(roots: list[psutil.Process]) -> float:
    """CPU seconds of processes and of all that they started, those that have ended included."""
    each = [process.cpu_times() for root in roots for process in (root, *root.children(recursive=True))]
    return sum(spent.user + spent.system + spent.children_user + spent.children_system for spent in each)


@contextmanager
def _mlflow_server(folder: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The address of a server, and the first processes of it and of its database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with running(folder / "postgres") as postgres:
        service = Service(folder / "server", postgres.ensure_database("mlflow"), str(folder / "artifacts"), port=port)
        service.prepare(upgrade=False)
        with service.running() as server:
            os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
            os.environ["MLFLOW_TRACKING_PASSWORD"] = service.password_file.read_text().strip()
            deadline = time.monotonic() + 300
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)
            postmaster = int((postgres.data / "postmaster.pid").read_text().split()[0])
            yield f"http://127.0.0.1:{port}", [psutil.Process(server.pid), psutil.Process(postmaster)]


def _driver_sec(study: StudyProgramme) -> float:
    """Mean CPU seconds of asking and telling a trial of the study."""
    count, began = 0, time.process_time()
    while (assignment := study.ask()) is not None:
        study.tell(assignment.key, "complete", random.random())
        count += 1
    return (time.process_time() - began) / count


def _checkpoint_sec_per_gb(folder: Path) -> float:
    """CPU seconds of ``save_checkpoint`` a gigabyte, with the demo's network made four times as wide."""
    network = preset("digits", resolution=8, image_channels=1)
    wide = UNet.model_validate(network.model_dump() | {"channels": tuple(4 * width for width in network.channels)})
    config = demo.base_config(8, "d" * 64).train.but(network=wide)
    state = TrainState.fresh(config, None)
    began = time.process_time()
    for _ in range(3):
        save_checkpoint(state, config, folder / "checkpoint")
    size = sum(file.stat().st_size for file in (folder / "checkpoint").iterdir())
    return (time.process_time() - began) / 3 / (size / 1e9)
