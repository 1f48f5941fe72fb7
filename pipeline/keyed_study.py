"""An Optuna study whose trials are found by trial key, so that nothing is asked, told or queued twice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
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


@dataclass(frozen=True)
class Proposal:
    """A point that nobody has decided on yet.

    Attributes:
        trial: Optuna's, where its sampler was asked for the point; not written yet without it.
        label: What the point is called where it was not the sampler that chose it.
        distributions: Of its names, as Optuna keeps them; needed where it is not written yet.
    """

    point: Point
    trial: optuna.Trial | None = None
    label: str = ""
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)


class KeyedStudy:
    """A study with one driver, read once: everything known of it is kept up to date with what is written.

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
        self._storage = self.study._storage
        self._trials: dict[str, FrozenTrial] = {}
        self._unkeyed: list[FrozenTrial] = []
        self._labels: set[str] = set()
        for trial in self.study.get_trials():
            if QUEUED in trial.user_attrs:
                self._labels.add(trial.user_attrs[QUEUED])
            if KEY in trial.user_attrs:
                self._remember(trial, assignment_of(trial))
            elif trial.state == TrialState.RUNNING:
                self._unkeyed.append(trial)

    def trials(self) -> list[FrozenTrial]:
        """The trials that have a key, by number; not to be changed."""
        return list(self._trials.values())

    def trial(self, key: str) -> FrozenTrial:
        """The trial as it stands now; not to be changed."""
        return self._trials[key]

    def was_labelled(self, label: str) -> bool:
        """Whether a point of this label was ever written."""
        return label in self._labels

    def enqueue(self, label: str, point: Point) -> None:
        """Have the sampler asked next for the rest of a point."""
        self.study.enqueue_trial(dict(point), user_attrs={QUEUED: label})
        self._labels.add(label)

    def ask(self, drawn: Drawn) -> Proposal:
        """The sampler's next point; one whose asking was cut short by a kill is asked to its end first."""
        trial = optuna.Trial(self.study, self._unkeyed.pop(0)._trial_id) if self._unkeyed else self.study.ask()

        def suggest(name: str, domain: Domain) -> Any:
            return trial._suggest(name, distribution_of(domain))

        return Proposal(drawn(suggest), trial)

    def enrol(self, assignment: Assignment, proposal: Proposal | None = None) -> Assignment:
        """Give a trial its key; from now on it is found.

        A trial that is not written yet is written at once with all it has, or not at all.
        """
        attributes = {ROLE: assignment.role, CONFIG: assignment.config.model_dump(mode="json"), KEY: assignment.key}
        if assignment.role != "search":
            attributes = {OF: assignment.of, **attributes}
        if proposal and proposal.trial:
            for name, value in attributes.items():  # The key last: a trial with a key is whole.
                proposal.trial.set_user_attr(name, value)
            trial_id = proposal.trial._trial_id
        else:
            trial_id = self._create(TrialState.RUNNING, proposal, attributes)
        self._remember(self._storage.get_trial(trial_id), assignment)
        return assignment

    def discard(self, proposal: Proposal, reason: str, violations: Mapping[str, float] | None = None) -> None:
        """End a point that nobody will run; what it violates is told to the sampler."""
        state = TrialState.PRUNED if violations else TrialState.FAIL
        if proposal.trial is None:
            self._create(state, proposal, {DISCARDED: reason}, violations)
            return
        for name, value in (violations or {}).items():
            proposal.trial.set_constraint(name, value)
        proposal.trial.set_user_attr(DISCARDED, reason)
        self.study.tell(proposal.trial, state=state)

    def running(self) -> list[Assignment]:
        """Trials that were asked for and not yet told."""
        return [self.assignments[key] for key, trial in self._trials.items() if trial.state == TrialState.RUNNING]

    def report(self, key: str, step: int, metric: float) -> None:
        """Record an intermediate value; a step already recorded is left alone."""
        trial = self._trials[key]
        if step not in trial.intermediate_values and not trial.state.is_finished():
            self._storage.set_trial_intermediate_value(trial._trial_id, step, metric)
            trial.intermediate_values[step] = metric

    def note(self, key: str, name: str, value: Any) -> None:
        """Set an attribute of a trial that still runs."""
        trial = self._trials[key]
        self._storage.set_trial_user_attr(trial._trial_id, name, value)
        trial.set_user_attr(name, value)

    def tell(self, key: str, state: TrialState, value: float | None = None) -> None:
        """End a trial; one that has ended is left alone."""
        trial = self._trials[key]
        if not trial.state.is_finished():
            self._trials[key] = self.study.tell(trial.number, value, state=state)

    def _create(
        self,
        state: TrialState,
        proposal: Proposal | None,
        attributes: dict[str, Any],
        violations: Mapping[str, float] | None = None,
    ) -> int:
        """Write a trial in one transaction; its id."""
        if proposal and proposal.label:
            attributes = attributes | {QUEUED: proposal.label}
            self._labels.add(proposal.label)
        template = optuna.trial.create_trial(
            state=state,
            params=dict(proposal.point) if proposal else None,
            distributions=dict(proposal.distributions) if proposal else None,
            user_attrs=attributes,
            constraints=dict(violations) if violations else None,
        )
        return self._storage.create_new_trial(self.study._study_id, template)

    def _remember(self, trial: FrozenTrial, assignment: Assignment) -> None:
        self._trials[assignment.key] = trial
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
