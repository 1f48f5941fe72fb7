"""What a one-worker trial costs beyond its own work: ``python -m benchmarks.orchestration``.

Beside it the stock pattern, in which each Tune trial launches a ``TorchTrainer``. Both run the
same trials, one at a time; the work itself is measured inside the trial.
"""

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.table import Table

from atdiff_core.data.sources import mnist_digits
from atdiff_core.data.stream import open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.perturbations import Unperturbed
from atdiff_core.train_config import SCRATCH
from benchmarks.measuring import machine_line
from pipeline.cluster import ray_session
from pipeline.distributed import run_distributed
from pipeline.places import Places
from pipeline.programme import FixedProgramme
from pipeline.records import Assignment, declare, load_record
from pipeline.running import run_programme
from pipeline.tuning import tune_trials
from search_spaces.demo_tiny import space

TRIALS, STOCK_TRIALS = 8, 3


def assignments(shards: Path, count: int) -> list[Assignment]:
    base = space.base_config(8, open_shards(shards).fingerprint)
    trained = [space.trial_config(base, Unperturbed(), seed) for seed in range(count)]
    from_scratch = [trial.but(train=trial.train.but(start_from=SCRATCH), rung=1.0) for trial in trained]
    return [Assignment(trial, "search") for trial in from_scratch]


def ours(work: Path, shards: Path) -> list[float]:
    """Seconds beyond the work, for each trial after the first two, which fill the actor."""
    every = assignments(shards, TRIALS)
    ends: dict[Path, float] = {}

    def places_of(assignment: Assignment) -> Places:
        folder = work / "ours" / assignment.key[:16]
        return Places(shards=shards, folder=folder, start=folder, cache=work / "cache")

    folders = {each.key: places_of(each).folder for each in every}
    run_programme(
        FixedProgramme(every, folders),
        places_of,
        lambda keeper: tune_trials(keeper, title="ours", storage=work / "ray", cpus=1, workers=1),
        title="ours",
        on_change=lambda folder: ends.setdefault(folder, time.monotonic()),
        console=Console(quiet=True),
    )
    order = sorted(ends, key=lambda folder: ends[folder])
    gaps = [ends[later] - ends[earlier] for earlier, later in pairwise(order)]
    worked = [load_record(folder).sec for folder in order[1:]]
    return [gap - sec for gap, sec in zip(gaps, worked, strict=True)][1:]


def stock(work: Path, shards: Path) -> list[float]:
    """The same for trials that each launch a TorchTrainer with one worker."""

    def trial(config: dict[str, Any]) -> None:
        assignment = config["assignment"]
        folder = work / "stock" / assignment.key[:16]
        declare(folder, assignment)
        places = Places(shards=shards, folder=folder, start=folder, cache=work / "cache")
        began = time.monotonic()
        (judged,) = run_distributed(assignment, places)
        beyond = time.monotonic() - began - load_record(folder).sec
        tune.report({"metric": judged.metric, "beyond": beyond})

    every = assignments(shards, TRIALS + STOCK_TRIALS)[TRIALS:]
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.01}),
        param_space={"assignment": tune.grid_search(every)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="stock", storage_path=str(work / "ray"), verbose=0),
    )
    return [float(result.metrics["beyond"]) for result in tuner.fit() if result.metrics]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, ray_session(2, dashboard=True):
        work = Path(scratch)
        for _ in write_shards(mnist_digits(), work / "digits", [8], image_channels=1):
            pass
        shards = work / "digits" / "8px"
        beyond = {"reused Tune actor (ours)": ours(work, shards)}
        if "--ours-only" not in sys.argv:
            beyond["TorchTrainer in each trial (stock)"] = stock(work, shards)
        table = Table(
            "pattern", "trials", "seconds beyond the trial's own work, median (extremes)", title=machine_line()
        )
        for name, seconds in beyond.items():
            spread = f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            table.add_row(name, str(len(seconds)), spread)
        Console(width=120).print(table)
        ray.shutdown()
    ours_median = median(beyond["reused Tune actor (ours)"])
    print(f"orchestration: seconds beyond a one-worker trial's own work = {ours_median:.2f} (goal <= 1.5)")


if __name__ == "__main__":
    main()
