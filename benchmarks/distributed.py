"""Two ranks under Ray Train against the same loop under torchrun: ``python -m benchmarks.distributed``.

Both train the same trial on two gloo ranks of this machine. They start together and then take turns of a few
seconds, the processes of the other one stopped, Ray Train's controller and its helpers with its ranks: a
shared machine changes its speed within minutes by more than what is to be told apart. The speed is read off the
trial's own curves, over the time in which it ran. Twice: with all cores for the ranks, and with the first core
for them and the others for Ray and whatever else runs, as ranks leave cores to spare that train on
accelerators. A last arm keeps states as often as they can be kept: what one of them costs is the time it takes
beyond a run that keeps none.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from atdiff_core.data.sources import mnist_digits
from atdiff_core.data.stream import open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.team import Team
from benchmarks.measuring import machine_line
from pipeline.cluster import ray_session
from pipeline.distributed import run_distributed
from pipeline.places import Places
from pipeline.records import CURVES, Assignment, declare, load_record
from pipeline.trial import run_trial
from search_spaces.demo import space
from search_spaces.resources import Resources

ROUNDS = 3
MINIBATCHES = {"all cores": 700, "cores to spare": 350}
"""Of each setting: about as many seconds."""
STATES = 120
"""Minibatches of the last arm."""
RANKS = 2
TURN_SEC = 3.0
RAY_PROCESSES = ("RayTrainWorker", "TrainController", "PlacementGroupCleaner", "SynchronizationActor", "DatasetManager")
"""What belongs to one ``TorchTrainer``."""
NEVER = 1e9


def prepared(work: Path, arm: str, seed: int, minibatches: int, resources: Resources) -> tuple[Assignment, Places]:
    """A base model's training at 8 px, declared in a folder of its own."""
    shards = work / "digits" / "8px"
    base = space.base_config(8, open_shards(shards).fingerprint)
    train = base.train.but(seed=seed, budget_kpass=minibatches * base.train.kpass_per_minibatch)
    evaluation = base.evaluation.but(samples=8, reference=64, attacks=())
    assignment = Assignment(base.but(train=train, evaluation=evaluation, workers=RANKS), "base")
    folder = work / arm / "trials" / f"{seed}"
    declare(folder, assignment)
    return assignment, Places(shards, folder, folder, work / "cache", resources=resources)


def reports(assignment: Assignment, folder: Path) -> list[tuple[float, float]]:
    """Minibatches done and seconds since 1970 of each report so far."""
    if not (folder / CURVES).is_file():
        return []
    points = [point for point in load_record(folder).curves if "train/loss" in point.values]
    per_minibatch = assignment.config.train.kpass_per_minibatch
    return [(point.kpass / per_minibatch, point.time_ms / 1000) for point in points]


def run_under_ray(assignment: Assignment, places: Places) -> None:
    for _ in run_distributed(assignment, places):
        pass


def torchrun(work: Path, setting: str, seed: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    return subprocess.Popen(
        [*command, "-m", "benchmarks.distributed", "--rank-of", str(work), setting, str(seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _trial(work: Path, arm: str, setting: str, seed: int) -> tuple[Assignment, Places]:
    return prepared(work, f"{arm}, {setting}", seed, MINIBATCHES[setting], Resources(checkpoint_sec=NEVER))


def rank_of_torchrun(work: Path, setting: str, seed: int) -> None:
    """What torchrun runs on each rank."""
    dist.init_process_group("gloo")
    trial = _trial(work, "torchrun", setting, seed)
    for _ in run_trial(*trial, team=Team(dist.get_rank(), dist.get_world_size())):
        pass
    dist.barrier()
    dist.destroy_process_group()


def keeping_states(work: Path, setting: str, seed: int, every_sec: float) -> tuple[float, int]:
    """Seconds that a run under Ray takes from its first report to its last, and the states it kept."""
    resources = Resources(checkpoint_sec=every_sec, keep_checkpoints=STATES)
    assignment, places = prepared(work, setting, seed, STATES, resources)
    run_under_ray(assignment, places)
    told = reports(assignment, places.folder)
    return told[-1][1] - told[0][1], len(list(places.folder.glob("states/**/minibatch-*")))


class Arm:
    """One of two that take turns.

    Attributes:
        ran: When it had its turns, in seconds since 1970.
    """

    def __init__(self, trial: tuple[Assignment, Places], marks: tuple[str, ...]) -> None:
        """``marks`` are what the command lines of its processes contain."""
        self._assignment, self._folder, self._marks = trial[0], trial[1].folder, marks
        self.ran: list[tuple[float, float]] = []

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.Process().children(recursive=True):  # Never those of another Ray.
            with suppress(psutil.NoSuchProcess):
                if any(mark in word for word in process.cmdline() for mark in self._marks):
                    yield process

    def reports(self) -> list[tuple[float, float]]:
        return reports(self._assignment, self._folder)

    def turn(self, seconds: float) -> None:
        """Run alone for a while, having been stopped before."""
        began = time.time()
        self.resume()
        time.sleep(seconds)
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        self.ran.append((began, time.time()))

    def resume(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def minibatches_per_second(self) -> float:
        """Over its turns."""
        inside = [each for each in self.reports() if self.ran[0][0] <= each[1] <= self.ran[-1][1]]
        (first, began), (last, ended) = inside[0], inside[-1]
        running = sum(max(0.0, min(stop, ended) - max(start, began)) for start, stop in self.ran)
        return (last - first) / running


def speeds(work: Path, setting: str, seed: int) -> tuple[float, float]:
    """Minibatches per second under Ray Train and under torchrun, in turns."""
    ours, theirs = (_trial(work, arm, setting, seed) for arm in ("ray", "torchrun"))
    arms = [Arm(ours, RAY_PROCESSES), Arm(theirs, ("--rank-of",))]
    training = threading.Thread(target=run_under_ray, args=ours)
    training.start()
    with torchrun(work, setting, seed):
        while not all(arm.reports() for arm in arms):
            time.sleep(0.5)
        try:
            for arm in arms:
                arm.turn(0.0)
                arm.ran.clear()
            while all(arm.reports()[-1][0] < MINIBATCHES[setting] for arm in arms):
                for arm in arms:
                    arm.turn(TURN_SEC)
        finally:
            for arm in arms:
                arm.resume()
    training.join()
    ray, torchrun_ = (arm.minibatches_per_second() for arm in arms)
    return ray, torchrun_


@contextmanager
def ranks_on(cores: set[int]) -> Iterator[None]:
    """Meanwhile all ranks that start, of either kind, run on these cores alone."""
    over = threading.Event()

    def pin() -> None:
        while not over.wait(1):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if _is_rank(process.cmdline()):
                        for thread in process.threads():
                            os.sched_setaffinity(thread.id, cores)

    pinning = threading.Thread(target=pin)
    pinning.start()
    try:
        yield
    finally:
        over.set()
        pinning.join()


def _is_rank(command: list[str]) -> bool:
    under_torchrun = "--rank-of" in command and "torch.distributed.run" not in command
    return under_torchrun or any("ray::RayTrainWorker" in word for word in command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rank-of", nargs=3, metavar=("WORK", "SETTING", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        work, setting, seed = arguments.rank_of
        rank_of_torchrun(Path(work), setting, int(seed))
        return
    os.environ.update({"RAY_worker_niceness": "0"})  # As torchrun's ranks have it.
    with tempfile.TemporaryDirectory() as scratch, ray_session(RANKS):
        work = Path(scratch)
        for _ in write_shards(mnist_digits(), work / "digits", [8], image_channels=1):
            pass
        rounds = []
        for seed in range(arguments.rounds):
            rounds.append(_one_round(work, seed))
            print(f"round {seed + 1}: {rounds[-1]}", flush=True)
    told(rounds)


@dataclass(frozen=True)
class Round:
    """Minibatches per second under Ray Train and under torchrun by setting, and the seconds a kept state took."""

    speeds: dict[str, tuple[float, float]]
    state_sec: float


def _one_round(work: Path, seed: int) -> Round:
    measured = {}
    for setting, cores in {"all cores": set(range(os.cpu_count() or 1)), "cores to spare": {0}}.items():
        with ranks_on(cores):
            measured[setting] = speeds(work, setting, seed)
    without, _ = keeping_states(work, "without states", seed, NEVER)
    with_states, kept = keeping_states(work, "with states", seed, 0.0)
    return Round(measured, (with_states - without) / kept)


def told(rounds: list[Round]) -> None:
    """Print what was measured."""
    title = f"{RANKS} gloo ranks, {machine_line()}"
    table = Table("ranks on", "TorchTrainer, minibatches/s", "torchrun", "ratio, median (extremes)", title=title)
    for setting in MINIBATCHES:
        ratios = sorted(each.speeds[setting][0] / each.speeds[setting][1] for each in rounds)
        medians = [f"{median(each.speeds[setting][arm] for each in rounds):.2f}" for arm in (0, 1)]
        table.add_row(setting, *medians, f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
        print(f"distributed: TorchTrainer over torchrun, {setting} = {median(ratios):.3f} (goal >= 0.99)")
    costs = sorted(each.state_sec for each in rounds)
    Console(width=120).print(table)
    print(f"seconds a kept state takes: {median(costs):.2f} ({costs[0]:.2f} to {costs[-1]:.2f})")


if __name__ == "__main__":
    main()
