"""Two ranks under Ray Train against the same loop under torchrun: ``python -m benchmarks.distributed``.

Both train the same trial on two gloo ranks of this machine, in turns, beside the same idle Ray. The speed is
read off the trial's own curves, from its first report to its last, so that no start-up counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
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
    with tempfile.TemporaryDirectory() as scratch, ray_session(RANKS):
        work = Path(scratch)
        for _ in write_shards(mnist_digits(), work / "digits", [8], image_channels=1):
            pass
        pairs = []
        for seed in range(ROUNDS):
            pairs.append(_one_round(work, seed))
            print("round {}: {:.2f} and {:.2f} minibatches/s".format(seed + 1, *pairs[-1]), flush=True)
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    table = Table("arm", "minibatches/s, median (extremes)", title=f"{RANKS} gloo ranks, {machine_line()}")
    for name, speeds in zip(("TorchTrainer", "torchrun"), zip(*pairs, strict=True), strict=True):
        table.add_row(name, f"{median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})")
    Console(width=120).print(table)
    print(f"spread of the ratio over {ROUNDS} rounds: {ratios[0]:.3f} to {ratios[-1]:.3f}")
    print(f"distributed: throughput of TorchTrainer over torchrun = {median(ratios):.3f} (goal >= 0.99)")


def _one_round(work: Path, seed: int) -> tuple[float, float]:
    """Speed under Ray and under torchrun; who goes first changes from round to round."""
    if seed % 2:
        theirs = under_torchrun(work, seed)
        return under_ray(work, seed), theirs
    return under_ray(work, seed), under_torchrun(work, seed)


if __name__ == "__main__":
    main()
