"""A sweep on 8, 64 and 512 GPUs, before anyone pays for them: ``python -m benchmarks.scaling``.

Three kinds of figures meet here. What the driver, MLflow and a checkpoint work for one trial is measured
(``service_costs``), and so are the seconds in ``SEEN``. How well a study fills the slots of a cluster is
simulated: the real programme, asked and told in virtual time, with trials that take random times. All the
rest is arithmetic on ``Given``, which nobody has measured here. docs/scaling.md discusses the result.
"""

import argparse
import heapq
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import machine_line
from benchmarks.service_costs import POINTS, Measured, measure
from pipeline.records import rung_kpass
from pipeline.side_by_side import SideBySide
from pipeline.study import StudyProgramme
from search_spaces.demo import space as demo
from search_spaces.operation import SearcherName
from search_spaces.space import Replication

SHAPES = ((8, 1, 1), (64, 1, 1), (64, 1, 3), (64, 8, 3), (512, 1, 3), (512, 8, 3))
"""GPUs of the cluster, GPUs of a trial, studies that run side by side."""


@dataclass(frozen=True)
class Given:
    """What two CPU cores cannot measure: put in your own.

    Attributes:
        images_per_sec: Forward and backward on one GPU; EDM on ImageNet-64 is published at about
            70 on an A100.
        parameters: Of that network, which trains with 16 bytes a parameter (weights, Adam's two
            moments, averaged weights, in float32).
        budget_kpass: Of one fine-tuning trial.
        evaluation_samples: Images of each judgement; ``evaluation_nfe`` forward passes make one.
        forward_share: Cost of a forward pass in units of forward and backward.
        duration_spread: Standard deviation of the log of a trial's duration.
        step_spread: Coefficient of variation of one rank's step, independent between ranks.
        losses_per_gpu_hour: Spot nodes taken away, for each of their GPUs.
        node_sec: Until another node stands in for one that was taken away.
        storage_bytes_per_sec: What the shared storage takes from all writers together.
        checkpoint_sec: Time between checkpoints.
        trials: Search trials at each resolution.
    """

    images_per_sec: float = 70.0
    parameters: float = 296e6
    bytes_per_parameter: int = 16
    budget_kpass: float = 2_000.0
    evaluation_samples: int = 5_000
    evaluation_nfe: int = 18
    judgements: int = 2
    forward_share: float = 1 / 3
    duration_spread: float = 0.10
    step_spread: float = 0.03
    losses_per_gpu_hour: float = 0.02
    node_sec: float = 240.0
    storage_bytes_per_sec: float = 2e9
    checkpoint_sec: float = 600.0
    trials: int = 48
    resolutions: int = 3
    leaders: int = 4
    seeds: int = 3


@dataclass(frozen=True)
class Seen:
    """Seconds measured by other benchmarks and tests; where is told in docs/scaling.md.

    Attributes:
        launch_sec: Beyond a trial's own work where Ray Train starts ranks for it.
        reuse_sec: The same for a trial of one rank, in an actor that is used again.
        report_sec: That all ranks wait where a state is reported to Ray Train. A guess for large networks: with
            the demo's small one it was 0.17 s at most.
        recovery_sec: From the loss of a node to the next step where another node stands ready.
    """

    launch_sec: float = 15.6
    reuse_sec: float = 0.02
    report_sec: float = 2.0
    recovery_sec: float = 30.0


SEEN = Seen()


@dataclass(frozen=True)
class Row:
    """One shape of cluster and sweep; loads are shares of one core, or of what the storage takes."""

    gpus: int
    gpus_per_trial: int
    side_by_side: int
    trial_hours: float
    sweep_hours: float
    busy: float
    driver_load: float
    mlflow_load: float
    storage_load: float
    judging_share: float
    waiting_share: float
    overhead_share: float
    losses_share: float


def _study(given: Given, folder: Path, searcher: SearcherName, number: int = 0) -> StudyProgramme:
    space = demo.but(
        name=f"scaling-{number}",
        trials=given.trials,
        replication=Replication(leaders=given.leaders, seeds=given.seeds),
        searcher=searcher,
    )
    return StudyProgramme(space, space.base_config(8, "d" * 64), f"sqlite:///{folder}/{number}.db")


@cache
def simulate(given: Given, slots: int, studies: int) -> tuple[float, float]:
    """Runs studies of the real programme side by side in virtual time.

    Metrics are random, so that the programme stops as many trials at their rungs as it means to.

    Returns:
        Time until the last trial ends, in units of a whole trial's median duration, and the share of the
        slots' time in which they worked.
    """
    draw = random.Random(0)
    running: list[tuple[float, int, Callable[[], float]]] = []
    now = worked = 0.0
    started = 0
    with tempfile.TemporaryDirectory() as folder:
        # Which points are drawn takes no time here, so the searcher that works least will do.
        programme = SideBySide([_study(given, Path(folder), "random", number) for number in range(studies)])
        while True:
            while len(running) < slots and (trial := _begun(programme, given, draw)) is not None:
                started += 1
                heapq.heappush(running, (now + trial[0], started, trial[1]))
                worked += trial[0]
            if not running:
                return now, worked / (slots * now)
            now, _, went_on = heapq.heappop(running)
            if (more := went_on()) > 0:
                started += 1
                heapq.heappush(running, (now + more, started, went_on))
                worked += more


def _begun(programme: SideBySide, given: Given, draw: random.Random) -> tuple[float, Callable[[], float]] | None:
    """Virtual time of the next trial up to its rung, and what to call then: it returns the time of the rest."""
    assignment = programme.ask()
    if assignment is None:
        return None
    duration = math.exp(draw.gauss(0, given.duration_spread))
    rung = rung_kpass(assignment.config) if assignment.may_stop_early else None
    budget = assignment.config.train.budget_kpass
    if rung is None:
        return duration, lambda: programme.tell(assignment.key, "complete", draw.random()) or 0.0
    left = [duration * (1 - rung / budget)]

    def went_on() -> float:
        if not left:
            programme.tell(assignment.key, "complete", draw.random())
        elif programme.report(assignment.key, rung, draw.random()):
            return left.pop()
        else:
            programme.tell(assignment.key, "pruned")
        return 0.0

    return duration * rung / budget, went_on


def straggling(given: Given, ranks: int, steps: int = 4_000) -> float:
    """Share of the time in which ranks wait for the slowest of them."""
    draw = random.Random(0)
    slowest = mean(max(draw.gauss(1, given.step_spread) for _ in range(ranks)) for _ in range(steps))
    return 1 - 1 / slowest


def row(given: Given, measured: Measured, gpus: int, ranks: int, side_by_side: int) -> Row:
    """All arithmetic of one shape."""
    waiting = straggling(given, ranks) if ranks > 1 else 0.0
    rate = given.images_per_sec * ranks * (1 - waiting)
    training_sec = given.budget_kpass * 1000 / rate
    forward_passes = given.judgements * given.evaluation_samples * given.evaluation_nfe
    judging_sec = forward_passes * given.forward_share / rate
    states = training_sec / given.checkpoint_sec
    overhead_sec = SEEN.launch_sec + states * SEEN.report_sec if ranks > 1 else SEEN.reuse_sec
    worked_sec = training_sec + judging_sec + overhead_sec
    again_sec = SEEN.recovery_sec + given.node_sec + given.checkpoint_sec / 2
    lost = given.losses_per_gpu_hour * ranks / 3600 * again_sec
    trial_sec = worked_sec * (1 + lost)

    slots = gpus // ranks
    length, busy = simulate(given, slots, side_by_side)
    trials_per_sec = busy * slots / trial_sec
    followed_sec = POINTS * measured.look_sec / 2 if ranks > 1 else 0.0
    written = busy * slots * given.parameters * given.bytes_per_parameter / given.checkpoint_sec
    return Row(
        gpus,
        ranks,
        side_by_side,
        trial_sec / 3600,
        length * given.resolutions / side_by_side * trial_sec / 3600,
        busy,
        trials_per_sec * (measured.driver_sec + measured.copy_sec + followed_sec),
        trials_per_sec * measured.mlflow_sec,
        written / given.storage_bytes_per_sec,
        judging_sec / worked_sec,
        waiting,
        overhead_sec / worked_sec,
        lost / (1 + lost),
    )


def table(rows: list[Row]) -> Table:
    drawn = Table(title="a sweep of three resolutions")
    loads = ("driver", "MLflow", "storage")
    shares = ("judging", "slowest rank", "Ray Train", "spot losses")
    for heading in ("GPUs", "a trial", "studies at once", "trial h", "sweep h", "busy", *loads, *shares):
        drawn.add_column(heading, justify="right")
    for each in rows:
        drawn.add_row(
            f"{each.gpus}",
            f"{each.gpus_per_trial}",
            f"{each.side_by_side}",
            f"{each.trial_hours:.2f}",
            f"{each.sweep_hours:.1f}",
            f"{each.busy:.0%}",
            f"{each.driver_load:.2%}",
            f"{each.mlflow_load:.2%}",
            f"{each.storage_load:.0%}",
            f"{each.judging_share:.1%}",
            f"{each.waiting_share:.1%}",
            f"{each.overhead_share:.2%}",
            f"{each.losses_share:.1%}",
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small study, to see that it runs")
    given = replace(Given(), trials=9, leaders=1) if parser.parse_args().quick else Given()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(_study(given, Path(folder), "auto"))
    console = Console(width=140)
    console.print(machine_line())
    console.print(
        f"CPU seconds: asking and telling {measured.driver_sec:.2f} a trial, copying {measured.copy_sec:.2f}, "
        f"MLflow with PostgreSQL {measured.mlflow_sec:.2f}, a look at a trial {measured.look_sec:.3f}, "
        f"a checkpoint {measured.checkpoint_sec_per_gb:.1f} a GB"
    )
    console.print(table([row(given, measured, *shape) for shape in SHAPES]))


if __name__ == "__main__":
    main()
