"""Paired effects with their intervals, and what looking at many of them costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Literal

import numpy as np
from scipy.stats import ttest_1samp

LEVEL = 0.05
Verdict = Literal["better", "worse", "not told apart", "one seed", "no ratio"]


@dataclass(frozen=True)
class Effect:
    """How a metric differs from another, paired by seed; lower metrics are better.

    Attributes:
        log_ratios: log(metric / metric of the other), one a seed.
    """

    log_ratios: tuple[float, ...]

    @property
    def seeds(self) -> int:
        return len(self.log_ratios)

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        return mean(self.log_ratios) if self.log_ratios else math.nan

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean (Student's t); NaN with less than two seeds."""
        if self.seeds < 2:
            return math.nan, math.nan
        if self._constant:
            return self.mean, self.mean
        low, high = ttest_1samp(self.log_ratios, 0.0).confidence_interval(1 - LEVEL)
        return float(low), float(high)

    @cached_property
    def p_value(self) -> float:
        """Probability, without an effect, of a mean at least as far from zero (two-sided t test)."""
        if self.seeds < 2:
            return math.nan
        if self._constant:
            return 1.0 if self.mean == 0 else 0.0
        return float(ttest_1samp(self.log_ratios, 0.0).pvalue)

    @property
    def verdict(self) -> Verdict:
        """What the 95 % interval says on its own."""
        return self.verdict_at(self.p_value)

    def verdict_at(self, p_value: float) -> Verdict:
        """The verdict at a p-value that may be adjusted for other tests."""
        if self.seeds < 2:
            return "one seed" if self.seeds else "no ratio"
        if p_value >= LEVEL:
            return "not told apart"
        return "better" if self.mean < 0 else "worse"

    @property
    def _constant(self) -> bool:
        """No spread at all, as between trainings that are equal bit for bit."""
        return max(self.log_ratios) == min(self.log_ratios)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the chance of any false finding among them (Holm, 1979).

    NaN (an untested effect) stays NaN and does not count as a test.
    """
    p = np.asarray(p_values, dtype=float)
    ascending = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is sorted last.
    still_open = np.arange(len(ascending), 0, -1)
    p[ascending] = np.minimum(1.0, np.maximum.accumulate(still_open * p[ascending]))
    return [float(value) for value in p]
