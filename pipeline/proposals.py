"""Who proposes search trials, and how evenly the first of them are spread.

Every proposal is a function of the space's seed, the trial's number and what the study holds, so
a search that is resumed proposes what the uninterrupted one would have proposed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.stats.qmc import LatinHypercube, Sobol

from atdiff_core.randomness import derived_seed
from search_spaces.domains import Choice, Domain, Point
from search_spaces.space import Space

DISCARDED = "discarded"
"""User attribute of a proposal that nobody will run: why."""
INSISTING = 5
"""Discarded proposals in a row after which the model is left for random draws."""
SPREAD_FRACTION = 2 / 3
"""Share of the search trials that are spread over the space before the model chooses."""


class NumberedSampler(BaseSampler):
    """Proposes for the n-th trial with a sampler that is seeded by n alone.

    A model that insists on what the constraints forbid, or on what is known already, is left for
    random draws until a trial comes through.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        """``make`` gives the sampler of a trial number."""
        self._make = make
        self._number, self._sampler = -1, make(0)

    def _of(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number = trial.number
            self._sampler = self._make(trial.number)
            if _discarded_before(study, trial.number) >= INSISTING:
                self._sampler = RandomSampler(seed=derived_seed(trial.number, "insisting") % 2**32)
        return self._sampler

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._of(study, trial).before_trial(study, trial)


def _discarded_before(study: Study, number: int) -> int:
    """How many trials just before this one were discarded, one after the other."""
    before = [trial for trial in study.get_trials(deepcopy=False) if trial.number < number]
    count = 0
    while count < len(before) and DISCARDED in before[-1 - count].user_attrs:
        count += 1
    return count


def sampler_of(space: Space, resolution: int) -> BaseSampler:
    """Optuna's sampler for the search at a resolution."""

    def make(number: int) -> BaseSampler:
        seed = derived_seed(space.seed, resolution, number, "search") % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match space.chosen_searcher:
                case "gp":
                    # The spread comes first in any case; stopped trials teach the process nothing.
                    start = min(spread_trials(space), 1 + 2 * len(space.domains.searched()))
                    return GPSampler(seed=seed, n_startup_trials=start, deterministic_objective=False)
                case "tpe":
                    start = min(spread_trials(space), 10)
                    return TPESampler(
                        seed=seed, n_startup_trials=start, multivariate=True, group=space.domains.conditional
                    )
                case _:
                    return RandomSampler(seed=seed)

    return NumberedSampler(make)


def spread_trials(space: Space) -> int:
    """How many search trials are spread evenly before the searcher chooses."""
    match space.chosen_searcher:
        case "random":
            return 0
        case "sobol":
            return space.trials
        case _:
            return max(1, round(SPREAD_FRACTION * space.trials))


def spread_points(space: Space, resolution: int) -> list[Point]:
    """A Latin hypercube over the searched domains: the law needs the shape of the whole response.

    For ``sobol`` a scrambled Sobol sequence, of which a longer search has the same beginning.
    """
    names = list(space.domains.searched())
    seed = derived_seed(space.seed, resolution, "spread") % 2**32
    count = spread_trials(space)
    if count == 0:
        return []
    if space.chosen_searcher == "sobol":
        power = (count - 1).bit_length()  # Sobol points are balanced in powers of two.
        rows = Sobol(d=len(names), rng=seed).random_base2(power)[:count]
    else:
        rows = LatinHypercube(d=len(names), rng=seed).random(count)
    return [_point(space, dict(zip(names, row.tolist(), strict=True))) for row in rows]


def _point(space: Space, places: dict[str, float]) -> Point:
    return space.domains.drawn(lambda name, domain: domain.at(places[name]))


def distribution_of(domain: Domain) -> BaseDistribution:
    """The domain in Optuna's words."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
