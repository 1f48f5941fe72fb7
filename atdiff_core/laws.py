"""The power law of an optimum against a scale, and what it predicts where nobody has searched.

The law of the best strength against the elements of an image is the one that sweeps ask for;
nothing here knows about it but the names of the raw norms. Any searched quantity may follow
any scale: resolution, width, amount of data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from atdiff_core.random_effects import LinePosterior, num_draws
from atdiff_core.response import Optimum

Norm = Literal["l1", "l2", "linf"]

raw_shift: dict[Norm, float] = {"l1": 1.0, "l2": 0.5, "linf": 0.0}
"""Exponent of D in raw norm / amplitude per element."""

min_rungs = 3


class LawRefused(ValueError):  # noqa: N818  A verdict on the data, not a fault of the caller.
    """The optima at hand cannot carry a law; the message says why and what to do."""


@dataclass(frozen=True)
class Rung:
    """One step of a ladder.

    Attributes:
        name: What people call it, say ``16 px``.
        scale: What the law runs along, say the elements of an image (D, channels included); > 0.
        optimum: The best value found there, or why there was none.
    """

    name: str
    scale: float
    optimum: Optimum

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"a scale must be > 0 and finite, got {self.scale} at {self.name}")


@dataclass(frozen=True)
class Prediction:
    """The optimum expected at a scale: median and 95 % interval, in the unit of the optima."""

    scale: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LeftOut:
    """One rung predicted from the others, in the unit of the optima.

    Attributes:
        name: The rung left out.
        predicted: Median of the prediction.
        low: 2.5 % quantile of the optimum that would be *measured* there: the law's
            uncertainty, the scatter between rungs, and the measurement's own spread.
        high: 97.5 % quantile.
        actual: The optimum measured.
        inside: Whether it lies between ``low`` and ``high``. With three rungs each law runs
            exactly through the other two, so that the interval rests on their posteriors and the prior
            of the scatter alone: passing is a weak test, failing a strong one.
    """

    name: str
    predicted: float
    low: float
    high: float
    actual: float
    inside: bool

    @property
    def log_error(self) -> float:
        """log(predicted / actual)."""
        return math.log(self.predicted / self.actual)


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """optimum = exp(intercept) * scale^exponent.

    For eta* against D, eta* is an amplitude per element, and an exponent of zero means one
    amplitude for all resolutions.

    Attributes:
        exponent: Posterior mean.
        exponent_low: 2.5 % quantile.
        exponent_high: 97.5 % quantile.
        intercept: log optimum at scale 1, far outside the data: only for drawing the line.
        scatter: Posterior median of the scatter of the log optimum between rungs that the
            uncertainty of the optima does not explain.
        rungs: The rungs fitted, by scale.
        without_optimum: The rungs that could not be used, each as ``"name: reason"``.
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
    line: LinePosterior = field(repr=False)

    def raw_exponent(self, norm: Norm) -> float:
        """The exponent of eta* against D in the papers' raw norm: l2 + 1/2, l1 + 1, linf + 0."""
        return self.exponent + _shift(norm)

    @property
    def leave_one_out_error(self) -> float:
        """Root mean square of log(predicted / actual) over the rungs left out one by one."""
        return math.sqrt(sum(left.log_error**2 for left in self.leave_one_out) / len(self.leave_one_out))

    def predict(self, scale: float) -> Prediction:
        """The optimum at a scale, with its 95 % prediction interval.

        The interval holds the uncertainty of the law and the scatter between rungs. It
        cannot hold a law that bends beyond the rungs fitted.
        """
        if not 0 < scale < math.inf:
            raise ValueError(f"a prediction needs a scale > 0, got {scale}")
        low, high = np.exp(np.quantile(self.line.draws_at(math.log(scale)), [0.025, 0.975]))
        value = math.exp(self.intercept + self.exponent * math.log(scale))
        return Prediction(scale=scale, value=value, low=float(low), high=float(high))

    def rejects(self, exponent: float, norm: Norm | None = None) -> bool:
        """Whether the 95 % interval excludes a hypothetical exponent.

        ``rejects(0)`` asks about one amplitude for all resolutions; the same hypothesis in raw
        l2 is ``rejects(0.5, norm="l2")``, and one raw l2 radius for all is ``rejects(0, norm="l2")``.
        """
        return not self.exponent_low <= exponent - _shift(norm) <= self.exponent_high

    def p_value(self, exponent: float, norm: Norm | None = None) -> float:
        """Two-sided tail probability of a hypothetical exponent; below 0.05 where ``rejects`` says so."""
        return self.line.p_value(exponent - _shift(norm))


def fit_power_law(rungs: Sequence[Rung], *, seed: int = 0) -> PowerLaw:
    """Fit log optimum = intercept + exponent * log scale to the rungs that have an optimum.

    Random-effects regression (``LinePosterior.through``): the optimum of a rung is known up to
    its posterior, and optima may scatter about the law beyond that (training length, seeds, architecture).

    Why a prior on the scatter: three rungs leave one degree of freedom. A t interval on it is 12.7
    standard errors to each side, whatever is known of the optima; a chi^2 test before widening
    almost never rejects with one degree of freedom, so it keeps the interval too narrow when there
    is scatter. The prior says openly what is assumed instead: optima within a factor of about
    1.6 of the law (two scales). More rungs overrule it.

    Args:
        rungs: In any order. Those without an optimum are listed, not fitted.
        seed: Of the draws; the same seed gives the same law.

    Raises:
        LawRefused: Fewer than 3 rungs with an optimum.
        ValueError: Two rungs of the same scale.
    """
    ordered = sorted(rungs, key=lambda rung: rung.scale)
    scales = [rung.scale for rung in ordered]
    if len(set(scales)) < len(scales):
        listed = ", ".join(f"{scale:g}" for scale in scales)
        raise ValueError(f"each scale may appear once, got {listed}: fit all trials of a rung together")
    found = tuple(rung for rung in ordered if rung.optimum.found)
    without = tuple(
        f"{rung.name}: {rung.optimum.verdict}, {rung.optimum.reason}" for rung in ordered if not rung.optimum.found
    )
    if len(found) < min_rungs:
        raise LawRefused(_refusal(found, without))
    line = _line_through(found, np.random.default_rng(seed))
    low, high = np.quantile(line.slopes, [0.025, 0.975])
    return PowerLaw(
        exponent=line.slope,
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
    with_optimum = ", ".join(rung.name for rung in found) or "none"
    parts = [f"a power law needs an optimum at {min_rungs} rungs of the ladder or more, found at: {with_optimum}"]
    parts += [f"no optimum at {line}" for line in without]
    way_out = (
        "widen the range searched where the response is falling or rising, add trials or seeds where it is flat or "
        "not better, or add resolutions"
    )
    return "; ".join([*parts, f"way out: {way_out}"])


def _shift(norm: Norm | None) -> float:
    if norm is None:
        return 0.0
    if norm not in raw_shift:
        raise ValueError(f"norm must be one of {', '.join(raw_shift)}, got {norm!r}")
    return raw_shift[norm]


def _line_through(rungs: Sequence[Rung], rng: np.random.Generator) -> LinePosterior:
    log_scale = np.log([rung.scale for rung in rungs])
    optima = np.log([rung.optimum.eta for rung in rungs])
    return LinePosterior.through(log_scale, optima, [rung.optimum.samples for rung in rungs], rng)


def _leave_out(rungs: Sequence[Rung], left_out: int, seed: int) -> LeftOut:
    rng = np.random.default_rng([seed, left_out])
    target = rungs[left_out]
    line = _line_through([rung for rung in rungs if rung is not target], rng)
    log_scale, actual = math.log(target.scale), target.optimum.eta
    own_spread = rng.choice(target.optimum.samples, num_draws) - math.log(actual)
    low, high = np.exp(np.quantile(line.draws_at(log_scale) - own_spread, [0.025, 0.975]))
    return LeftOut(
        name=target.name,
        predicted=math.exp(line.intercept + line.slope * log_scale),
        low=float(low),
        high=float(high),
        actual=actual,
        inside=bool(low <= actual <= high),
    )
