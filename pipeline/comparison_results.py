"""From the folders of a comparison to paired effects of its arms."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean

from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.samplers import Sampler
from pipeline.effects import Effect, Verdict, holm
from pipeline.records import TrialRecord, load_records
from pipeline.workspace import Workspace
from search_spaces.comparison import PLAIN, Comparison


@dataclass(frozen=True)
class Cell:
    """One arm against another, with one sampler at one NFE, or averaged over several.

    Attributes:
        arm: Name of the arm.
        against: Name of the arm it is compared with.
        samplers: One of them, or all that the effect averages over.
        effect: log(metric / metric of the other), paired by seed. A seed has no ratio where a
            metric is not positive: an unbiased kernel distance may be zero or below where
            nothing is left to gain.
        p_holm: The effect's p-value, adjusted for all the tests of its family.
    """

    arm: str
    against: str
    samplers: tuple[Sampler, ...]
    effect: Effect
    p_holm: float

    @property
    def verdict_holm(self) -> Verdict:
        return self.effect.verdict_at(self.p_holm)


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison, finished or not, read back from its folders.

    Attributes:
        comparison: What was asked.
        base: The base model's trial; empty before it has begun.
        trials: Every trial of every arm that has begun.
    """

    comparison: Comparison
    base: tuple[TrialRecord, ...]
    trials: tuple[TrialRecord, ...]

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        return self.comparison.trial_evaluation.samplers

    @property
    def planned(self) -> int:
        return len(self.comparison.arms) * self.comparison.seeds

    def of_arm(self, name: str) -> list[TrialRecord]:
        """Complete trials of an arm, in order of their seeds."""
        complete = [trial for trial in self.trials if trial.assignment.of == name and trial.status == "complete"]
        return sorted(complete, key=lambda trial: trial.seed)

    def metrics(self, name: str, sampler: Sampler) -> dict[int, float]:
        """Metric by seed of one arm with one sampler."""
        return {trial.seed: distance(trial, sampler) for trial in self.of_arm(name)}

    def base_metric(self, sampler: Sampler) -> float | None:
        """Metric of the base model; none before it is complete, or where the sampler cannot step it."""
        for base in self.base:
            if base.status == "complete" and sampler in base.assignment.config.evaluation.samplers:
                return distance(base, sampler)
        return None

    def cell(self, arm: str, against: str, samplers: Sequence[Sampler]) -> Cell:
        """An arm against another; over several samplers a seed's log ratios are averaged.

        A sampler that has no ratio with some seed is left out of the average for every seed, so
        that all seeds average over the same ones.
        """
        each = [self._ratios(arm, against, sampler) for sampler in samplers]
        seeds = sorted(set().union(*each))
        known = [ratios for ratios in each if len(ratios) == len(seeds)]
        ratios = tuple(mean(ratios[seed] for ratios in known) for seed in seeds if known)
        effect = Effect(ratios)
        return Cell(arm, against, tuple(samplers), effect, effect.p_value)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every arm against its reference and against plain, with every sampler: one family of tests."""
        return _adjusted(self.cell(*pair, (sampler,)) for pair in self.pairs for sampler in self.samplers)

    @cached_property
    def at_trial_metric(self) -> tuple[Cell, ...]:
        """The same at the trial metric, the one declared beforehand: a family of its own."""
        return _adjusted(self.cell(*pair, self.samplers[:1]) for pair in self.pairs)

    @cached_property
    def overall(self) -> tuple[Cell, ...]:
        """The same with each seed's effects averaged over all samplers: a family of its own."""
        return _adjusted(self.cell(*pair, self.samplers) for pair in self.pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(arm, other): each arm with its reference, then with plain where that is another one."""
        arms = [arm for arm in self.comparison.arms if arm.name != PLAIN]
        return [(arm.name, other) for arm in arms for other in dict.fromkeys((arm.reference, PLAIN))]

    def _ratios(self, arm: str, against: str, sampler: Sampler) -> dict[int, float]:
        """log(metric / metric of the other) by seed, where there is one."""
        ours, theirs = self.metrics(arm, sampler), self.metrics(against, sampler)
        shared = [seed for seed in ours if seed in theirs and ours[seed] > 0 and theirs[seed] > 0]
        return {seed: math.log(ours[seed] / theirs[seed]) for seed in shared}


def distance(trial: TrialRecord, sampler: Sampler) -> float:
    """The metric of a complete trial with one sampler."""
    return trial.result[figure_name(trial.assignment.config.evaluation, sampler)]


def figure_name(evaluation: EvaluationConfig, sampler: Sampler) -> str:
    """What the evaluation calls the metric with this sampler."""
    return f"{evaluation.metric_name}/{sampler.name}"


def by_series(samplers: Iterable[Sampler]) -> dict[str, list[Sampler]]:
    """Samplers that differ in nothing but NFE, ascending, by their label."""
    series: dict[str, list[Sampler]] = {}
    for sampler in sorted(samplers, key=lambda sampler: sampler.nfe):
        series.setdefault(sampler.label, []).append(sampler)
    return dict(sorted(series.items()))


def load_comparison_result(workspace: Workspace) -> ComparisonResult:
    """Read a comparison from its folder, finished or not."""
    records = load_records(workspace.folder / "trials")
    base = tuple(record for record in records if record.assignment.role == "base")
    trials = tuple(record for record in records if record.assignment.role == "arm")
    return ComparisonResult(workspace.comparison(), base, trials)


def _adjusted(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells with p-values adjusted for each other."""
    family = list(cells)
    adjusted = holm([cell.effect.p_value for cell in family])
    return tuple(replace(cell, p_holm=p_value) for cell, p_value in zip(family, adjusted, strict=True))
