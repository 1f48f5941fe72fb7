"""The power law of the best strength against the number of elements, and what it predicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atdiff_core.response import Optimum

Array = NDArray[np.float64]
Norm = Literal["l1", "l2", "linf"]

raw_shift: dict[Norm, float] = {"l1": 1.0, "l2": 0.5, "linf": 0.0}
"""Exponent of D in raw norm / amplitude per element."""

typical_scatter = 0.25  # of log eta*, a factor of 1.3 between resolutions; the prior's scale
min_rungs = 3
scatters = np.linspace(0, 5 * typical_scatter, 401)[1:]
num_draws = 4000


class LawRefused(ValueError):  # noqa: N818  A verdict on the data, not a fault of the caller.
    """The optima at hand cannot carry a law; the message says why and what to do."""


@dataclass(frozen=True)
class Rung:
    """One resolution of the ladder.

    Attributes:
        resolution: Side of the images, in pixels.
        dimension: Elements per image (D), channels included.
        optimum: The best strength found there, or why there was none.
    """

    resolution: int
    dimension: int
    optimum: Optimum

    def __post_init__(self) -> None:
        if self.resolution < 1 or self.dimension < 1:
            raise ValueError(f"resolution and dimension must be >= 1, got {self.resolution} and {self.dimension}")


@dataclass(frozen=True)
class Prediction:
    """The best strength expected at a dimension: median and 95 % interval, amplitudes per element."""

    dimension: int
    eta: float
    low: float
    high: float


@dataclass(frozen=True)
class LeftOut:
    """One rung predicted from the others, amplitudes per element.

    Attributes:
        resolution: The rung left out.
        predicted: Median of the prediction.
        low: 2.5 % quantile of the optimum that would be *measured* there: the law's
            uncertainty, the scatter between rungs, and the measurement's own spread.
        high: 97.5 % quantile.
        actual: The optimum measured.
        inside: Whether it lies between ``low`` and ``high``. With three rungs each law runs
            exactly through the other two, so that the interval rests on their posteriors and the prior
            of the scatter alone: passing is a weak test, failing a strong one.
    """

    resolution: int
    predicted: float
    low: float
    high: float
    actual: float
    inside: bool


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """eta* = exp(intercept) * D^exponent, eta* an amplitude per element.

    Attributes:
        exponent: Of D. Zero means one amplitude for all resolutions.
        exponent_low: 2.5 % quantile.
        exponent_high: 97.5 % quantile.
        intercept: log eta* at D = 1, far outside the data: only for drawing the line.
        scatter: Posterior median of the scatter of log eta* between rungs that the
            uncertainty of the optima does not explain.
        rungs: The rungs fitted, by dimension.
        without_optimum: The rungs that could not be used, each as ``"resolution: reason"``.
            A law over the rungs that happened to show an optimum is read with them in mind.
        leave_one_out: Each rung predicted from the others.
    """

    exponent: float
    exponent_low: float
    exponent_high: float
    intercept: float
    scatter: float
    rungs: tuple[Rung, ...]
    without_optimum: tuple[str, ...]
    leave_one_out: tuple[LeftOut, ...]
    line: "_Line" = field(repr=False)

    def raw_exponent(self, norm: Norm) -> float:
        """The exponent of eta* in the papers' raw norm: l2 + 1/2, l1 + 1, linf + 0."""
        if norm not in raw_shift:
            raise ValueError(f"norm must be one of {', '.join(raw_shift)}, got {norm!r}")
        return self.exponent + raw_shift[norm]

    def predict(self, dimension: int) -> Prediction:
        """The best strength at ``dimension`` elements, with its 95 % prediction interval.

        The interval holds the uncertainty of the law and the scatter between rungs. It
        cannot hold a law that bends beyond the rungs fitted.
        """
        if dimension < 1:
            raise ValueError(f"dimension must be >= 1 element, got {dimension}")
        low, high = np.exp(np.quantile(self.line.draws_at(math.log(dimension)), [0.025, 0.975]))
        eta = math.exp(self.intercept + self.exponent * math.log(dimension))
        return Prediction(dimension=dimension, eta=eta, low=float(low), high=float(high))

    def rejects(self, exponent: float, norm: Norm | None = None) -> bool:
        """Whether the 95 % interval excludes a hypothetical exponent.

        ``rejects(0)`` asks about one amplitude for all resolutions; the same hypothesis in raw
        l2 is ``rejects(0.5, norm="l2")``, and one raw l2 radius for all is ``rejects(0, norm="l2")``.
        """
        amplitude_exponent = exponent - (0.0 if norm is None else raw_shift[norm])
        return not self.exponent_low <= amplitude_exponent <= self.exponent_high


def fit_power_law(rungs: Sequence[Rung], *, seed: int = 0) -> PowerLaw:
    """Fit log eta* = intercept + exponent * log D to the rungs that have an optimum.

    Random-effects regression. The optimum of a rung is known up to its posterior (standard
    deviation s_i), and optima may scatter about the law by a common tau beyond that (training
    length, seeds, architecture); rungs weigh 1 / (s_i^2 + tau^2). tau has a
    half-normal prior of scale 0.25 in log eta and is integrated over on a grid; intercept and exponent
    have flat priors. Intervals are quantiles over draws: tau from its posterior, each optimum from
    its samples plus tau times a normal, a weighted line through them.

    Why a prior: three rungs leave one degree of freedom. A t interval on it is 12.7 standard errors to
    each side, whatever is known of the optima; a chi^2 test before widening almost never
    rejects with one degree of freedom, so it keeps the interval too narrow when there is scatter.
    The prior says openly what is assumed instead: optima within a factor of about 1.6 of
    the law (two scales). More rungs overrule it.

    Args:
        rungs: In any order. Those without an optimum are listed, not fitted.
        seed: Of the draws; the same seed gives the same law.

    Raises:
        LawRefused: Fewer than 3 resolutions with an optimum.
        ValueError: Two rungs of the same dimension.
    """
    ordered = sorted(rungs, key=lambda rung: rung.dimension)
    dimensions = [rung.dimension for rung in ordered]
    if len(set(dimensions)) < len(dimensions):
        raise ValueError(f"each dimension may appear once, got {dimensions}: fit all trials of a resolution together")
    found = tuple(rung for rung in ordered if rung.optimum.found)
    without = tuple(
        f"{rung.resolution}: {rung.optimum.verdict}, {rung.optimum.reason}"
        for rung in ordered
        if not rung.optimum.found
    )
    if len(found) < min_rungs:
        raise LawRefused(_refusal(found, without))
    line = _Line.through(found, np.random.default_rng(seed))
    low, high = np.quantile(line.exponents, [0.025, 0.975])
    return PowerLaw(
        exponent=line.exponent,
        exponent_low=float(low),
        exponent_high=float(high),
        intercept=line.intercept,
        scatter=line.scatter,
        rungs=found,
        without_optimum=without,
        leave_one_out=tuple(_leave_out(found, left_out, seed) for left_out in range(len(found))),
        line=line,
    )


def _refusal(found: Sequence[Rung], without: Sequence[str]) -> str:
    with_optimum = ", ".join(str(rung.resolution) for rung in found) or "none"
    parts = [f"a power law needs an optimum at {min_rungs} resolutions or more, found at: {with_optimum}"]
    parts += [f"no optimum at {line}" for line in without]
    way_out = (
        "widen the eta range where the response is falling or rising, add trials or seeds where it is flat or "
        "not better, or add resolutions"
    )
    return "; ".join([*parts, f"way out: {way_out}"])


@dataclass(frozen=True, eq=False)
class _Line:
    """Posterior of a straight line through optima; the draws have shape ``[num_draws]``."""

    exponent: float
    intercept: float
    scatter: float
    exponents: Array
    intercepts: Array
    deviations: Array

    @classmethod
    def through(cls, rungs: Sequence[Rung], rng: np.random.Generator) -> "_Line":
        log_dimension = np.log([rung.dimension for rung in rungs])
        optima = np.log([rung.optimum.eta for rung in rungs])
        variances = np.array([rung.optimum.log_std**2 for rung in rungs])
        probability = _scatter_posterior(log_dimension, optima, variances)
        slope, at_zero = _weighted_line(log_dimension, optima, variances + scatters[:, None] ** 2)
        scatter = rng.choice(scatters, num_draws, p=probability)
        measured = np.stack([rng.choice(rung.optimum.samples, num_draws) for rung in rungs], axis=1)
        moved = measured + scatter[:, None] * rng.standard_normal(measured.shape)
        exponents, intercepts = _weighted_line(log_dimension, moved, variances + scatter[:, None] ** 2)
        return cls(
            exponent=float(probability @ slope),
            intercept=float(probability @ at_zero),
            scatter=float(np.median(scatter)),
            exponents=exponents,
            intercepts=intercepts,
            deviations=scatter * rng.standard_normal(num_draws),
        )

    def draws_at(self, log_dimension: float) -> Array:
        """Draws of log eta* at a new resolution, scatter included."""
        return self.intercepts + self.exponents * log_dimension + self.deviations


def _weighted_line(x: Array, y: Array, variances: Array) -> tuple[Array, Array]:
    """Slope and intercept per row, weighted by 1 / variance; ``y`` and ``variances`` broadcast to ``[rows, rungs]``."""
    weights = 1 / variances
    total = weights.sum(axis=1)
    centre = (weights * x).sum(axis=1) / total
    mean = (weights * y).sum(axis=1) / total
    offset = x - centre[:, None]
    slope = (weights * offset * y).sum(axis=1) / (weights * offset**2).sum(axis=1)
    return slope, mean - slope * centre


def _scatter_posterior(x: Array, y: Array, variances: Array) -> Array:
    """Probability of each entry of ``scatters``: half-normal prior times restricted likelihood."""
    total = variances + scatters[:, None] ** 2
    slope, intercept = _weighted_line(x, y, total)
    residual = y - intercept[:, None] - slope[:, None] * x
    weights = 1 / total
    centre = (weights * x).sum(axis=1) / weights.sum(axis=1)
    information = weights.sum(axis=1) * (weights * (x - centre[:, None]) ** 2).sum(axis=1)
    log_likelihood = (np.log(weights).sum(axis=1) - np.log(information) - (weights * residual**2).sum(axis=1)) / 2
    log_posterior = log_likelihood - (scatters / typical_scatter) ** 2 / 2
    posterior = np.exp(log_posterior - log_posterior.max())
    return np.asarray(posterior / posterior.sum())


def _leave_out(rungs: Sequence[Rung], left_out: int, seed: int) -> LeftOut:
    rng = np.random.default_rng([seed, left_out])
    target = rungs[left_out]
    line = _Line.through([rung for rung in rungs if rung is not target], rng)
    log_dimension, actual = math.log(target.dimension), target.optimum.eta
    own_spread = rng.choice(target.optimum.samples, num_draws) - math.log(actual)
    low, high = np.exp(np.quantile(line.draws_at(log_dimension) - own_spread, [0.025, 0.975]))
    return LeftOut(
        resolution=target.resolution,
        predicted=math.exp(line.intercept + line.exponent * log_dimension),
        low=float(low),
        high=float(high),
        actual=actual,
        inside=bool(low <= actual <= high),
    )
