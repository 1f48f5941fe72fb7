"""The tables of the report, as rows of finished text."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from atdiff_core.balls import BALLS
from atdiff_core.perturbations import FreeAT, RandomPerturbation
from pipeline.records import Role, TrialRecord
from pipeline.report.comparisons import adversarial, against_replay, eta_of, family
from pipeline.report.wording import certainties, number, percent, reason_of, verdict_words
from pipeline.results import Comparison, StudyResult, SweepResult
from pipeline.workspace import machine
from search_spaces.domains import Choice, Domain
from search_spaces.space import Space

Rows = list[tuple[str, str]]
PACKAGES = ("atdiff", "torch", "diffusers", "torchmetrics", "ray", "optuna", "mlflow", "numpy", "scipy", "matplotlib")
UNKNOWN = "–"


def asked(space: Space) -> Rows:
    """What the space declares."""
    evaluation = space.trial_evaluation
    samplers = ", ".join(f"{sampler.label} with {sampler.nfe} NFE" for sampler in evaluation.samplers)
    names = [name for name in type(space.domains).model_fields if name != "kind"]
    unit = "raw norms" if space.domains.unit == "raw" else "amplitude per element"
    first = evaluation.samplers[0]
    return [
        ("ladder", f"{', '.join(str(side) for side in space.ladder)} px; prediction at {space.predict_at} px"),
        ("scheme", f"Free-AT; strengths given as {unit}"),
        *((f"searched: {name}", _domain(getattr(space.domains, name))) for name in names),
        ("search", f"{space.trials} trials a resolution; {_stopping(space)}"),
        ("replication", f"{space.replication.leaders} leaders, each with {_seeds(space.replication.seeds)} in all"),
        ("controls", "plain training; the same replays with δ = 0; a random direction of the same size"),
        ("pretraining", f"{number(space.pretraining.budget_kpass)} kpass for the base model of each resolution"),
        ("fine-tuning", f"{number(space.finetuning.budget_kpass)} kpass for every trial, controls included"),
        ("objective", space.objective.kind),
        *((name.replace("_", " "), str(value)) for name, value in space.objective.settings().items()),
        ("metric", f"{_metric(space)}, {first.label} with {first.nfe} NFE; lower is better"),
        ("samplers", f"{samplers}; latents of seed {evaluation.seed}, the same for every trial"),
        ("data", space.shards),
    ]


def ran(result: SweepResult) -> Rows:
    """What was run, and on what."""
    trials = result.trials
    spent = sum(trial.curves[-1].kpass for trial in trials if trial.curves)
    return [
        ("trials", _counted(trial.status for trial in trials)),
        ("by role", _counted(trial.assignment.role for trial in trials)),
        ("passes", f"{spent:,.1f} kpass"),
        ("time of complete trials", f"{sum(trial.sec for trial in trials):,.0f} s in all, over parallel trials"),
        *((f"machine: {name}", value) for name, value in machine().items()),
    ]


def versions() -> Rows:
    """Installed versions of what the figures depend on."""
    known = []
    for package in PACKAGES:
        try:
            known.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return known


@dataclass(frozen=True)
class LawRow:
    resolution: int
    dimension: str
    verdict: str
    reason: str = ""
    eta: str = UNKNOWN
    raw: str = UNKNOWN
    effect: str = UNKNOWN
    found: bool = False


def law_rows(result: SweepResult) -> list[LawRow]:
    """One row a resolution of the ladder, searched or not."""
    studies = {study.resolution: study for study in result.studies}
    return [_law_row(result.space, resolution, studies.get(resolution)) for resolution in result.space.ladder]


def _law_row(space: Space, resolution: int, study: StudyResult | None) -> LawRow:
    dimension = f"{space.dimension(resolution):,}"
    if study is None:
        return LawRow(resolution, dimension, "no study yet")
    verdict, reason = verdict_words(study), reason_of(study)
    if study.response is None or not study.response.optimum.found:
        return LawRow(resolution, dimension, verdict, reason)
    best = study.response.optimum
    return LawRow(
        resolution,
        dimension,
        verdict,
        reason,
        f"{number(best.eta)} ({number(best.low)} to {number(best.high)})",
        ", ".join(f"{norm} {number(value)}" for norm, value in raw_etas(space, best.eta, study.dimension).items()),
        f"{percent(best.effect)} ({percent(best.effect_low)} to {percent(best.effect_high)})",
        True,
    )


def raw_etas(space: Space, eta: float, dimension: int) -> dict[str, float]:
    """An amplitude in the papers' raw norms, for every norm of the space."""
    return {norm: BALLS[norm].raw(eta, dimension) for norm in space.domains.norms()}


@dataclass(frozen=True)
class ControlRow:
    name: str
    metric: str
    effect: str
    std_error: str
    seeds: str
    verdict: str


def control_rows(study: StudyResult) -> list[ControlRow]:
    """Plain, random and the leader against replay, then the leader against plain and random, paired by seed."""
    leader = study.leader
    if leader is None:
        return []
    names: dict[str, Role] = {"plain": "plain", "random": "random", "leader": "search"}
    known: list[tuple[str, str, Comparison]] = []
    for name, role in names.items():
        pairs = against_replay(study, leader, role)
        if pairs is not None:
            metric = sum(ours for ours, _ in pairs.pairs) / len(pairs.pairs)
            known.append((f"{name} against replay", number(metric), pairs.comparison))
    for role in ("plain", "random"):
        comparison = study.against(leader, role)
        if comparison is not None:
            known.append((f"leader against {role}", UNKNOWN, comparison))
    verdicts = certainties([comparison for _, _, comparison in known])
    return [_control_row(*row, verdict) for row, verdict in zip(known, verdicts, strict=True)]


def _control_row(name: str, metric: str, comparison: Comparison, verdict: str) -> ControlRow:
    error = UNKNOWN if comparison.seeds < 2 else f"{100 * comparison.std_error:.1f} %"
    return ControlRow(name, metric, percent(comparison.effect), error, str(comparison.seeds), verdict)


@dataclass(frozen=True)
class TrialRow:
    role: str
    seed: int
    replays: int
    eta: str
    reach: str
    norm: str
    metric: str
    effect: str
    gain: str
    boundary: str
    status: str
    key: str
    best: bool


def trial_rows(study: StudyResult) -> list[TrialRow]:
    """Every trial of a resolution: the leader's family is marked, adversarial ones come first, by eta."""
    best = {member.key for member in family(study, study.leader)} if study.leader else set()
    attacks = adversarial(study)
    listed = {trial.key for trial in attacks}
    others = sorted((t for t in study.trials if t.key not in listed), key=lambda t: (t.assignment.role, t.seed))
    return [_trial_row(study, trial, trial.key in best) for trial in (study.base, *others, *attacks)]


def _trial_row(study: StudyResult, trial: TrialRecord, best: bool) -> TrialRow:
    scheme, role = trial.assignment.config.train.perturbation, trial.assignment.role
    perturbed = isinstance(scheme, FreeAT | RandomPerturbation)
    judged = trial.result.get("metric", trial.last("eval/metric"))
    effect = study.effect(trial) if perturbed else None
    return TrialRow(
        role=role,
        seed=trial.seed,
        replays=scheme.steps_per_minibatch,
        eta=_or_unknown(eta_of(trial)),
        reach=_or_unknown(scheme.reach if isinstance(scheme, FreeAT) else None),
        norm=scheme.ball.norm if isinstance(scheme, FreeAT | RandomPerturbation) else UNKNOWN,
        metric=_or_unknown(judged),
        effect=UNKNOWN if effect is None else percent(effect),
        gain=_or_unknown(trial.last("train/attack_gain") if perturbed else None),
        boundary=_or_unknown(trial.last("train/boundary_fraction") if perturbed else None),
        status=trial.status,
        key=trial.key[:12],
        best=best,
    )


def _or_unknown(value: float | None) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else number(value)


def _domain(domain: Domain) -> str:
    if isinstance(domain, Choice):
        return ", ".join(str(value) for value in domain.values)
    return f"{number(domain.low)} to {number(domain.high)}{', logarithmic' if domain.log else ''}"


def _stopping(space: Space) -> str:
    if space.stopping.rung == 1:
        return "none is stopped early"
    return f"the best {space.stopping.keep:.0%} go on after {space.stopping.rung:.0%} of the passes"


def _seeds(count: int) -> str:
    return "a single seed" if count == 1 else f"{count} seeds"


def _metric(space: Space) -> str:
    evaluation = space.trial_evaluation
    name = evaluation.metric_label
    return f"{name}, {evaluation.samples:,} samples against the whole dataset"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common()) or "none"
