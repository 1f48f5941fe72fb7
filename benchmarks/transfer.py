"""Passes until eta* is known to 10 % at the largest resolution: ``python -m benchmarks.transfer``.

Four searches of the same simulated ladders (``benchmarks.response_family``), one trial at a time:

* stock: ``OptunaSearch`` and ASHA of Ray Tune, the very classes, driven in this process; its eta* is
  that of the best trial. ``--ray`` runs some of the seeds through ``tune.Tuner`` on a real Ray and compares.
* alone: our search of the largest resolution without transfer (spread trials, then multivariate TPE: the Gaussian
  process of smaller studies would take hours of CPU for 50 seeds); eta* from the fitted response.
* transfer: the same after the three smaller resolutions were searched, with what they taught.

* half: transfer with every guided trial ended at half its budget: the cheapest use of a second fidelity.

A search *knows* eta* from the first moment after which its stated eta* stays within 10 % of the
truth until the end of the budget. One unit is a trial of full budget; controls count, stopped trials
count half. The smaller resolutions are counted apart, at their share of the compute.
"""

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table
from scipy.stats.qmc import LatinHypercube

from atdiff_core.response import Observation, fit_response
from atdiff_core.transfer import FinishedRung, TransferredSearch
from benchmarks.measuring import machine_line
from benchmarks.response_family import Bench, Curve, Family, Ladder, draw_ladder
from benchmarks.stock_search import stock, through_tuner
from benchmarks.traces import Trace
from pipeline.halving import goes_on

FAMILY = Family()
BUDGET = 40.0
RUNG_TRIALS, RAY_TRIALS = 16, 15
OUTSIDE_EVERY = 4
DRAWS = 400
TRIALS = int(BUDGET) - 2
SPREAD_FRACTION, KEEP = 2 / 3, 3 / 4
DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    "eta": optuna.distributions.FloatDistribution(math.exp(FAMILY.log_low), math.exp(FAMILY.log_high), log=True),
    "setting": optuna.distributions.CategoricalDistribution([0, 1]),
}
CONTROLS = 2.0  # Plain training and the replay control.


class OurStudy:
    """One resolution searched as ``StudyProgramme`` does, without its storage: spread trials, then the sampler's."""

    def __init__(self, bench: Bench, seed: int, trials: int, *, half: bool = False) -> None:
        """``half`` ends guided trials at half their budget."""
        self.bench, self.spent, self._half = bench, CONTROLS, half
        self.observations: list[Observation] = []
        self._control = bench.control(0)
        self._rung: list[float] = []
        self._optuna = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
        for place, setting in LatinHypercube(d=2, rng=seed).random(round(SPREAD_FRACTION * trials)):
            eta = math.exp(FAMILY.log_low + float(place) * (FAMILY.log_high - FAMILY.log_low))
            self._optuna.enqueue_trial({"eta": eta, "setting": int(setting * 2)})

    def run(self, log_eta: float | None = None) -> None:
        """One trial: at the given strength, run to its end, or where the study wants it, perhaps stopped."""
        if log_eta is not None:
            curve = self.bench.trial(log_eta, seed=0, setting=len(self.observations) % 2)
            self._rung.append(curve.half)
            self._seen(log_eta, curve, stopped=self._half)
            return
        trial = self._optuna.ask(DISTRIBUTIONS)
        log_eta = math.log(trial.params["eta"])
        curve = self.bench.trial(log_eta, seed=0, setting=trial.params["setting"])
        stopped = not goes_on(curve.half, self._rung, KEEP)
        self._rung.append(curve.half)
        state = optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE
        self._optuna.tell(trial, None if stopped else math.exp(curve.full), state=state)
        self._seen(log_eta, curve, stopped=stopped)

    def _seen(self, log_eta: float, curve: Curve, *, stopped: bool) -> None:
        effect = curve.half - self._control.half if stopped else curve.full - self._control.full
        self.observations.append(Observation(math.exp(log_eta), effect, 0, 0.5 if stopped else 1.0))
        self.spent += 0.5 if stopped else 1.0


def searched(ladder: Ladder, seed: int) -> tuple[list[FinishedRung], float]:
    """The smaller resolutions, each taught by those before it; their cost in trials of the largest one."""
    finished: list[FinishedRung] = []
    cost = 0.0
    top = ladder.sides[-1]
    for side, response in zip(ladder.sides[:-1], ladder.responses[:-1], strict=True):
        ours = OurStudy(Bench(response, (11, seed, side)), seed, RUNG_TRIALS)
        run_rung(ours, [rung for rung in finished if rung.optimum.found], side, RUNG_TRIALS)
        optimum = fit_response(ours.observations, draws=DRAWS).optimum
        finished.append(FinishedRung(side**2, tuple(ours.observations), optimum))
        cost += ours.spent * side**2 / top**2
    return [rung for rung in finished if rung.optimum.found], cost


def run_rung(
    ours: OurStudy, taught: list[FinishedRung], side: int, trials: int, told: Callable[[float], None] | None = None
) -> None:
    """Every fourth trial is spread over the whole range, the others are where the finished rungs say."""
    search = TransferredSearch(tuple(taught), side**2, FAMILY.log_low, FAMILY.log_high) if taught else None
    place = search.place(()) if search else None
    for number in range(trials):
        outside = number % OUTSIDE_EVERY == OUTSIDE_EVERY - 1
        ours.run(None if search is None or place is None or outside else search.choose(place))
        if search is not None:
            place = search.place(ours.observations)
            if told is not None:
                told(place.quantile(0.5))


def transferred(ladder: Ladder, taught: list[FinishedRung], seed: int, *, half: bool = False) -> Trace:
    """The largest resolution with what the others taught; without, where none of them showed an optimum."""
    if not taught:
        return alone(ladder, seed)
    ours, trace = OurStudy(top_bench(ladder, seed), seed, TRIALS, half=half), Trace()
    best = ladder.responses[-1].log_best
    run_rung(ours, taught, ladder.sides[-1], TRIALS, lambda stated: trace.state(ours.spent, stated - best))
    return trace


def alone(ladder: Ladder, seed: int) -> Trace:
    """The largest resolution on its own."""
    ours, trace = OurStudy(top_bench(ladder, seed), seed, TRIALS), Trace()
    while ours.spent < BUDGET:
        ours.run()
        if len({one.eta for one in ours.observations}) >= 4:
            stated = math.log(fit_response(ours.observations, draws=DRAWS).optimum.eta)
            trace.state(ours.spent, stated - ladder.responses[-1].log_best)
    return trace


def top_bench(ladder: Ladder, seed: int) -> Bench:
    """The largest resolution, with the same noise for every search."""
    return Bench(ladder.responses[-1], (12, seed))


@dataclass(frozen=True)
class Compared:
    """The traces of one seed by search, and what the smaller resolutions cost, in trials of the largest."""

    traces: dict[str, Trace]
    cost: float


STOCK, STOCK_KEEPING, ALONE = "stock, ASHA's defaults", "stock, keeping 3/4", "ours alone"
TRANSFER, HALF = "ours, transfer", "the same at half budget"


def compare(seed: int) -> Compared:
    """All searches of one seed."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ladder = draw_ladder(np.random.default_rng([11, seed]), family=FAMILY)
    taught, cost = searched(ladder, seed)
    traces = {
        STOCK: stock(top_bench(ladder, seed), seed, family=FAMILY, budget=BUDGET, keep=1 / 4),
        STOCK_KEEPING: stock(top_bench(ladder, seed), seed, family=FAMILY, budget=BUDGET, keep=3 / 4),
        ALONE: alone(ladder, seed),
        TRANSFER: transferred(ladder, taught, seed),
        HALF: transferred(ladder, taught, seed, half=True),
    }
    return Compared(traces, cost)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--ray", type=int, default=0, metavar="N", help="run stock for N seeds through a real Tuner, too"
    )
    asked = parser.parse_args()
    console = Console(width=118)
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        compared = list(pool.map(compare, range(asked.first_seed, asked.first_seed + asked.seeds)))
    medians = print_comparison(compared, console)
    if asked.ray:
        agree = [_agrees(seed) for seed in range(asked.ray)]
        console.print(
            f"stock through tune.Tuner, {RAY_TRIALS} trials: {sum(agree)} of {asked.ray} seeds run the same trials and "
            "state the same eta* after each"
        )
    stock_ratio = medians[TRANSFER] / min(medians[STOCK], medians[STOCK_KEEPING])
    alone_ratio = medians[TRANSFER] / medians[ALONE]
    console.print(
        f"passes against stock: {stock_ratio:.2f} (goal <= 0.4); against ours alone: {alone_ratio:.2f} (goal <= 0.7)"
    )
    return 0 if stock_ratio <= 0.4 and alone_ratio <= 0.7 else 1


def print_comparison(compared: Sequence[Compared], console: Console) -> dict[str, float]:
    """Print quartiles of the passes of every search; returns the medians, the budget where it was not enough."""
    cost = median(each.cost for each in compared)
    table = Table(title=f"{len(compared)} seeds, budget {BUDGET:g} trials; {machine_line()}", title_justify="left")
    for heading in (
        "search",
        "eta* known to 10 %, quartiles",
        "never",
        "first within 10 %",
        "rms log error at the end",
    ):
        table.add_column(heading)
    medians = {}
    for name in compared[0].traces:
        traces = [each.traces[name] for each in compared]
        known = [min(trace.known(), BUDGET) for trace in traces]
        never = sum(math.isinf(trace.known()) for trace in traces)
        quartiles = np.quantile(known, [0.25, 0.5, 0.75])
        medians[name] = float(quartiles[1])
        first = median(min(trace.first(), BUDGET) for trace in traces)
        error = math.sqrt(float(np.mean([trace.errors[-1] ** 2 for trace in traces])))
        shown = " / ".join(f"{passes:.1f}" for passes in quartiles)
        table.add_row(name, shown, f"{never}", f"{first:.1f}", f"{error:.3f}")
    console.print(table)
    console.print(
        "Passes in trials of full budget, controls included, at the largest resolution. The three smaller ones that "
        f"teach it cost {cost:.1f} such trials in compute ({medians[TRANSFER] + cost:.1f} with them); a sweep for the "
        "law runs them anyway."
    )
    return medians


def _agrees(seed: int) -> bool:
    """Whether a real Tuner runs the same trials of the stock search, and states the same eta* after each."""
    ladder = draw_ladder(np.random.default_rng([11, seed]), family=FAMILY)
    inside = stock(top_bench(ladder, seed), seed, family=FAMILY, budget=RAY_TRIALS, keep=1 / 4)
    outside = through_tuner(top_bench(ladder, seed), seed, family=FAMILY, trials=RAY_TRIALS, keep=1 / 4)
    return inside.errors[:RAY_TRIALS] == outside.errors and inside.spent[:RAY_TRIALS] == outside.spent


if __name__ == "__main__":
    sys.exit(main())
