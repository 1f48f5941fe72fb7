"""An Optuna study whose trials are found by trial key, so that nothing is asked, told or queued twice."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from pipeline.proposals import DISCARDED, distribution_of
from pipeline.records import Assignment
from search_spaces.domains import Domain, Point, Suggest
from search_spaces.space import TrialConfig

DECLARATION = "declaration"
KEY, ROLE, OF, CONFIG = "key", "role", "of", "config"
QUEUED, STAYS, FAILURES = "queued", "stays", "failures"
Drawn = Callable[[Suggest], Point]


class KeyedStudy:
    """A study with one driver, whose index of keys is read once and kept up to date.

    Attributes:
        assignments: What every keyed trial is, by key, in the order of their numbers.
    """

    def __init__(
        self, name: str, storage: BaseStorage, declaration: Mapping[str, Any], sampler: BaseSampler | None = None
    ) -> None:
        """Open the study, or create it.

        Raises:
            ValueError: The storage holds a study of this name that is not ours to continue.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = _open_study(name, storage, declaration, sampler)
        self.assignments: dict[str, Assignment] = {}
        self._ids: dict[str, int] = {}
        self._unkeyed: list[FrozenTrial] = []
        self._queued: set[str] = set()
        for trial in self.study.get_trials(deepcopy=False):
            if QUEUED in trial.user_attrs:
                self._queued.add(trial.user_attrs[QUEUED])
            if KEY in trial.user_attrs:
                self._remember(trial._trial_id, assignment_of(trial))
            elif trial.state == TrialState.RUNNING:
                self._unkeyed.append(trial)

    def trials(self) -> list[FrozenTrial]:
        """The trials that have a key, by number; not to be changed."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if KEY in trial.user_attrs]

    def trial(self, key: str) -> FrozenTrial:
        """The trial as it stands now."""
        return self.study._storage.get_trial(self._ids[key])

    def enqueue_once(self, points: Iterable[tuple[str, Point]]) -> None:
        """Queue points to be asked for before the sampler is; a label that was queued ever is left alone."""
        for label, point in points:
            if label not in self._queued:
                self.study.enqueue_trial(dict(point), user_attrs={QUEUED: label})
                self._queued.add(label)

    def ask(self, drawn: Drawn) -> tuple[optuna.Trial, Point]:
        """A new trial and its point; one whose asking was cut short by a kill is asked to its end first."""
        trial = self._begun()

        def suggest(name: str, domain: Domain) -> Any:
            return trial._suggest(name, distribution_of(domain))

        return trial, drawn(suggest)

    def enrol(self, assignment: Assignment, trial: optuna.Trial | None = None) -> Assignment:
        """Give a trial its key, a new one where none was asked for; from now on it is found."""
        trial = trial or self._begun()
        if assignment.role != "search":
            trial.set_user_attr(OF, assignment.of)
        trial.set_user_attr(ROLE, assignment.role)
        trial.set_user_attr(CONFIG, assignment.config.model_dump(mode="json"))
        trial.set_user_attr(KEY, assignment.key)  # Last: a trial with a key is whole.
        self._remember(trial._trial_id, assignment)
        return assignment

    def discard(self, trial: optuna.Trial, reason: str, violations: Mapping[str, float] | None = None) -> None:
        """End a trial that nobody will run; what it violates is told to the sampler."""
        for name, value in (violations or {}).items():
            trial.set_constraint(name, value)
        trial.set_user_attr(DISCARDED, reason)
        self.study.tell(trial, state=TrialState.PRUNED if violations else TrialState.FAIL)

    def running(self) -> list[Assignment]:
        """Trials that were asked for and not yet told."""
        states = (TrialState.RUNNING,)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [self.assignments[trial.user_attrs[KEY]] for trial in trials if KEY in trial.user_attrs]

    def report(self, key: str, step: int, metric: float) -> FrozenTrial:
        """Record an intermediate value; a step already recorded is left alone. The trial as it was before."""
        trial = self.trial(key)
        if step not in trial.intermediate_values and not trial.state.is_finished():
            self.study._storage.set_trial_intermediate_value(self._ids[key], step, metric)
        return trial

    def note(self, key: str, name: str, value: Any) -> None:
        """Set an attribute of a trial that still runs."""
        self.study._storage.set_trial_user_attr(self._ids[key], name, value)

    def tell(self, key: str, state: TrialState, value: float | None = None) -> None:
        """End a trial; one that has ended is left alone."""
        trial = self.trial(key)
        if not trial.state.is_finished():
            self.study.tell(trial.number, value, state=state)

    def _begun(self) -> optuna.Trial:
        """A trial without a key: one that a kill left so, or a new one."""
        return optuna.Trial(self.study, self._unkeyed.pop(0)._trial_id) if self._unkeyed else self.study.ask()

    def _remember(self, trial_id: int, assignment: Assignment) -> None:
        self._ids[assignment.key] = trial_id
        self.assignments[assignment.key] = assignment


def assignment_of(trial: FrozenTrial) -> Assignment:
    """What a keyed trial is."""
    attrs = trial.user_attrs
    return Assignment(TrialConfig.model_validate(attrs[CONFIG]), attrs[ROLE], attrs.get(OF, ""))


def _open_study(
    name: str, storage: BaseStorage, declaration: Mapping[str, Any], sampler: BaseSampler | None
) -> optuna.Study:
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize", load_if_exists=True, sampler=sampler
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
    if study.directions != [optuna.study.StudyDirection.MINIMIZE]:
        directions = ", ".join(direction.name.lower() for direction in study.directions)
        raise ValueError(f"the study {name!r} in the storage is one to {directions}, ours minimizes; rename the space")
    earlier = study.user_attrs.get(DECLARATION)
    if earlier is None and study.get_trials(deepcopy=False):
        raise ValueError(f"the study {name!r} in the storage was not made by atdiff; rename the space")
    if earlier is None:
        study.set_user_attr(DECLARATION, dict(declaration))
        return study
    changed = sorted(what for what in declaration if earlier.get(what) != declaration[what])
    if changed:
        raise ValueError(
            f"the study {name!r} in the storage was started with another configuration "
            f"(different: {', '.join(changed)}); rename the space"
        )
    return study
