"""What a distance costs: in network evaluations when sampling, in passes when training."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from pipeline.records import TrialRecord
from pipeline.results import StudyResult


@dataclass(frozen=True)
class Outcome:
    """One trained network under one sampler, after so many passes.

    Attributes:
        name: Role of the trial, and its key.
        kpass: Of fine-tuning; zero for the base model.
        distance: Lower is better.
        best: Whether no other outcome is at least as good in all three and better in one.
    """

    name: str
    role: str
    nfe: int
    sampler: str
    kpass: float
    distance: float
    best: bool = False


def outcomes(study: StudyResult) -> list[Outcome]:
    """Every network of a study under every sampler it was judged with, the Pareto set marked."""
    found = [each for trial in (study.base, *study.trials) for each in _of_trial(trial, study)]
    best = pareto([(each.distance, each.nfe, each.kpass) for each in found])
    return [
        Outcome(each.name, each.role, each.nfe, each.sampler, each.kpass, each.distance, mark)
        for each, mark in zip(found, best, strict=True)
    ]


def _of_trial(trial: TrialRecord, study: StudyResult) -> Iterable[Outcome]:
    evaluation = trial.assignment.config.evaluation
    role = trial.assignment.role
    for sampler in evaluation.samplers:
        distance = trial.result.get(f"{evaluation.metric_name}/{sampler.name}")
        if distance is not None and trial.status == "complete":
            kpass = 0.0 if trial is study.base else trial.curves[-1].kpass
            yield Outcome(f"{role} {trial.key[:12]}", role, sampler.nfe, sampler.label, kpass, distance)


def pareto(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each row is in the Pareto set: no other row is nowhere larger and somewhere smaller."""
    table = np.asarray(costs, dtype=float)
    if not len(table):
        return []
    nowhere_larger = (table[None] <= table[:, None]).all(axis=2)
    somewhere_smaller = (table[None] < table[:, None]).any(axis=2)
    dominated = np.any(nowhere_larger & somewhere_smaller, axis=1)
    return [not bool(each) for each in dominated]


@dataclass(frozen=True)
class PassesFit:
    """distance = exp(intercept) * kpass^slope for one scheme, over its seeds.

    Attributes:
        slope: Doubling the passes multiplies the distance by 2^slope.
        slope_low, slope_high: 95 % interval (Student's t); NaN with as many numbers as unknowns.
        points: (kpass, distance), all seeds.
    """

    scheme: str
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    points: tuple[tuple[float, float], ...]
    std: float
    spread: tuple[float, float]

    def band(self, kpass: float) -> tuple[float, float, float]:
        """Distance at ``kpass`` and its 95 % band; the band is NaN where the interval is."""
        middle = self.intercept + self.slope * math.log(kpass)
        centre, squares = self.spread
        half = math.nan
        if len(self.points) > 2:
            error = self.std * math.sqrt(1 / len(self.points) + (math.log(kpass) - centre) ** 2 / squares)
            half = float(student_t.ppf(0.975, len(self.points) - 2)) * error
        return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def fit_passes(scheme: str, trials: Sequence[TrialRecord]) -> PassesFit | None:
    """Least squares of log distance on log passes; ``None`` where passes do not differ or a distance is not > 0."""
    points = [(kpass, metric) for trial in trials for kpass, metric in trial.metric_at().items() if kpass > 0]
    if len({kpass for kpass, _ in points}) < 2 or any(metric <= 0 for _, metric in points):
        return None
    x, y = np.log(np.array(points)).T
    centre, squares = float(x.mean()), float(((x - x.mean()) ** 2).sum())
    slope = float(((x - centre) * y).sum()) / squares
    intercept = float(y.mean()) - slope * centre
    freedom = len(x) - 2
    std = math.sqrt(float(((y - intercept - slope * x) ** 2).sum()) / freedom) if freedom else math.nan
    half = float(student_t.ppf(0.975, freedom)) * std / math.sqrt(squares) if freedom else math.nan
    return PassesFit(scheme, slope, slope - half, slope + half, intercept, tuple(points), std, (centre, squares))
