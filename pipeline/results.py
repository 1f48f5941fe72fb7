"""From the folders of a sweep to effects, optima and the law."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from atdiff_core.balls import Norm
from atdiff_core.laws import LawRefused, PowerLaw, Rung, fit_power_law
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.perturbations import FreeAT
from atdiff_core.response import Observation, Response, fit_response
from pipeline.records import Role, TrialRecord, load_records
from pipeline.workspace import Workspace
from search_spaces.space import Space

STOPPED_WEIGHT = 0.5


@dataclass(frozen=True)
class Comparison:
    """A scheme against another, paired by seed.

    Attributes:
        effect: Mean over seeds of log(metric / metric of the other); negative is better.
        std_error: Standard error of that mean; NaN with a single seed.
        seeds: Number of pairs.
    """

    effect: float
    std_error: float
    seeds: int

    @property
    def percent(self) -> float:
        """The mean effect as a change of the metric, in per cent."""
        return 100 * math.expm1(self.effect)


def compared(pairs: Iterable[tuple[float, float]]) -> Comparison | None:
    """Comparison of (metric, metric of the other) pairs; ``None`` without any.

    An unbiased kernel distance may be zero or negative where nothing is left to gain; such a
    pair has no ratio and is left out.
    """
    effects = [math.log(ours / theirs) for ours, theirs in pairs if ours > 0 and theirs > 0]
    if not effects:
        return None
    error = stdev(effects) / math.sqrt(len(effects)) if len(effects) > 1 else math.nan
    return Comparison(mean(effects), error, len(effects))


@dataclass(frozen=True)
class TrialEffect:
    """An adversarial trial against its replay control.

    Attributes:
        effect: log(metric / control's metric) after the most passes at which both were judged.
        weight: Relative precision; a trial that was stopped early counts half.
    """

    perturbation: FreeAT
    effect: float
    seed: int
    weight: float


@dataclass(frozen=True)
class StudyResult:
    """What one resolution taught.

    Attributes:
        resolution: In pixels.
        dimension: Elements of an image, D.
        base: The model that every trial fine-tuned.
        trials: Every trial of the study, controls and repetitions included.
        norm: The norm in which the response is told, the same at every resolution.
    """

    resolution: int
    dimension: int
    base: TrialRecord
    trials: tuple[TrialRecord, ...]
    norm: Norm

    @property
    def evaluation(self) -> EvaluationConfig:
        """How its trials are judged; the base model may be judged by other samplers."""
        return self.trials[0].assignment.config.evaluation

    def of_role(self, *roles: Role) -> list[TrialRecord]:
        return [trial for trial in self.trials if trial.assignment.role in roles]

    def control(self, trial: TrialRecord, role: Role) -> TrialRecord | None:
        """The complete control of a trial that shares its seed (and its K, where replays count)."""
        train = trial.assignment.config.train
        for other in self.of_role(role):
            theirs = other.assignment.config.train
            replays = theirs.perturbation.steps_per_minibatch
            fits = role == "plain" or replays == train.perturbation.steps_per_minibatch
            if role == "random":
                fits = other.assignment.of in (trial.key, trial.assignment.of)
            if fits and theirs.seed == train.seed and other.status == "complete":
                return other
        return None

    def effect(self, trial: TrialRecord, against: Role = "replay") -> float | None:
        """log(metric / control's metric) after the most passes at which both were judged."""
        control = self.control(trial, against)
        if control is None:
            return None
        ours, theirs = trial.metric_at(), control.metric_at()
        shared = [kpass for kpass in _paired(ours, theirs) if ours[kpass] > 0 and theirs[_nearest(theirs, kpass)] > 0]
        if not shared:
            return None
        latest = max(shared)
        return math.log(ours[latest] / theirs[_nearest(theirs, latest)])

    @cached_property
    def effects_in_norm(self) -> list[TrialEffect]:
        """Adversarial trials in this norm that have a replay control."""
        seen = []
        for trial in self.of_role("search", "repeat"):
            perturbation = trial.assignment.config.train.perturbation
            effect = self.effect(trial)
            if effect is not None and isinstance(perturbation, FreeAT) and perturbation.ball.norm == self.norm:
                weight = 1.0 if trial.status == "complete" else STOPPED_WEIGHT
                seen.append(TrialEffect(perturbation, effect, trial.seed, weight))
        return seen

    @cached_property
    def observations(self) -> list[Observation]:
        """The same, against the radius."""
        return [
            Observation(each.perturbation.ball.radius, each.effect, each.seed, each.weight)
            for each in self.effects_in_norm
        ]

    @cached_property
    def response(self) -> Response | None:
        """Effect against eta with its optimum; ``None`` where there are too few trials."""
        try:
            return fit_response(self.observations)
        except ValueError:
            return None

    @cached_property
    def leader(self) -> TrialRecord | None:
        """The best search trial by its effect over all seeds it was run with."""
        complete = [trial for trial in self.of_role("search") if trial.status == "complete"]
        scored = [(self.against(trial, "replay"), trial) for trial in complete]
        known = [(comparison, trial) for comparison, trial in scored if comparison is not None]
        if not known:
            return None
        most = max(comparison.seeds for comparison, _ in known)
        return min((c.effect, t.key, t) for c, t in known if c.seeds == most)[2]

    def against(self, trial: TrialRecord, role: Role) -> Comparison | None:
        """A search trial and its repetitions against their controls, paired by seed."""
        family = [trial, *(each for each in self.of_role("repeat") if each.assignment.of == trial.key)]
        pairs = []
        for member in family:
            control = self.control(member, role)
            if control is not None and member.status == "complete":
                pairs.append((member.result["metric"], control.result["metric"]))
        return compared(pairs)


@dataclass(frozen=True)
class SweepResult:
    """A whole sweep, read back from its folders.

    Attributes:
        space: What was asked.
        studies: One for each resolution, ascending.
    """

    space: Space
    studies: tuple[StudyResult, ...]

    @cached_property
    def law(self) -> PowerLaw | LawRefused:
        """The power law eta*(D), or why the data do not carry one."""
        rungs = [
            Rung(f"{study.resolution} px", study.dimension, study.response.optimum)
            for study in self.studies
            if study.response is not None
        ]
        try:
            return fit_power_law(rungs)
        except LawRefused as refusal:
            return refusal

    @property
    def trials(self) -> list[TrialRecord]:
        return [trial for study in self.studies for trial in (study.base, *study.trials)]

    @cached_property
    def leading_norm(self) -> Norm:
        """The norm of the best trial, by effect against its replay control, at the most resolutions."""
        return _leading_norm(self.studies, self.space.domains.norms())

    def in_norm(self, norm: Norm) -> "SweepResult":
        """The same sweep with responses and law told in another norm.

        Raises:
            ValueError: The space does not search it.
        """
        norms = self.space.domains.norms()
        if norm not in norms:
            raise ValueError(f"{self.space.name} searches {', '.join(norms)}, got norm {norm!r}")
        return SweepResult(self.space, tuple(replace(study, norm=norm) for study in self.studies))

    @cached_property
    def in_other_norms(self) -> dict[Norm, "SweepResult"]:
        """The sweep in each of the norms that are not the leading one."""
        return {norm: self.in_norm(norm) for norm in self.space.domains.norms() if norm != self.leading_norm}


def load_result(workspace: Workspace) -> SweepResult:
    """Read a sweep from its folder; studies that have no trial yet are left out.

    Norms are not pooled: equal amplitudes in two norms need not do the same. Where several
    were searched, responses and law are told in the leading one; ``SweepResult.in_norm`` tells another.
    """
    space = workspace.space()
    records = load_records(workspace.folder / "trials")
    studies = []
    for resolution in space.ladder:
        here = [record for record in records if record.resolution == resolution]
        bases = [record for record in here if record.assignment.role == "base"]
        trials = tuple(record for record in here if record.assignment.role != "base")
        if bases and trials:
            norm = space.domains.norms()[0]
            studies.append(StudyResult(resolution, space.dimension(resolution), bases[0], trials, norm))
    result = SweepResult(space, tuple(studies))
    return result.in_norm(result.leading_norm)


def load_sweep(folder: Path) -> SweepResult:
    """The same from a sweep's folder; raises ``ValueError`` where there is none."""
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"there is no sweep in {folder}; a sweep's folder holds a sweep.json")
    return load_result(Workspace(folder.parent, folder.name))


def _leading_norm(studies: Sequence[StudyResult], norms: tuple[Norm, ...]) -> Norm:
    """The norm that leads the most studies; the first one declared where none is ahead."""
    wins = Counter[Norm]()
    for study in studies:
        best = [(study.effect(trial), trial) for trial in study.of_role("search") if trial.status == "complete"]
        known = [(effect, trial.key, trial) for effect, trial in best if effect is not None]
        if known:
            perturbation = min(known)[2].assignment.config.train.perturbation
            if isinstance(perturbation, FreeAT):
                wins[perturbation.ball.norm] += 1
    return max(norms, key=lambda norm: wins[norm])


def _paired(ours: dict[float, float], theirs: dict[float, float]) -> list[float]:
    """Passes at which both were judged, to within the length of a minibatch of K replays."""
    return [kpass for kpass in ours if theirs and abs(_nearest(theirs, kpass) - kpass) <= 0.1 * kpass]


def _nearest(values: dict[float, float], kpass: float) -> float:
    return min(values, key=lambda other: abs(other - kpass))
