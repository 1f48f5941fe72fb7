"""The result of a sweep for the terminal, for MLflow and for other programs."""

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atdiff_core.laws import PowerLaw
from pipeline.guide import Lessons
from pipeline.noise import study_noise
from pipeline.report.comparisons import interval
from pipeline.report.tables import law_rows, raw_etas
from pipeline.report.wording import (
    best_sentence,
    controls_sentence,
    found_studies,
    hypotheses,
    law_sentence,
    lessons_sentence,
    reason_of,
    unfinished_sentence,
    verdict_of,
)
from pipeline.results import Comparison, StudyResult, SweepResult
from search_spaces.space import Space

UNIT = "amplitude per element, images in [-1, 1]"


def print_summary(result: SweepResult, console: Console) -> None:
    """Print the optimum of each resolution, the law and the comparison with the controls."""
    table = Table(title=f"{escape(result.space.name)}: best strength η* ({escape(UNIT)})", title_justify="left")
    for heading in ("resolution", "D", "η* (95 %)", "effect against replay (95 %)", "verdict"):
        table.add_column(heading)
    for row in law_rows(result):
        style = "green" if row.found else "yellow"
        verdict = f"[{style}]{escape(row.verdict)}[/]"
        table.add_row(f"{row.resolution} px", row.dimension, row.eta, row.effect, verdict)
    console.print(table)
    refusal = [] if isinstance(result.law, PowerLaw) else [f"Why there is no law: {result.law}."]
    others = [law_sentence(other) for other in result.in_other_norms.values()] if _leads(result) else []
    for sentence in [*summary_sentences(result), *refusal, *others]:
        console.print(escape(sentence), highlight=False)


def _leads(result: SweepResult) -> bool:
    """Whether a result is told in its leading norm; only there the other norms are told as well."""
    return bool(result.studies) and result.studies[0].norm == result.leading_norm


def summary_sentences(result: SweepResult) -> list[str]:
    """Headline of the sweep in plain sentences, what is missing first."""
    sentences = [
        unfinished_sentence(result),
        law_sentence(result),
        lessons_sentence(result),
        best_sentence(result),
        controls_sentence(result),
    ]
    return [sentence for sentence in sentences if sentence]


def law_metrics(result: SweepResult) -> dict[str, float]:
    """The figures of the law by name, only those that were found."""
    metrics: dict[str, float] = {}
    for study in found_studies(result):
        if study.response is not None:
            metrics[f"eta_star_{study.resolution}px"] = study.response.optimum.eta
            metrics[f"effect_{study.resolution}px"] = study.response.optimum.effect
    if isinstance(result.law, PowerLaw):
        law = result.law
        at = law.predict(result.space.dimension(result.space.predict_at))
        metrics |= {"exponent": law.exponent, "exponent_low": law.exponent_low, "exponent_high": law.exponent_high}
        metrics |= {"predicted_eta": at.value, "predicted_eta_low": at.low, "predicted_eta_high": at.high}
    return metrics


def law_json(result: SweepResult) -> dict[str, Any]:
    """Everything the law rests on, verdicts and reasons included; unknown numbers are ``None``."""
    others = result.in_other_norms if _leads(result) else {}
    return {
        "space": result.space.name,
        "space_key": result.space.key,
        "unit": UNIT,
        "unfinished": unfinished_sentence(result),
        "norm": result.studies[0].norm if result.studies else None,
        **_told(result),
        "other_norms": {norm: _told(other) for norm, other in others.items()},
        "taught": {f"{side}px": asdict(each) for side, each in Lessons(result).by_resolution.items()},
    }


def _told(result: SweepResult) -> dict[str, Any]:
    """The law of a result in its norm, and what every resolution showed in it."""
    law = result.law
    return {
        "law": _law(law, result.space) if isinstance(law, PowerLaw) else None,
        "refusal": None if isinstance(law, PowerLaw) else str(law),
        "studies": [_study(study, result.space) for study in result.studies],
    }


def _law(law: PowerLaw, space: Space) -> dict[str, Any]:
    at = law.predict(space.dimension(space.predict_at))
    raw = raw_etas(space, at.value, round(at.scale))
    return {
        "exponent": law.exponent,
        "exponent_low": law.exponent_low,
        "exponent_high": law.exponent_high,
        "intercept": law.intercept,
        "scatter": law.scatter,
        "raw_exponents": {"l2": law.raw_exponent("l2"), "l1": law.raw_exponent("l1"), "linf": law.raw_exponent("linf")},
        "prediction": {
            "resolution": space.predict_at,
            "dimension": round(at.scale),
            "eta": at.value,
            "low": at.low,
            "high": at.high,
            "eta_raw": raw,
        },
        "hypotheses": [asdict(hypothesis) for hypothesis in hypotheses(law)],
        "leave_one_out": [asdict(left) for left in law.leave_one_out],
        "leave_one_out_error": law.leave_one_out_error,
        "without_optimum": list(law.without_optimum),
    }


def _study(study: StudyResult, space: Space) -> dict[str, Any]:
    content: dict[str, Any] = {
        "resolution": study.resolution,
        "dimension": study.dimension,
        "verdict": verdict_of(study),
        "reason": reason_of(study),
        "trials": len(study.trials),
    }
    if study.response is not None:
        best = study.response.optimum
        names = ("eta", "low", "high", "log_std", "effect", "effect_low", "effect_high")
        content |= {name: getattr(best, name) for name in names}
        content["eta_raw"] = raw_etas(space, best.eta, study.dimension)
    noise = study_noise(study)
    if noise is not None:
        content["noise"] = {name: None if math.isnan(value) else value for name, value in asdict(noise).items()}
    if study.leader is not None:
        content["leader"] = study.leader.key
        for role in ("replay", "plain", "random"):
            content[f"leader_against_{role}"] = _comparison(study.against(study.leader, role))
    return content


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    error = None if math.isnan(comparison.std_error) else comparison.std_error
    return {
        "effect": comparison.effect,
        "std_error": error,
        "seeds": comparison.seeds,
        "interval": interval(comparison),
    }
