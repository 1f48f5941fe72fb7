"""The programme of one study, with Optuna's storage as its only truth.

A study at one resolution runs, in this order: the controls of the search's seed, the search
trials, the controls of further seeds, then the leaders with those seeds and a random control
for each, the worst of them rejected on the way. Asking and telling
are idempotent by trial key: a programme opened again on the same storage goes on where the
last one stopped, whatever killed it.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from atdiff_core.controls import replay_control
from atdiff_core.perturbations import FreeAT
from pipeline.guide import Guide, SearchOutcome, Taught, effects_in
from pipeline.halving import goes_on
from pipeline.keyed_study import FAILURES, LABEL, STAYS, KeyedStudy, Labelled, open_study
from pipeline.lease import Lease
from pipeline.proposals import sampler_of, spread_points
from pipeline.records import Assignment, rung_kpass
from pipeline.repetition import planned_repetitions, repeated
from pipeline.storage import close_storage, open_storage, reaching_storage
from search_spaces.space import EXTENDABLE, OPERATIONAL, Space, TrialConfig

SEARCH_SEED = 0
GUIDED = "guided"
MAX_DISCARDED = 100
"""Proposals in a row that may be outside the constraints, or known, before the search is at its end."""
Outcome = Literal["complete", "pruned", "failed"]
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_OUTCOMES: dict[TrialState, Outcome] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class StudyProgramme:
    """What a study still has to run, and what became of what it ran.

    Two Optuna studies lie behind it: one for the search, which the sampler learns from and
    which opens in Optuna's dashboard, and one for controls and repetitions.
    """

    def __init__(self, space: Space, base: TrialConfig, storage_url: str, taught: Taught | None = None) -> None:
        """Open or create the study of the base model's resolution.

        Args:
            storage_url: As ``open_storage`` takes it.
            taught: What smaller resolutions showed, by norm; used where the space transfers.

        Raises:
            ValueError: The storage holds a study of this name for another configuration, or
                another driver that lives has it.
            StorageLost: The storage cannot be used.
        """
        self._space, self._base = space, base
        self.storage_url = storage_url
        self.resolution = base.train.network.resolution
        self._guide = Guide(space, space.dimension(self.resolution), taught or {})
        self._storage = open_storage(storage_url)
        self._open(self._storage)

    @reaching_storage
    def _open(self, storage: BaseStorage) -> None:
        space, name = self._space, f"{self._space.name}/{self.resolution}px"
        declaration = space.model_dump(mode="json", exclude={*OPERATIONAL, *EXTENDABLE}) | {"base": self._base.key}
        study = open_study(name, storage, declaration)
        self._lease = Lease(study)  # Before anything is read that another driver might still write.
        self._search = KeyedStudy(study, sampler_of(space, self.resolution))
        self._extras = KeyedStudy(open_study(f"{name}/controls", storage, declaration))
        self._spread = self._declared_spread()
        # A dead driver's trials go on under their keys, from their checkpoints.
        self._waiting = [*self._extras.running(), *self._search.running()]
        self._open_keys = {assignment.key for assignment in self._waiting}
        self._rung = [
            next(iter(trial.intermediate_values.values()))
            for trial in self._search.trials()
            if STAYS in trial.user_attrs and trial.intermediate_values
        ]
        self._exhausted = False

    def close(self) -> None:
        """Leave the study to the next driver."""
        self._lease.release()
        close_storage(self._storage)

    @reaching_storage
    def ask(self) -> Assignment | None:
        """The next trial to run; ``None`` while it depends on trials that still run.

        Call ``finished`` to tell waiting from the end.
        """
        if self._waiting:
            return self._waiting.pop(0)
        if extra := self._first_new(self._controls(SEARCH_SEED)):
            return self._opened(self._extras.enrol(extra))
        if self._missing_search_trials() > 0 and (sampled := self._sampled()):
            return self._opened(sampled)
        # The controls of further seeds need no leader: they keep workers busy until one is known.
        if extra := self._first_new(chain(*map(self._controls, self._further_seeds()), self._repetitions())):
            return self._opened(self._extras.enrol(extra))
        return None

    @property
    @reaching_storage
    def finished(self) -> bool:
        """Whether nothing is left to ask for, and nothing runs."""
        if self._open_keys or self._missing_search_trials() > 0:
            return False
        return self._first_new(chain(*map(self._controls, self._all_seeds()), self._repetitions())) is None

    @property
    def must_stop(self) -> bool:
        return False

    def planned_trials(self) -> int:
        """Trials of the whole programme if no two of them coincide."""
        replication, replay_counts = self._space.replication, self._space.domains.replay_counts()
        controls = replication.seeds * (1 + len(replay_counts))
        leaders = min(replication.leaders, self._space.trials)
        return self._space.trials + controls + planned_repetitions(replication, leaders)

    @reaching_storage
    def report(self, key: str, kpass: float, metric: float) -> bool:
        """Record an intermediate value, once; whether the trial goes on past it.

        What is decided at a rung is written down: the same report gets the same answer for ever.
        """
        if not math.isfinite(metric):
            return True  # The trial fails by itself.
        study = self._find(key)
        study.report(key, round(kpass * 1000), metric)
        trial = study.trial(key)
        assignment = study.assignments[key]
        rung = rung_kpass(assignment.config)
        at_rung = rung is not None and round(kpass * 1000) == round(rung * 1000)
        if not at_rung or not assignment.may_stop_early or trial.state.is_finished():
            return True
        if str(trial.user_attrs.get(LABEL, "")).startswith(GUIDED):
            return True  # Put on the side of the valley for what it tells there, which takes its whole budget.
        decided = trial.user_attrs.get(STAYS)
        if decided is None:
            decided = goes_on(metric, self._rung, self._space.stopping.keep)
            study.note(key, STAYS, decided)
            self._rung.append(metric)
        return bool(decided)

    @reaching_storage
    def tell(self, key: str, outcome: Outcome, metric: float | None = None, reason: str = "") -> None:
        """Record how a trial ended; told again, it is left alone.

        A metric that is not finite makes a completed trial a failed one. A failed trial waits to
        be asked for again until its retries are used up.
        """
        if key not in self._open_keys:
            return
        study = self._find(key)
        if outcome == "complete" and (metric is None or not math.isfinite(metric)):
            outcome, reason = "failed", f"the trial metric is {metric}"
        if outcome == "failed":
            failures = [*study.trial(key).user_attrs.get(FAILURES, []), reason]
            study.note(key, FAILURES, failures)
            if len(failures) <= self._space.retries:
                self._waiting.append(study.assignments[key])
                return
        study.tell(key, _STATES[outcome], metric if outcome == "complete" else None)
        self._open_keys.discard(key)

    @reaching_storage
    def outcomes(self) -> dict[str, Outcome | Literal["running"]]:
        """How every trial ended, by key."""
        trials = [*self._search.trials(), *self._extras.trials()]
        return {trial.user_attrs["key"]: _OUTCOMES.get(trial.state, "running") for trial in trials}

    def _opened(self, assignment: Assignment) -> Assignment:
        self._open_keys.add(assignment.key)
        return assignment

    def _declared_spread(self) -> list[Labelled]:
        """The spread of the trials asked for at the start, where it was not tried yet; an extension is sampled.

        A guided study spreads its points one by one, when their turn comes.
        """
        if self._guide.guides:
            self._search.study.set_user_attr("taught", self._guide.declaration())
            return []
        declared = self._search.study.user_attrs.get("spread")
        if declared is None:
            declared = self._space.trials
            self._search.study.set_user_attr("spread", declared)
        if self._space.chosen_searcher == "sobol":
            declared = self._space.trials
        points = spread_points(self._space.but(trials=declared), self.resolution)
        labelled = ((f"spread {number}", point) for number, point in enumerate(points))
        return [(label, point) for label, point in labelled if not self._search.was_labelled(label)]

    def _sampled(self) -> Assignment | None:
        """The next trial of the search; ``None`` where there is nothing new to propose."""
        if self._guide.guides:
            self._spread = self._guided()
        for _ in range(MAX_DISCARDED):
            given = self._spread.pop(0) if self._spread else None
            trial, point = self._search.ask(self._space.domains.drawn, given)
            config = self._space.at(self._base, point, SEARCH_SEED)
            violations = self._violations(config)
            if any(value > 0 for value in violations.values()):
                self._search.discard(trial, "outside the constraints", violations)
            elif config.key in self._search.assignments:
                self._search.discard(trial, f"the same as trial {config.key}")
            else:
                return self._search.enrol(Assignment(config, "search"), trial)
        self._exhausted = True
        return None

    def _guided(self) -> list[Labelled]:
        """The next point: where smaller resolutions say, or in its turn one spread over the whole range.

        None where it was tried already, and lay outside the constraints.
        """
        number = len(self._search.assignments)
        norm = self._guide.norm_of(number)
        label = f"spread {number}" if norm is None else f"{GUIDED} {number}"
        if self._search.was_labelled(label):
            return []
        if norm is None:
            points = spread_points(self._space, self.resolution)
            return [(label, points[number % len(points)])]
        return [(label, self._guide.point(norm, number, *effects_in(norm, self._outcomes_of_search())))]

    def _outcomes_of_search(self) -> Iterator[SearchOutcome]:
        """Every search trial with its final metric and that of its replay control."""
        for key, assignment in self._search.assignments.items():
            perturbation = assignment.config.train.perturbation
            control = replay_control(perturbation.steps_per_minibatch)
            theirs = self._metric_of(self._space.trial_config(self._base, control, SEARCH_SEED).key)
            yield perturbation, self._metric_of(key), theirs

    def _metric_of(self, key: str) -> float | None:
        """Final metric of a trial: infinite where it failed, ``None`` where it has none yet."""
        if not self._knows(key):
            return None
        trial = self._find(key).trial(key)
        if trial.state == TrialState.COMPLETE:
            return float(trial.values[0])
        return math.inf if trial.state.is_finished() else None

    def _violations(self, config: TrialConfig) -> dict[str, float]:
        perturbation = config.train.perturbation
        return self._space.constraints.violations(perturbation.reach) if isinstance(perturbation, FreeAT) else {}

    def _first_new(self, extras: Iterable[Assignment]) -> Assignment | None:
        return next((extra for extra in extras if not self._knows(extra.key)), None)

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
        if self._missing_search_trials() > 0 or self._open_keys & self._search.assignments.keys():
            return
        yield from repeated(self._space, self._base, self._leaders(), self._all_seeds(), self._metric_of)

    def _leaders(self) -> list[Assignment]:
        complete = [trial for trial in self._search.trials() if trial.state == TrialState.COMPLETE]
        complete.sort(key=lambda trial: (trial.values[0], trial.number))
        chosen = complete[: self._space.replication.leaders]
        return [self._search.assignments[trial.user_attrs["key"]] for trial in chosen]

    def _missing_search_trials(self) -> int:
        return 0 if self._exhausted else self._space.trials - len(self._search.assignments)

    def _knows(self, key: str) -> bool:
        return key in self._search.assignments or key in self._extras.assignments

    def _find(self, key: str) -> KeyedStudy:
        for study in (self._search, self._extras):
            if key in study.assignments:
                return study
        raise KeyError(f"no trial with key {key} in {self._search.study.study_name}")
