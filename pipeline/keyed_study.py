"""An Optuna study whose trials are found by trial key, so that nothing is asked, told or queued twice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
LABEL, STAYS, FAILURES = "queued", "stays", "failures"
Drawn = Callable[[Suggest], Point]
Labelled = tuple[str, Point]
"""A point that somebody else than the sampler chose, some of its names at least, and what it is called."""


class _Ids(NamedTuple):
    """Of one trial in the storage and in the twin."""

    stored: int
    twin: int


class KeyedStudy:
    """A study with one driver, read once and from then on only written.

    The sampler works on a twin of it in memory. A trial is asked for there and written to the storage in one
    transaction, with its point and its key: a kill at any moment leaves it whole or leaves nothing, and then the
    next driver asks for the same again.

    Attributes:
        assignments: What every keyed trial is, by key, in the order of their numbers.
    """

    def __init__(self, study: optuna.Study, sampler: BaseSampler | None = None) -> None:
        """Read a study that nobody else writes to any more."""
        self.study, self._storage = study, study._storage
        self.assignments: dict[str, Assignment] = {}
        self._twin = optuna.create_study(study_name=study.study_name, sampler=sampler)
        self._ids: dict[str, _Ids] = {}
        self._labels: set[str] = set()
        for trial in study.get_trials(deepcopy=False):
            if KEY not in trial.user_attrs and not trial.state.is_finished():
                trial = self._put_aside(trial)
            self._twin.add_trial(trial)
            if LABEL in trial.user_attrs:
                self._labels.add(trial.user_attrs[LABEL])
            if KEY in trial.user_attrs:
                self._remember(assignment_of(trial), _Ids(trial._trial_id, trial.number))  # The twin counts from 0.

    def trials(self) -> list[FrozenTrial]:
        """The trials that have a key, by number; not to be changed."""
        return [trial for trial in self._twin.get_trials(deepcopy=False) if KEY in trial.user_attrs]

    def trial(self, key: str) -> FrozenTrial:
        """The trial as it stands now; not to be changed."""
        return self._twin._storage.get_trial(self._ids[key].twin)

    def was_labelled(self, label: str) -> bool:
        """Whether a point of this label was ever asked for."""
        return label in self._labels

    def ask(self, drawn: Drawn, given: Labelled | None = None) -> tuple[optuna.Trial, Point]:
        """A new trial and its point, not written yet: the sampler's, but for the names that are given."""
        if given is not None:
            label, point = given
            self._twin.enqueue_trial(dict(point), user_attrs={LABEL: label})
            self._labels.add(label)
        trial = self._twin.ask()

        def suggest(name: str, domain: Domain) -> Any:
            return trial._suggest(name, distribution_of(domain))

        return trial, drawn(suggest)

    def enrol(self, assignment: Assignment, trial: optuna.Trial | None = None) -> Assignment:
        """Write a trial with its key, a new one where none was asked for; from now on it is found."""
        trial = trial or self._twin.ask()
        attributes = {CONFIG: assignment.config.model_dump(mode="json"), KEY: assignment.key}
        if assignment.role != "search":
            attributes |= {ROLE: assignment.role, OF: assignment.of}
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        self._remember(assignment, _Ids(self._written(trial), trial._trial_id))
        return assignment

    def discard(self, trial: optuna.Trial, reason: str, violations: Mapping[str, float] | None = None) -> None:
        """Write a trial that nobody will run; what it violates is told to the sampler."""
        for name, value in (violations or {}).items():
            trial.set_constraint(name, value)
        trial.set_user_attr(DISCARDED, reason)
        self._twin.tell(trial, state=TrialState.PRUNED if violations else TrialState.FAIL)
        self._written(trial)

    def running(self) -> list[Assignment]:
        """Trials that were asked for and not yet told."""
        running = (trial for trial in self.trials() if trial.state == TrialState.RUNNING)
        return [self.assignments[trial.user_attrs[KEY]] for trial in running]

    def report(self, key: str, step: int, metric: float) -> None:
        """Record an intermediate value; a step already recorded is left alone."""
        trial = self.trial(key)
        if step not in trial.intermediate_values and not trial.state.is_finished():
            self._write(key, lambda storage, trial_id: storage.set_trial_intermediate_value(trial_id, step, metric))

    def note(self, key: str, name: str, value: Any) -> None:
        """Set an attribute of a trial that still runs."""
        self._write(key, lambda storage, trial_id: storage.set_trial_user_attr(trial_id, name, value))

    def tell(self, key: str, state: TrialState, value: float | None = None) -> None:
        """End a trial; one that has ended is left alone. A pruned one has its last intermediate value."""
        trial = self.trial(key)
        if trial.state.is_finished():
            return
        if state == TrialState.PRUNED and trial.last_step is not None:
            value = trial.intermediate_values[trial.last_step]
        values = None if value is None else [value]
        self._write(key, lambda storage, trial_id: storage.set_trial_state_values(trial_id, state, values))

    def _put_aside(self, trial: FrozenTrial) -> FrozenTrial:
        """End a trial that somebody else has queued or begun; as it stands now."""
        self._storage.set_trial_user_attr(trial._trial_id, DISCARDED, "not asked for by atdiff")
        if trial.state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # None may end unbegun.
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return self._storage.get_trial(trial._trial_id)

    def _written(self, trial: optuna.Trial) -> int:
        """Write a trial of the twin in one transaction; its id."""
        frozen = self._twin._storage.get_trial(trial._trial_id)
        template = optuna.trial.create_trial(
            state=frozen.state,
            params=frozen.params,
            distributions=frozen.distributions,
            user_attrs=frozen.user_attrs,
            constraints=frozen.constraints,
        )
        return self._storage.create_new_trial(self.study._study_id, template)

    def _write(self, key: str, write: Callable[[BaseStorage, int], Any]) -> None:
        """Do the same to a trial in the storage and in the twin, which has nothing that the storage lacks."""
        ids = self._ids[key]
        write(self._storage, ids.stored)
        write(self._twin._storage, ids.twin)

    def _remember(self, assignment: Assignment, ids: _Ids) -> None:
        self._ids[assignment.key] = ids
        self.assignments[assignment.key] = assignment


def assignment_of(trial: FrozenTrial) -> Assignment:
    """What a keyed trial is."""
    attrs = trial.user_attrs
    return Assignment(TrialConfig.model_validate(attrs[CONFIG]), attrs.get(ROLE, "search"), attrs.get(OF, ""))


def open_study(name: str, storage: BaseStorage, declaration: Mapping[str, Any]) -> optuna.Study:
    """Open a study, or create it.

    Raises:
        ValueError: The storage holds a study of this name that is not ours to continue.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
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
