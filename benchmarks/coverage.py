"""How often the law is right about simulated sweeps whose truth is known: ``python -m benchmarks.coverage``.

Ladders of 8, 16, 32 and 64 pixels are searched as a sweep searches them without transfer (spread trials, then
trials near the best, ASHA at half the budget, two leaders repeated with a second seed), and the law is asked for
the exponent and for the optimum at 128 pixels. ``benchmarks.response_family`` says what the truth looks like.
Sweeps whose optima do not carry a law are refused one and counted; coverage is among the laws given.
"""

import argparse
import math
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats.qmc import LatinHypercube

from atdiff_core.laws import LawRefused, PowerLaw, Rung, fit_power_law
from atdiff_core.response import Observation, Optimum, fit_response
from benchmarks.measuring import machine_line
from benchmarks.response_family import MONOTONE, VALLEYS, Bench, Curve, Family, Response, Shape, draw_ladder
from pipeline.halving import goes_on

FAMILY = Family()
SIDES, UNSEEN = (8, 16, 32, 64), 128
TRIALS, SPREAD, KEEP, LEADERS = 16, 11, 0.75, 2
LEVELS = (0.5, 0.8, 0.95)


class Study:
    """One resolution: its trials, their effects against the control of their seed."""

    def __init__(self, response: Response, rng: np.random.Generator) -> None:
        self._bench, self._rng = Bench(response, (int(rng.integers(2**31)),)), rng
        self._controls: dict[int, Curve] = {}
        self._rung: list[float] = []
        self.observations: list[Observation] = []

    def run(self, log_eta: float, seed: int = 0) -> None:
        """One trial; with the seed of the search it may be stopped at half its budget."""
        control = self._controls.setdefault(seed, self._bench.control(seed))
        curve = self._bench.trial(log_eta, seed, int(self._rng.integers(2)))
        stopped = seed == 0 and not goes_on(curve.half, self._rung, KEEP)
        if seed == 0:
            self._rung.append(curve.half)
        effect = curve.half - control.half if stopped else curve.full - control.full
        self.observations.append(Observation(math.exp(log_eta), effect, seed, 0.5 if stopped else 1.0))

    def thompson(self) -> float:
        """Where one draw of the response is lowest: tries the best places more often, as a sampler does."""
        fit = fit_response(self.observations, draws=100, seed=len(self.observations))
        return float(self._rng.choice(fit.optimum.samples))

    def leaders(self) -> list[float]:
        complete = [one for one in self.observations if one.weight == 1.0]
        return [math.log(one.eta) for one in sorted(complete, key=lambda one: one.effect)[:LEADERS]]


def search(response: Response, rng: np.random.Generator) -> Optimum:
    """A whole study of one resolution."""
    study = Study(response, rng)
    for place in LatinHypercube(d=1, rng=rng).random(SPREAD)[:, 0]:
        study.run(FAMILY.log_low + float(place) * (FAMILY.log_high - FAMILY.log_low))
    for _ in range(TRIALS - SPREAD):
        study.run(study.thompson())
    for log_eta in study.leaders():
        study.run(log_eta, seed=1)
    return fit_response(study.observations, draws=1000).optimum


@dataclass(frozen=True)
class Sweep:
    """One simulated sweep and whether each of its statements was true.

    Attributes:
        law: The law, or ``None`` where it was refused.
        exponent: Whether the 95 % interval holds the true exponent.
        predicted: Whether the central prediction intervals at ``LEVELS`` hold the true optimum at 128 px.
        optima: Of every optimum found, whether its 95 % interval holds the truth.
        width: Width of the exponent's interval.
    """

    law: PowerLaw | None
    exponent: bool = False
    predicted: tuple[bool, ...] = ()
    optima: tuple[bool, ...] = ()
    width: float = math.nan


def sweep(seed: int) -> Sweep:
    rng = np.random.default_rng([5, seed])
    ladder = draw_ladder(rng, sides=SIDES, family=FAMILY)
    optima = [search(response, rng) for response in ladder.responses]
    right = tuple(
        optimum.low <= math.exp(response.log_best) <= optimum.high
        for optimum, response in zip(optima, ladder.responses, strict=True)
        if optimum.found
    )
    rungs = [Rung(f"{side} px", side**2, optimum) for side, optimum in zip(SIDES, optima, strict=True)]
    try:
        law = fit_power_law(rungs, seed=seed)
    except LawRefused:
        return Sweep(None, optima=right)
    unseen = ladder.log_law(UNSEEN) + FAMILY.scatter * rng.standard_normal()
    draws = law.line.draws_at(math.log(UNSEEN**2))
    predicted = []
    for level in LEVELS:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        predicted.append(bool(low <= unseen <= high))
    covers = law.exponent_low <= ladder.exponent <= law.exponent_high
    return Sweep(law, covers, tuple(predicted), right, law.exponent_high - law.exponent_low)


def verdicts(shape: Shape, studies: int) -> Counter[str]:
    """How often each verdict is given on a shape."""
    counts: Counter[str] = Counter()
    for seed in range(studies):
        rng = np.random.default_rng([6, seed])
        ladder = draw_ladder(rng, sides=SIDES, shape=shape, family=FAMILY)
        counts[search(ladder.responses[seed % len(SIDES)], rng).verdict] += 1
    return counts


def show_coverage(console: Console, count: int) -> bool:
    """Simulate sweeps and say how often their intervals hold the truth; whether the goal is met."""
    sweeps = [sweep(seed) for seed in track(range(count), "sweeps", console=console)]
    given = [each for each in sweeps if each.law is not None]
    exponent = float(np.mean([each.exponent for each in given]))
    left_out = [left.inside for each in given if each.law for left in each.law.leave_one_out]
    optima = [right for each in sweeps for right in each.optima]
    table = Table(title=f"coverage; {machine_line()}", title_justify="left")
    for heading in ("statement", "true", "of", "nominal"):
        table.add_column(heading)
    rows = [("95 % interval of the exponent holds it", exponent, len(given), "95 %, goal >= 93 %")]
    for place, level in enumerate(LEVELS):
        share = float(np.mean([each.predicted[place] for each in given]))
        rows.append((f"{level:.0%} prediction interval at {UNSEEN} px holds eta*", share, len(given), f"{level:.0%}"))
    rows.append(("a rung left out lies in its 95 % interval", float(np.mean(left_out)), len(left_out), "95 %"))
    rows.append(("95 % interval of an optimum found holds it", float(np.mean(optima)), len(optima), "95 %"))
    for name, share, of, nominal in rows:
        error = math.sqrt(share * (1 - share) / of)
        table.add_row(name, f"{share:.1%} (± {1.96 * error:.1%})", f"{of}", nominal)
    console.print(table)
    widths = np.quantile([each.width for each in given], [0.25, 0.5, 0.75])
    console.print(
        f"laws given: {len(given)} of {len(sweeps)} sweeps; width of their intervals, quartiles: {widths.round(2)}"
    )
    console.print(f"coverage: exponent {exponent:.3f} (goal >= 0.93)")
    return exponent >= 0.93


def show_verdicts(console: Console, count: int) -> bool:
    """Simulate studies of every shape and say which verdicts are given; whether the goal is met."""
    table = Table(title=f"verdicts, {count} studies of one resolution each; {machine_line()}", title_justify="left")
    for heading in ("truth", "optimum", "flat", "falling", "rising", "not_better"):
        table.add_column(heading)
    none_when_flat = math.nan
    for shape in track((*VALLEYS, "flat", *MONOTONE), "verdicts", console=console):
        counts = verdicts(shape, count)
        shares = [counts[name] / count for name in ("optimum", "flat", "falling", "rising", "not_better")]
        none_when_flat = 1 - shares[0] if shape == "flat" else none_when_flat
        table.add_row(shape, *(f"{share:.0%}" for share in shares))
    console.print(table)
    console.print(f"coverage: no optimum when flat {none_when_flat:.3f} (goal >= 0.90)")
    return none_when_flat >= 0.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=300, help="simulated sweeps; 0 leaves them out")
    parser.add_argument("--studies", type=int, default=200, help="simulated studies of each shape; 0 leaves them out")
    asked = parser.parse_args()
    console = Console(width=110)
    reached = [show_coverage(console, asked.sweeps)] if asked.sweeps else []
    if asked.studies:
        reached.append(show_verdicts(console, asked.studies))
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
