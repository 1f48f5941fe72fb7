"""Where the noise of a study comes from: the seed, the training, the evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, norm


@dataclass(frozen=True)
class NoiseBudget:
    """Components of the variance of a log metric, as standard deviations.

    Attributes:
        seed: What all arms of a seed share (minibatches, noise); it cancels in paired differences.
        residual: What is left between arms of one seed, training and evaluation together.
        residual_low, residual_high: Its 95 % interval.
        evaluation: Standard error of one evaluation; NaN where it was not measured.
        training: ``residual`` without ``evaluation``; NaN where that is not known, zero where the
            evaluation explains all of it.
        arms, seeds: How many of each were compared.
    """

    seed: float
    residual: float
    residual_low: float
    residual_high: float
    evaluation: float
    training: float
    arms: int
    seeds: int

    def paired_error(self, seeds: int) -> float:
        """Standard error of the mean difference of two arms over so many shared seeds."""
        return self.residual * math.sqrt(2 / seeds)

    def unpaired_error(self, seeds: int) -> float:
        """The same if every arm had seeds of its own: what pairing saves."""
        return math.hypot(self.residual, self.seed) * math.sqrt(2 / seeds)

    def seeds_for(self, effect: float, *, power: float = 0.8) -> int:
        """Shared seeds that show a difference of log metrics at 5 % (two-sided, normal), with the given power."""
        if effect == 0:
            raise ValueError("no number of seeds shows a difference of 0")
        reach = float(norm.ppf(0.975) + norm.ppf(power))
        return max(2, math.ceil(2 * (self.residual * reach / effect) ** 2))


def noise_budget(log_metrics: Mapping[str, Mapping[int, float]], evaluation_errors: Mapping[str, float]) -> NoiseBudget:
    """Two-way analysis of variance without interaction: log metric = arm + seed + residual.

    Arms lacking a seed that others have are compared on the seeds all of them have. The seed's component is
    (mean square between seeds - residual) / arms, and zero where that is negative.

    Args:
        log_metrics: Log metric by arm and seed.
        evaluation_errors: Standard errors of the log metric of single evaluations, by any name; their
            mean square is the evaluation's component.

    Raises:
        ValueError: Fewer than 2 arms or 2 shared seeds.
    """
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in log_metrics.values()))) if log_metrics else []
    arms, seeds = len(log_metrics), len(shared)
    if arms < 2 or seeds < 2:
        raise ValueError(f"noise needs 2 arms or more on 2 shared seeds or more, got {arms} and {seeds}")
    table = np.array([[by_seed[seed] for seed in shared] for by_seed in log_metrics.values()])
    centred = table - table.mean(axis=1, keepdims=True)
    by_seed = centred.mean(axis=0)
    degrees = (arms - 1) * (seeds - 1)
    residual = float(((centred - by_seed) ** 2).sum()) / degrees
    between = arms * float((by_seed**2).sum()) / (seeds - 1)
    low, high = (degrees * residual / float(chi2.ppf(q, degrees)) for q in (0.975, 0.025))
    known = [error for error in evaluation_errors.values() if math.isfinite(error)]
    evaluation = float(np.mean(np.square(known))) if known else math.nan
    training = max(0.0, residual - evaluation) if known else math.nan
    return NoiseBudget(
        seed=math.sqrt(max(0.0, (between - residual) / arms)),
        residual=math.sqrt(residual),
        residual_low=math.sqrt(low),
        residual_high=math.sqrt(high),
        evaluation=math.sqrt(evaluation),
        training=math.sqrt(training),
        arms=arms,
        seeds=seeds,
    )
