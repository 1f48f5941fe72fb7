"""A trial and its repetitions against their controls, seed by seed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from scipy.stats import t as student_t

from atdiff_core.perturbations import FreeAT
from pipeline.records import Role, TrialRecord
from pipeline.results import Comparison, StudyResult, SweepResult, compared


@dataclass(frozen=True)
class SeedPairs:
    """Metrics of two schemes, paired by seed.

    Attributes:
        pairs: (metric, metric of the other) of each seed.
        comparison: Their mean log ratio.
    """

    pairs: tuple[tuple[float, float], ...]
    comparison: Comparison

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> "SeedPairs | None":
        known = tuple(pairs)
        comparison = compared(known)
        return None if comparison is None else cls(known, comparison)

    @property
    def effects(self) -> list[float]:
        return [math.log(ours / theirs) for ours, theirs in self.pairs]


def interval(comparison: Comparison) -> tuple[float, float] | None:
    """95 % interval of the mean effect (Student's t); ``None`` with a single pair.

    With two pairs it is 12.7 standard errors to each side: that is what two numbers can say.
    """
    if comparison.seeds < 2:
        return None
    half = float(student_t.ppf(0.975, comparison.seeds - 1)) * comparison.std_error
    return comparison.effect - half, comparison.effect + half


def p_value(comparison: Comparison) -> float:
    """Chance of a mean effect at least as far from zero without any (Student's t); NaN with a single pair."""
    if comparison.seeds < 2:
        return math.nan
    if comparison.std_error == 0:
        return 1.0 if comparison.effect == 0 else 0.0
    return 2 * float(student_t.sf(abs(comparison.effect / comparison.std_error), comparison.seeds - 1))


def adversarial(study: StudyResult) -> list[TrialRecord]:
    """Search trials and their repetitions, in order of eta."""
    trials = study.of_role("search", "repeat")
    attacks = [trial for trial in trials if isinstance(trial.assignment.config.train.perturbation, FreeAT)]
    return sorted(attacks, key=lambda trial: (eta_of(trial) or 0.0, trial.seed))


def eta_of(trial: TrialRecord) -> float | None:
    """Radius of a trial's perturbation, amplitude per element; ``None`` if it has none."""
    ball = getattr(trial.assignment.config.train.perturbation, "ball", None)
    return None if ball is None else float(ball.radius)


def family(study: StudyResult, trial: TrialRecord) -> list[TrialRecord]:
    """A search trial and its repetitions with other seeds."""
    return [trial, *(each for each in study.of_role("repeat") if each.assignment.of == trial.key)]


def controls_of(study: StudyResult, trial: TrialRecord, role: Role) -> list[TrialRecord]:
    """The controls of a search trial and of its repetitions, one a seed."""
    found = [study.control(member, role) for member in family(study, trial)]
    return [control for control in found if control is not None]


def against_replay(study: StudyResult, leader: TrialRecord, role: Role) -> SeedPairs | None:
    """A control of the leader (or with ``search`` the leader) against the replay control of the same seeds."""
    pairs = []
    for member in family(study, leader):
        ours = member if role == "search" else study.control(member, role)
        replay = study.control(member, "replay")
        if ours is not None and replay is not None and ours.status == "complete":
            pairs.append((ours.result["metric"], replay.result["metric"]))
    return SeedPairs.of(pairs)


def pooled(result: SweepResult, role: Role, *, fresh_seeds: bool = True) -> Comparison | None:
    """Leading trials against one kind of control, a pair for each resolution and seed.

    Leaders are chosen on the seed of the search, so that seed flatters them. Their repetitions on other
    seeds were not chosen by anything. Leaders that share a seed share controls: their mean is one pair.

    Args:
        fresh_seeds: The repetitions; otherwise the leaders on the seed that chose them.
    """
    pairs = []
    for study in result.studies:
        leaders = [study.leader] if study.leader else []
        effects: dict[int, list[float]] = {}
        for trial in study.of_role("repeat") if fresh_seeds else leaders:
            control = study.control(trial, role)
            if control is not None and trial.status == "complete":
                effect = math.log(trial.result["metric"] / control.result["metric"])
                effects.setdefault(trial.seed, []).append(effect)
        pairs += [(math.exp(mean(values)), 1.0) for values in effects.values()]
    return compared(pairs)
