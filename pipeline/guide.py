"""Where the next trials of a study go once smaller resolutions have shown where: the transfer of a sweep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from atdiff_core.balls import Norm
from atdiff_core.perturbations import FreeAT, Perturbation
from atdiff_core.response import Observation
from atdiff_core.shared_valley import Place
from atdiff_core.transfer import FinishedRung, TransferredSearch, num_candidates
from pipeline.results import StudyResult, SweepResult
from search_spaces.domains import Domain, Point, Range, ReachDomains
from search_spaces.space import Space

GOLDEN = (math.sqrt(5) - 1) / 2  # Its multiples, modulo 1, never come close to each other.
OUTSIDE_EVERY = 4
"""Every fourth trial of a norm is spread over the whole range, whatever smaller resolutions say."""
SearchOutcome = tuple[Perturbation, float | None, float | None]
"""Scheme of a search trial, its final metric and that of its replay control: infinite where it failed or was
stopped, ``None`` while it is not known."""
Taught = Mapping[Norm, tuple[FinishedRung, ...]]


def taught_by(studies: Sequence[StudyResult], norms: Sequence[Norm]) -> dict[Norm, tuple[FinishedRung, ...]]:
    """What finished resolutions can teach, by norm: those that showed an optimum in it."""
    taught: dict[Norm, tuple[FinishedRung, ...]] = {}
    for norm in norms:
        own = [replace(study, norm=norm) for study in studies]
        taught[norm] = tuple(
            FinishedRung(study.dimension, tuple(study.observations), study.response.optimum)
            for study in own
            if study.response is not None and study.response.optimum.found
        )
    return {norm: rungs for norm, rungs in taught.items() if rungs}


def effects_in(norm: Norm, outcomes: Iterable[SearchOutcome]) -> tuple[list[Observation], list[float]]:
    """Effects of the finished trials in a norm, and the radii of those without a result.

    Trials that failed or were stopped, and metrics without a ratio, are left out.
    """
    seen, running = [], []
    for scheme, ours, theirs in outcomes:
        if not isinstance(scheme, FreeAT) or scheme.ball.norm != norm:
            continue
        if ours is None:
            running.append(scheme.ball.radius)
        elif theirs is not None and 0 < ours < math.inf and 0 < theirs < math.inf:
            seen.append(Observation(scheme.ball.radius, math.log(ours / theirs), seed=0))
    return seen, running


class Guide:
    """Proposes strengths for a study; everything else of a point is left to the study's searcher."""

    def __init__(self, space: Space, dimension: int, taught: Taught) -> None:
        """Norms whose strength is not searched on a logarithmic range, in amplitudes, are not guided.

        Nothing is where the space does not transfer.
        """
        self._norms = space.domains.norms()
        self._domains = space.domains
        self._searches: dict[Norm, TransferredSearch] = {}
        for norm, rungs in taught.items() if space.transfers else ():
            eta = _eta_of(space.domains, norm)
            if isinstance(eta, Range) and eta.log:
                self._searches[norm] = TransferredSearch(rungs, dimension, math.log(eta.low), math.log(eta.high))

    @property
    def guides(self) -> bool:
        """Whether it has anything to say."""
        return bool(self._searches)

    def norm_of(self, number: int) -> Norm | None:
        """The norm that the search trial of this number is guided in; ``None`` where it is spread or left alone."""
        norm = self._norms[number % len(self._norms)]
        outside = number // len(self._norms) % OUTSIDE_EVERY == OUTSIDE_EVERY - 1
        return None if outside or norm not in self._searches else norm

    def point(self, norm: Norm, number: int, observations: Sequence[Observation], running: Sequence[float]) -> Point:
        """Strength and norm of the next trial, by the names of the space.

        Args:
            number: Of the trial; moves it within a candidate's width, so that no trial is one that was run already.
            observations: Finished trials of this study in the norm.
            running: Radii of those without a result.
        """
        search = self._searches[norm]
        width = (search.log_high - search.log_low) / (num_candidates - 1)
        aside = width * ((number + 1) * GOLDEN % 1 - 0.5)
        log_eta = search.next(observations, [math.log(eta) for eta in running]) + aside
        log_eta = min(max(log_eta, search.log_low), search.log_high)
        if isinstance(self._domains, ReachDomains):
            return {"eta": math.exp(log_eta)} | ({"norm": norm} if len(self._norms) > 1 else {})
        return {f"eta_{norm}": math.exp(log_eta), "norm": norm}

    def declaration(self) -> dict[str, Any]:
        """What it was taught, to be kept with the study: prediction intervals by norm, and from which scales."""
        return {
            norm: {
                "eta_low": math.exp(search.interval[0]),
                "eta_high": math.exp(search.interval[1]),
                "scales": [rung.scale for rung in search.rungs],
            }
            for norm, search in self._searches.items()
        }


def _eta_of(domains: Any, norm: Norm) -> Domain | None:
    """The domain of the radius in a norm; ``None`` where radii are the papers' norms."""
    branch = domains.branch(norm) if hasattr(domains, "branch") else domains
    return branch.eta if isinstance(branch, ReachDomains) else None


@dataclass(frozen=True)
class TaughtOptimum:
    """eta* of a resolution with the valley's shape shared between resolutions; amplitudes per element.

    Attributes:
        expected_low, expected_high: 95 % prediction interval before this resolution was searched.
        eta: Posterior median given its trials as well.
        low, high: 95 % interval.
        scales: Elements of the images of the resolutions that taught it.
    """

    expected_low: float
    expected_high: float
    eta: float
    low: float
    high: float
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Lessons:
    """What every resolution of a finished sweep looks like in the light of the smaller ones."""

    result: SweepResult

    @cached_property
    def by_resolution(self) -> dict[int, TaughtOptimum]:
        """Those that have trials, and a smaller resolution with an optimum."""
        found = {}
        for place, study in enumerate(self.result.studies):
            rungs = taught_by(self.result.studies[:place], [study.norm]).get(study.norm, ())
            eta = _eta_of(self.result.space.domains, study.norm)
            if rungs and study.observations and isinstance(eta, Range) and eta.log:
                search = TransferredSearch(rungs, study.dimension, math.log(eta.low), math.log(eta.high))
                found[study.resolution] = _optimum(search, search.place(study.observations))
        return found


def _optimum(search: TransferredSearch, place: Place) -> TaughtOptimum:
    low, eta, high = (math.exp(place.quantile(q)) for q in (0.025, 0.5, 0.975))
    expected_low, expected_high = (math.exp(edge) for edge in search.interval)
    return TaughtOptimum(expected_low, expected_high, eta, low, high, tuple(rung.scale for rung in search.rungs))
