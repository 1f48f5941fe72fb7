"""Two ranks under Ray Train against the same loop under torchrun: ``python -m benchmarks.distributed``.

Both train the same trial on two gloo ranks of this machine, in turns, beside the same idle Ray. The speed is
read off the trial's own curves, from its first report to its last, so that no start-up counts. A third arm
keeps states as often as they can be kept: what one of them costs is the time it takes beyond the first arm's.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

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
from pipeline.records import Assignment, declare, load_record
from pipeline.trial import Places, run_trial
from search_spaces.demo import space
from search_spaces.resources import Resources

ROUNDS, MINIBATCHES = 4, 160
RANKS = 2
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


def minibatches_per_second(assignment: Assignment, places: Places) -> float:
    """Between the first report and the last."""
    points = [point for point in load_record(places.folder).curves if "train/loss" in point.values]
    first, last = points[0], points[-1]
    done = (last.kpass - first.kpass) / assignment.config.train.kpass_per_minibatch
    return done / ((last.time_ms - first.time_ms) / 1000)


def under_ray(work: Path, seed: int) -> float:
    assignment, places = prepared(work, "ray", seed, MINIBATCHES, Resources(checkpoint_sec=NEVER))
    list(run_distributed(assignment, places))
    return minibatches_per_second(assignment, places)


def keeping_states(work: Path, seed: int) -> tuple[float, int]:
    """Its speed under Ray, and the states it kept."""
    every = Resources(checkpoint_sec=0.0, keep_checkpoints=MINIBATCHES)
    assignment, places = prepared(work, "states", seed, MINIBATCHES, every)
    list(run_distributed(assignment, places))
    return minibatches_per_second(assignment, places), len(list(places.folder.glob("states/**/minibatch-*")))


def under_torchrun(work: Path, seed: int) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    subprocess.run(
        [*command, "-m", "benchmarks.distributed", "--rank-of", str(work), str(seed)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return minibatches_per_second(*_torchrun_trial(work, seed))


def _torchrun_trial(work: Path, seed: int) -> tuple[Assignment, Places]:
    return prepared(work, "torchrun", seed, MINIBATCHES, Resources(checkpoint_sec=NEVER))


def rank_of_torchrun(work: Path, seed: int) -> None:
    """What torchrun runs on each rank."""
    dist.init_process_group("gloo")
    for _ in run_trial(*_torchrun_trial(work, seed), team=Team(dist.get_rank(), dist.get_world_size())):
        pass
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank-of", nargs=2, metavar=("WORK", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args().rank_of
    if given:
        rank_of_torchrun(Path(given[0]), int(given[1]))
        return
    os.environ.update({"RAY_worker_niceness": "0"})  # As torchrun's ranks have it.
    with tempfile.TemporaryDirectory() as scratch, ray_session(RANKS):
        work = Path(scratch)
        for _ in write_shards(mnist_digits(), work / "digits", [8], image_channels=1):
            pass
        rounds = []
        for seed in range(ROUNDS):
            rounds.append(_one_round(work, seed))
            print(f"round {seed + 1}: {rounds[-1]}", flush=True)
    told(rounds)


@dataclass(frozen=True)
class Round:
    """Minibatches per second of each arm, and the seconds that a kept state took."""

    ray: float
    torchrun: float
    states: float
    state_sec: float


def _one_round(work: Path, seed: int) -> Round:
    """Who goes first changes from round to round."""
    if seed % 2:
        theirs = under_torchrun(work, seed)
        ours = under_ray(work, seed)
    else:
        ours = under_ray(work, seed)
        theirs = under_torchrun(work, seed)
    states, kept = keeping_states(work, seed)
    return Round(ours, theirs, states, (MINIBATCHES / states - MINIBATCHES / ours) / kept)


def told(rounds: list[Round]) -> None:
    """Print what was measured."""
    table = Table("arm", "minibatches/s, median (extremes)", title=f"{RANKS} gloo ranks, {machine_line()}")
    arms = {"TorchTrainer": "ray", "torchrun": "torchrun", "TorchTrainer, all states kept": "states"}
    for name, field in arms.items():
        speeds = [getattr(each, field) for each in rounds]
        table.add_row(name, f"{median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})")
    Console(width=120).print(table)
    ratios = sorted(each.ray / each.torchrun for each in rounds)
    costs = sorted(each.state_sec for each in rounds)
    print(f"spread of the ratio over {len(rounds)} rounds: {ratios[0]:.3f} to {ratios[-1]:.3f}")
    print(f"seconds a kept state takes: {median(costs):.2f} ({costs[0]:.2f} to {costs[-1]:.2f})")
    print(f"distributed: throughput of TorchTrainer over torchrun = {median(ratios):.3f} (goal >= 0.99)")


if __name__ == "__main__":
    main()
