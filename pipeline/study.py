"""The programme of one study, with Optuna's storage as its only truth.

A study at one resolution runs, in this order: the controls of the search's seed, the search
trials, the controls of further seeds, then the leaders with those seeds and a random control
for each. Asking and telling
are idempotent by trial key: a programme opened again on the same storage goes on where the
last one stopped, whatever killed it.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.samplers import BaseSampler, GPSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats.qmc import LatinHypercube

from atdiff_core.controls import random_control, replay_control
from atdiff_core.randomness import derived_seed
from pipeline.records import Assignment
from search_spaces.domains import Choice, Point
from search_spaces.resources import Resources
from search_spaces.space import Space, TrialConfig

SEARCH_SEED = 0
SPREAD_FRACTION = 2 / 3
"""Share of the search trials that are spread over the space before the model chooses."""
Outcome = Literal["complete", "pruned", "failed"]
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class StudyProgramme:
    """What a study still has to run, and what became of what it ran.

    Two Optuna studies lie behind it: one for the search, which the sampler learns from and
    which opens in Optuna's dashboard, and one for controls and repetitions.
    """

    def __init__(self, space: Space, base: TrialConfig, storage: str) -> None:
        """Open or create the study of the base model's resolution.

        Args:
            storage: URL of an Optuna storage.

        Raises:
            ValueError: The storage holds a study of this name for another configuration.
        """
        self._space, self._base = space, base
        self.resolution = base.train.network.resolution
        name = f"{space.name}/{self.resolution}px"
        signature = space.but(shards="", resources=Resources()).key + base.key
        self._search = _open_study(name, storage, signature)
        self._search.sampler = _sampler(space, self.resolution, len(self._search.get_trials(deepcopy=False)))
        self._extras = _open_study(f"{name}/controls", storage, signature)
        if not self._search.get_trials(deepcopy=False):
            for point in _spread_points(space, self.resolution):
                self._search.enqueue_trial(point)
        self._orphans = [*self._running(self._extras), *self._running(self._search)]

    def ask(self) -> Assignment | None:
        """The next trial to run; ``None`` while it depends on trials that still run.

        Call ``finished`` to tell waiting from the end.
        """
        if self._orphans:  # A dead driver's trials go on under their keys, from their checkpoints.
            return self._assignment(self._orphans.pop(0))
        if extra := self._first_new(self._controls(SEARCH_SEED)):
            return self._enrol(extra)
        if self._missing_search_trials() > 0:
            return self._sampled()
        # The controls of further seeds need no leader: they keep workers busy until one is known.
        if extra := self._first_new(chain(*map(self._controls, self._further_seeds()), self._repetitions())):
            return self._enrol(extra)
        return None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask for, and nothing runs."""
        if self._missing_search_trials() > 0 or self._orphans or self._open_trials():
            return False
        return self._first_new(chain(*map(self._controls, self._all_seeds()), self._repetitions())) is None

    def planned_trials(self) -> int:
        """Trials of the whole programme if no two of them coincide."""
        replication, replay_counts = self._space.replication, self._space.domains.replay_counts()
        controls = replication.seeds * (1 + len(replay_counts))
        return self._space.trials + controls + replication.leaders * (2 * replication.seeds - 1)

    def report(self, key: str, kpass: float, metric: float) -> None:
        """Record an intermediate value; a step already recorded is left alone."""
        study, trial = self._find(key)
        step = round(kpass * 1000)
        if step not in trial.intermediate_values and math.isfinite(metric) and not trial.state.is_finished():
            optuna.trial.Trial(study, trial._trial_id).report(metric, step)

    def tell(self, key: str, outcome: Outcome, metric: float | None = None) -> None:
        """Record how a trial ended; told again, it is left alone.

        A metric that is not finite makes a completed trial a failed one.
        """
        study, trial = self._find(key)
        if trial.state.is_finished():
            return
        if outcome == "complete" and (metric is None or not math.isfinite(metric)):
            outcome = "failed"
        value = metric if outcome == "complete" else None
        study.tell(trial.number, value, state=_STATES[outcome])

    def outcomes(self) -> dict[str, Outcome | Literal["running"]]:
        """How every trial ended, by key."""
        names: dict[TrialState, Outcome] = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
        }
        trials = [*self._search.get_trials(deepcopy=False), *self._extras.get_trials(deepcopy=False)]
        return {_key(trial): names.get(trial.state, "running") for trial in trials if _key(trial)}

    def _sampled(self) -> Assignment:
        trial = self._search.ask(_distributions(self._space))
        config = self._space.at(self._base, _point(trial.params), SEARCH_SEED)
        trial.set_user_attr("role", "search")
        trial.set_user_attr("config", config.model_dump(mode="json"))
        trial.set_user_attr("key", config.key)  # Last: a trial with a key is whole.
        return Assignment(config, "search")

    def _enrol(self, extra: Assignment) -> Assignment:
        trial = self._extras.ask()
        trial.set_user_attr("role", extra.role)
        trial.set_user_attr("of", extra.of)
        trial.set_user_attr("config", extra.config.model_dump(mode="json"))
        trial.set_user_attr("key", extra.key)
        return extra

    def _first_new(self, extras: Iterable[Assignment]) -> Assignment | None:
        known = self._keys()
        return next((extra for extra in extras if extra.key not in known), None)

    def _all_seeds(self) -> range:
        return range(SEARCH_SEED, SEARCH_SEED + self._space.replication.seeds)

    def _further_seeds(self) -> range:
        return self._all_seeds()[1:]

    def _controls(self, seed: int) -> Iterator[Assignment]:
        """Plain training, and the replay control of every K of the space."""
        yield Assignment(self._space.trial_config(self._base, replay_control(1), seed), "plain")
        for replays in self._space.domains.replay_counts():
            control = self._space.trial_config(self._base, replay_control(replays), seed)
            yield Assignment(control, "replay")

    def _repetitions(self) -> Iterator[Assignment]:
        """Once the search is over: the leaders with further seeds, and their random controls."""
        if self._missing_search_trials() > 0 or self._running(self._search):
            return
        for leader in self._leaders():
            perturbation = leader.config.train.perturbation
            for seed in self._all_seeds():
                if seed != SEARCH_SEED:
                    again = self._space.trial_config(self._base, perturbation, seed)
                    yield Assignment(again, "repeat", leader.key)
                random = self._space.trial_config(self._base, random_control(perturbation), seed)
                yield Assignment(random, "random", leader.key)

    def _leaders(self) -> list[Assignment]:
        complete = [trial for trial in self._search.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        complete.sort(key=lambda trial: (trial.values[0], trial.number))
        return [self._assignment(trial) for trial in complete[: self._space.replication.leaders]]

    def _missing_search_trials(self) -> int:
        return self._space.trials - sum(bool(_key(trial)) for trial in self._search.get_trials(deepcopy=False))

    def _open_trials(self) -> list[FrozenTrial]:
        return [*self._running(self._search), *self._running(self._extras)]

    def _running(self, study: optuna.Study) -> list[FrozenTrial]:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if not _key(trial):  # Killed between ask and key: nobody will ever run it.
                study.tell(trial.number, state=TrialState.FAIL)
        return [trial for trial in running if _key(trial)]

    def _keys(self) -> set[str]:
        return set(self.outcomes())

    def _find(self, key: str) -> tuple[optuna.Study, FrozenTrial]:
        for study in (self._search, self._extras):
            for trial in study.get_trials(deepcopy=False):
                if _key(trial) == key:
                    return study, trial
        raise KeyError(f"no trial with key {key} in {self._search.study_name}")

    @staticmethod
    def _assignment(trial: FrozenTrial) -> Assignment:
        config = TrialConfig.model_validate(trial.user_attrs["config"])
        return Assignment(config, trial.user_attrs["role"], trial.user_attrs.get("of", ""))


def _key(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("key", ""))


def _point(params: dict[str, float | int | str]) -> Point:
    return dict(params)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {
        name: CategoricalDistribution(domain.values)
        if isinstance(domain, Choice)
        else FloatDistribution(domain.low, domain.high, log=domain.log)
        for name, domain in space.domains.searched().items()
    }


def _spread_trials(space: Space) -> int:
    return max(1, round(SPREAD_FRACTION * space.trials))


def _spread_points(space: Space, resolution: int) -> list[Point]:
    """A Latin hypercube over the searched domains: the law needs the shape of the whole response."""
    searched = space.domains.searched()
    seed = derived_seed(space.seed, resolution, "spread") % 2**32
    unit = LatinHypercube(d=len(searched), rng=seed).random(_spread_trials(space))
    return [
        {name: domain.at(float(place)) for (name, domain), place in zip(searched.items(), row, strict=True)}
        for row in unit
    ]


def _sampler(space: Space, resolution: int, trials_so_far: int) -> BaseSampler:
    """A Gaussian process once the spread trials are done; a resumed search does not draw its first points again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return GPSampler(
            seed=derived_seed(space.seed, resolution, trials_so_far, "search") % 2**32,
            n_startup_trials=_spread_trials(space),
            deterministic_objective=False,
        )


def _open_study(name: str, storage: str, signature: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
    earlier = study.user_attrs.get("signature")
    if earlier is None:
        study.set_user_attr("signature", signature)
    elif earlier != signature:
        raise ValueError(f"the study {name!r} in {storage} was started with another configuration; rename the space")
    return study
