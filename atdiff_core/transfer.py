"""Search at the next resolution with what the finished ones have taught."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from atdiff_core.random_effects import scatters, typical_scatter
from atdiff_core.response import Observation, Optimum
from atdiff_core.shared_valley import Place, PlacePrior, Rehearsal, Valley, learn_valley, locate

Array = NDArray[np.float64]

exponent_guess, exponent_spread = -0.25, 0.3
"""Prior of the exponent of D: between one raw l2 radius (-1/2) and one amplitude (0) for all resolutions."""
smallest_std = 0.15  # of log eta*: no prediction is trusted more closely
surprise = 0.05  # probability that the law says nothing about the next rung
flank = 1.25  # in log eta: how far beyond the prediction interval the sides of the valley are tried
num_places, num_candidates = 81, 81
alignments = 2


@dataclass(frozen=True)
class FinishedRung:
    """A resolution that has been searched.

    Attributes:
        scale: What the law runs along, elements of an image.
        observations: Its trials.
        optimum: What they showed.
    """

    scale: float
    observations: tuple[Observation, ...]
    optimum: Optimum


@dataclass(frozen=True)
class Expected:
    """log eta* of a rung before it is searched: normal, and how it would be told."""

    mean: float
    std: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of log eta*."""
        return self.mean - 1.96 * self.std, self.mean + 1.96 * self.std


def expect(rungs: Sequence[FinishedRung], scale: float) -> Expected:
    """Where the law of the finished rungs puts the next optimum.

    The random-effects line of ``fit_power_law``, with a normal prior on its exponent: one rung
    cannot tell an exponent, and two tell it badly. The scatter between rungs is integrated over; the spread
    is never below ``smallest_std``.

    Raises:
        ValueError: No rung.
    """
    if not rungs:
        raise ValueError("nothing can be expected of the next rung before one has shown an optimum")
    x = np.log([rung.scale for rung in rungs]) - math.log(scale)
    y = np.log([rung.optimum.eta for rung in rungs])
    variances = np.array([max(rung.optimum.log_std, 1e-3) ** 2 for rung in rungs])
    means, spreads, log_weights = [], [], []
    for scatter in scatters[::8]:
        # y = level + exponent * x + error, exponent ~ N(guess, spread): integrated out by generalised least squares.
        covariance = np.diag(variances + scatter**2) + exponent_spread**2 * np.outer(x, x)
        residual = y - exponent_guess * x
        inverse = np.linalg.inv(covariance)
        information = float(inverse.sum())
        level = float(inverse.sum(axis=0) @ residual) / information
        left = residual - level
        # The new rung lies at x = 0: level and its own scatter, nothing else.
        means.append(level)
        spreads.append(1 / information + scatter**2)
        _, log_determinant = np.linalg.slogdet(covariance)
        log_likelihood = -(log_determinant + math.log(information) + float(left @ inverse @ left)) / 2
        log_weights.append(log_likelihood - (scatter / typical_scatter) ** 2 / 2)
    weights = np.exp(np.array(log_weights) - max(log_weights))
    weights /= weights.sum()
    mean = float(weights @ means)
    variance = float(weights @ (np.array(spreads) + (np.array(means) - mean) ** 2))
    return Expected(mean, max(smallest_std, math.sqrt(variance)))


@dataclass(frozen=True, eq=False)
class TransferredSearch:
    """Chooses strengths at a rung, and says where its optimum lies.

    A trial is put where it tells most about the place of the valley (largest information), within
    the prediction interval and a flank to each side of it. The prediction is not trusted blindly:
    with probability 5 % the optimum may lie anywhere in the range, and the caller keeps some trials
    outside the interval.

    Attributes:
        rungs: Finished rungs that showed an optimum, at least one.
        scale: Of the rung to be searched.
        log_low, log_high: Range of log eta.
    """

    rungs: tuple[FinishedRung, ...]
    scale: float
    log_low: float
    log_high: float

    def __post_init__(self) -> None:
        if not self.log_low < self.log_high:
            raise ValueError(f"a range needs low < high, got {self.log_low:g} and {self.log_high:g} (log eta)")

    @cached_property
    def expected(self) -> Expected:
        """Prediction of log eta* from the finished rungs alone."""
        return expect(self._aligned, self.scale)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % prediction interval of log eta*, within the range."""
        low, high = self.expected.interval
        return self._within(low), self._within(high)

    def next(self, observations: Sequence[Observation], running: Sequence[float] = ()) -> float:
        """log eta of the next trial.

        Args:
            observations: Trials of this rung so far.
            running: log eta of trials that have no result yet; taken to come out as expected.
        """
        return self.choose(self.place(self._believed(observations, running)))

    def choose(self, place: Place) -> float:
        """log eta of the trial that tells most, given where the optimum may lie."""
        low, high = (self._within(edge) for edge in (self.interval[0] - flank, self.interval[1] + flank))
        allowed = (place.log_etas >= low) & (place.log_etas <= high)
        return float(place.log_etas[np.where(allowed, place.information, -1).argmax()])

    def place(self, observations: Sequence[Observation]) -> Place:
        """Posterior of log eta* given this rung's trials so far."""
        return locate(self._valley, observations, self._prior(self.expected), self._candidates)

    def _believed(self, observations: Sequence[Observation], running: Sequence[float]) -> list[Observation]:
        """The trials, and those that still run with the effect expected of them."""
        believed = list(observations)
        for log_eta in running:
            place = self.place(believed)
            effect = float(np.interp(log_eta, place.log_etas, place.curves.mean(axis=0)))
            seed = believed[0].seed if believed else 0
            believed.append(Observation(math.exp(log_eta), effect, seed))
        return believed

    @cached_property
    def _aligned(self) -> tuple[FinishedRung, ...]:
        """The rungs with their optima seen together: each placed again in the valley of the others."""
        aligned = list(self.rungs)
        for _ in range(alignments if len(aligned) > 1 else 0):
            aligned = [self._placed(rung, [other for other in aligned if other is not rung]) for rung in aligned]
        return tuple(aligned)

    def _placed(self, rung: FinishedRung, others: Sequence[FinishedRung]) -> FinishedRung:
        valley = self._learned(others)
        anywhere = Expected(math.log(rung.optimum.eta), 2 * max(rung.optimum.log_std, smallest_std))
        place = locate(valley, rung.observations, self._prior(anywhere), self._candidates)
        low, middle, high = (place.quantile(q) for q in (0.16, 0.5, 0.84))
        placed = replace(rung.optimum, eta=math.exp(middle), log_std=(high - low) / 2)
        return replace(rung, optimum=placed)

    def _learned(self, rungs: Sequence[FinishedRung]) -> Valley:
        rehearsals = [Rehearsal(rung.observations, math.log(rung.optimum.eta)) for rung in rungs]
        return learn_valley(rehearsals, reach=self.log_high - self.log_low)

    @cached_property
    def _candidates(self) -> Array:
        return np.linspace(self.log_low, self.log_high, num_candidates)

    @cached_property
    def _valley(self) -> Valley:
        return self._learned(self._aligned)

    def _prior(self, expected: Expected) -> PlacePrior:
        places = np.linspace(self.log_low, self.log_high, num_places)
        normal = np.exp(-(((places - expected.mean) / expected.std) ** 2) / 2)
        weights = (1 - surprise) * normal / normal.sum() + surprise / num_places
        return PlacePrior(places, weights)

    def _within(self, log_eta: float) -> float:
        return min(max(log_eta, self.log_low), self.log_high)
