"""What searcher and bookkeeping cost beside the trials: ``python -m benchmarks.bookkeeping``.

A study of 500 search trials goes through everything a driver does around a trial: ask, the report
at the rung and its decision, tell, the ledger, the copy to MLflow, over real sqlite databases. Only
the training is left out: a trial writes the files it would have written, and sleeps. The driver's
time is wall-clock minus that. The copy to MLflow runs in a thread beside the trials, as in a sweep;
what it takes from the processor is told apart.
"""

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean, median

from rich.console import Console

from atdiff_core.files import write_json
from benchmarks.measuring import machine_line
from pipeline.background_copy import copying
from pipeline.bookkeeping import Bookkeeper
from pipeline.ledger import Ledger, figures_of
from pipeline.places import Places
from pipeline.records import RESULT, Assignment, append_curve, declare, is_complete, rung_kpass
from pipeline.running import run_programme
from pipeline.spending import TrialMeter
from pipeline.study import StudyProgramme
from pipeline.tracking import Tracker
from pipeline.trial_events import Judged
from pipeline.workspace import Workspace
from search_spaces.demo_tiny import space as tiny

GOAL_MS, WINDOW = 50, 50
REPORTS = 20


class Sleeper:
    """Stands in for training, and times all the rest.

    Attributes:
        driver_ms: Wall-clock of the driver around each trial.
        rss_mb: The driver's memory after each trial.
    """

    def __init__(self, trial_sec: float) -> None:
        self._trial_sec = trial_sec
        self._trial = 0.0
        self.driver_ms: list[float] = []
        self.rss_mb: list[float] = []

    def __call__(self, keeper: Bookkeeper) -> None:
        ended = time.perf_counter()
        while (assignment := keeper.ask()) is not None:
            self._trial = 0.0
            keeper.began(assignment)
            for judged in self._judgements(assignment, keeper.places(assignment).folder):
                goes_on = judged.final or keeper.judged(assignment, judged)
                keeper.changed(assignment)
                if judged.final or not goes_on:
                    keeper.ended(assignment, judged)
                    break
            now = time.perf_counter()
            self.driver_ms.append(1000 * (now - ended - self._trial))
            self.rss_mb.append(_resident_mb())
            ended = now

    def _judgements(self, assignment: Assignment, folder: Path) -> Iterator[Judged]:
        began = time.perf_counter()
        declare(folder, assignment)
        meter, train = TrialMeter(folder), assignment.config.train
        budget, rung = train.minibatches * train.kpass_per_minibatch, rung_kpass(assignment.config)
        metric = _metric(assignment)
        for share in range(1, REPORTS + 1):
            kpass = budget * share / REPORTS
            append_curve(folder, kpass, {"train/loss": 0.1, "train/attack_gain": 1.2, "train/learning_rate": 1e-4})
            meter.trained(budget / REPORTS)
            if 2 * share == REPORTS and rung is not None:
                append_curve(folder, rung, {"eval/metric": metric})
                time.sleep(self._trial_sec / 2)
                self._trial += time.perf_counter() - began
                yield Judged(rung, metric, final=False)
                began = time.perf_counter()
        values = {"metric": metric} | {f"fd/{sampler.name}": metric for sampler in tiny.evaluation.samplers}
        append_curve(folder, budget, {f"eval/{name}": value for name, value in values.items()})
        write_json(folder / RESULT, {"kpass": budget, "values": values, "sec": self._trial_sec})
        time.sleep(self._trial_sec / 2)
        self._trial += time.perf_counter() - began
        yield Judged(budget, metric, final=True)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _metric(assignment: Assignment) -> float:
    perturbation = assignment.config.train.perturbation
    radius = perturbation.ball.radius if hasattr(perturbation, "ball") else 0.5
    return 9.0 + math.log(radius / 0.1) ** 2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--trial-sec", type=float, default=0.3, help="seconds that a trial sleeps")
    given = parser.parse_args(arguments)
    space = tiny.but(name="bookkeeping", trials=given.trials, ladder=(8,))
    sleeper = Sleeper(given.trial_sec)
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace(Path(scratch), space.name)
        workspace.claim(space)
        tracker, ledger = Tracker(workspace, space), Ledger(workspace)
        programme = StudyProgramme(space, space.base_config(8, "0" * 64), workspace.study_uri)

        def places_of(assignment: Assignment) -> Places:
            folder = workspace.trial(assignment.key)
            return Places(folder, folder, folder, folder)

        def copy(folder: Path) -> None:
            tracker.copy_trial(folder)
            ledger.refresh_trial(folder)
            if is_complete(folder):
                tracker.log_ledger(figures_of(ledger.total, space.price), step=ledger.trials)

        began = time.process_time()
        console = Console(quiet=True)
        with closing(programme), copying(copy, console) as copies:
            run_programme(programme, places_of, sleeper, title="", on_change=copies.copy_trial, console=console)
        cpu_ms = 1000 * (time.process_time() - began) / len(sleeper.driver_ms)
    told(sleeper, cpu_ms)


def told(sleeper: Sleeper, cpu_ms: float) -> None:
    """Print what was measured."""
    times, memory = sleeper.driver_ms, sleeper.rss_mb
    quartiles = sorted(times)[len(times) // 4], sorted(times)[3 * len(times) // 4]
    growth = (mean(memory[-WINDOW:]) - mean(memory[WINDOW : 2 * WINDOW])) / (len(memory) - 1.5 * WINDOW)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    first, last = mean(times[:WINDOW]), mean(times[-WINDOW:])
    print(machine_line())
    print(
        f"{len(times)} trials; driver ms a trial: median {median(times):.1f}, mean {mean(times):.1f}, "
        f"quartiles {quartiles[0]:.1f} and {quartiles[1]:.1f}, first {WINDOW}: {first:.1f}, last {WINDOW}: {last:.1f}"
    )
    print(f"processor ms a trial, the copy to MLflow and the trial's own files included: {cpu_ms:.1f}")
    print(
        f"memory: {memory[WINDOW]:.0f} MB after {WINDOW} trials, {memory[-1]:.0f} MB at the end "
        f"({1000 * growth:.0f} kB a trial), {peak:.0f} MB at most"
    )
    print(f"bookkeeping: mean driver ms a trial = {mean(times):.1f} (goal <= {GOAL_MS})")


if __name__ == "__main__":
    main()
