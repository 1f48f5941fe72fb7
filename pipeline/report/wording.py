"""Results in plain words, each number with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atdiff_core.balls import Norm
from atdiff_core.laws import LawRefused, PowerLaw, min_rungs
from atdiff_core.response import min_etas
from pipeline.effects import LEVEL, holm
from pipeline.guide import Lessons
from pipeline.noise import study_noise
from pipeline.records import Role
from pipeline.report.comparisons import interval, p_value, pooled
from pipeline.results import Comparison, StudyResult, SweepResult

NO_OPTIMUM = {
    "flat": "cannot be told from flat",
    "falling": "still falling, or level, at the largest η",
    "rising": "rising, or level, from the smallest η",
    "not_better": "no better than the control, as far as can be told",
    "too_few": "too few trials",
}


NORMS: dict[Norm, str] = {"l1": "l1", "l2": "l2", "linf": "l∞"}


def number(value: float) -> str:
    """Three significant digits, without exponents where people expect none, with a real minus."""
    digits = f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return digits.replace("-", "−")


def between(low: float, high: float) -> str:
    return f"95 %: {number(low)} to {number(high)}"


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def exponent_of(law: PowerLaw) -> str:
    """The exponent of D with its interval."""
    middle, low, high = (f"{e:.2f}".replace("-", "−") for e in (law.exponent, law.exponent_low, law.exponent_high))
    return f"{middle} (95 %: {low} to {high})"


def percent(effect: float, digits: int = 1) -> str:
    """A log ratio as a change in per cent, or as a factor where that is ten and more."""
    change = 100 * math.expm1(effect)
    if change >= 1000:
        return f"×{number(math.exp(effect))}"
    return f"{change:+.{digits}f}".replace("-", "−") + "\N{NO-BREAK SPACE}%"


def percent_interval(effect: float, low: float, high: float) -> str:
    return f"{percent(effect)} (95 %: {percent(low)} to {percent(high)})"


def verdict_of(study: StudyResult) -> str:
    """The verdict on a resolution; ``too_few`` where no response could be fitted."""
    return study.response.optimum.verdict if study.response else "too_few"


def verdict_words(study: StudyResult) -> str:
    """The verdict in a few words."""
    verdict = verdict_of(study)
    return "optimum found" if verdict == "optimum" else f"no optimum: {NO_OPTIMUM[verdict]}"


def reason_of(study: StudyResult) -> str:
    if study.response:
        return study.response.optimum.reason
    etas = {one.eta for one in study.observations}
    return (
        f"{len(study.observations)} judged trials at {len(etas)} different eta that have a replay control; "
        f"a response needs {min_etas} different eta"
    )


def study_title(study: StudyResult) -> str:
    """What a resolution showed, short enough for the title of a figure."""
    norm = NORMS[study.norm]
    if study.response is None or not study.response.optimum.found:
        return f"{study.resolution} px, {norm}: {verdict_words(study)}"
    best = study.response.optimum
    return f"{study.resolution} px, {norm}: best at η = {number(best.eta)} ({between(best.low, best.high)})"


def law_title(result: SweepResult) -> str:
    if isinstance(result.law, LawRefused):
        found, asked = len(found_studies(result)), len(result.space.ladder)
        return f"No power law: {found} of {asked} resolutions show an optimum, {min_rungs} are needed"
    law = result.law
    return f"η* goes with D to the power {exponent_of(law)}"


def found_studies(result: SweepResult) -> list[StudyResult]:
    return [study for study in result.studies if study.response and study.response.optimum.found]


def law_sentence(result: SweepResult) -> str:
    """The law and its prediction, or why there is none."""
    law = result.law
    if isinstance(law, LawRefused):
        found, asked = len(found_studies(result)), len(result.space.ladder)
        return (
            f"There is no law{_in_norm(result) or ','} and so no prediction: it needs an optimum at {min_rungs} "
            "resolutions or more, "
            f"and {found} of the {asked} of this ladder show one."
        )
    at = law.predict(result.space.dimension(result.space.predict_at))
    zero = "" if law.rejects(0) else " One amplitude for all resolutions (exponent 0) is not excluded."
    return (
        f"The best strength{_in_norm(result)} follows η* ∝ D^b with b = {exponent_of(law)}, "
        f"fitted to {len(law.rungs)} of {len(result.space.ladder)} resolutions. "
        f"At {result.space.predict_at} px (D = {at.scale:,.0f}) it predicts "
        f"η* = {number(at.value)} ({between(at.low, at.high)}), an amplitude per element.{zero}"
    )


def _in_norm(result: SweepResult) -> str:
    norms = result.space.domains.norms()
    if len(norms) == 1 or not result.studies:
        return ""
    told = result.studies[0].norm
    return f" in {NORMS[told]}, {'the leading ' if told == result.leading_norm else ''}one of {len(norms)} norms,"


def best_sentence(result: SweepResult) -> str:
    """Whether AT at its best beats the replay control."""
    if not result.studies:
        return "No resolution has been searched yet."
    found = found_studies(result)
    without = [f"{s.resolution} px ({NO_OPTIMUM[verdict_of(s)]})" for s in result.studies if s not in found]
    if not found:
        return f"No optimum could be told apart from the replay control at any resolution: {', '.join(without)}."
    effects = [
        f"{percent_interval(best.effect, best.effect_low, best.effect_high)} at {study.resolution} px"
        for study in found
        if study.response and (best := study.response.optimum)
    ]
    text = f"At the best strength AT changes the metric against the replay control by {', '.join(effects)}."
    return text + (f" No optimum could be told apart at {', '.join(without)}." if without else "")


def controls_sentence(result: SweepResult) -> str:
    """The leading trials against every control, over all resolutions."""
    names: dict[Role, str] = {
        "replay": "replays without perturbation",
        "plain": "plain training",
        "random": "random directions",
    }
    fresh = any(trial.assignment.role == "repeat" and trial.status == "complete" for trial in result.trials)
    seeds = "on seeds that did not choose them" if fresh else "on the seed that chose them, which flatters them"
    all_pooled = {name: pooled(result, role, fresh_seeds=fresh) for role, name in names.items()}
    known = {name: comparison for name, comparison in all_pooled.items() if comparison is not None}
    if not known:
        return "No trial has been judged together with its controls yet."
    verdicts = certainties(list(known.values()))
    parts = [
        f"{percent(comparison.effect)} against {name} ({verdict})"
        for (name, comparison), verdict in zip(known.items(), verdicts, strict=True)
    ]
    text = f"The leading trials, {seeds}, averaged over resolutions: {'; '.join(parts)}."
    return text + (f" {FAMILY_RATE}" if any(comparison.seeds > 1 for comparison in known.values()) else "")


FAMILY_RATE = "Where nothing differs, 5 % of sweeps see any of these verdicts wrong (Holm)."


def certainties(family: Sequence[Comparison]) -> list[str]:
    """Interval and verdict of paired comparisons that are read together; a single pair has neither.

    The intervals are each its own, 95 %. The verdicts are adjusted for each other (Holm): the chance of any false one
    among them is 5 %.
    """
    words = []
    for comparison, p in zip(family, holm([p_value(each) for each in family]), strict=True):
        limits = interval(comparison)
        if limits is None:
            words.append("a single seed, no interval")
            continue
        apart = "not told apart" if p >= LEVEL else "better" if comparison.effect < 0 else "worse"
        low, high = (percent(limit) for limit in limits)
        words.append(f"95 %: {low} to {high}, {comparison.seeds} pairs, {p_text(p)}: {apart}")
    return words


def lessons_sentence(result: SweepResult) -> str:
    """eta* of each resolution with the valley's shape shared with the smaller ones; empty where none taught any."""
    told = [
        f"η* = {number(each.eta)} ({between(each.low, each.high)}; expected {number(each.expected_low)} to "
        f"{number(each.expected_high)} before it was searched) at {resolution} px"
        for resolution, each in Lessons(result).by_resolution.items()
    ]
    return f"With the valley's shape learned from the smaller resolutions: {', '.join(told)}." if told else ""


def noise_sentence(study: StudyResult) -> str:
    """Where the noise of a resolution comes from, and what it takes to see through it; empty if unknown."""
    noise = study_noise(study)
    if noise is None:
        return ""
    parts = [f"{spread(noise.seed)} the seed, shared by all arms", f"{spread(noise.residual)} between arms of one seed"]
    if not math.isnan(noise.evaluation):
        parts[1] += f" (training {spread(noise.training)}, evaluation {spread(noise.evaluation)})"
    needed = f"{noise.seeds_for(math.log(0.95)):,}"
    return (
        f"Noise of the metric, one standard deviation, from {noise.arms} arms with {noise.seeds} seeds: "
        f"{', '.join(parts)}. With arms paired by seed a change of 5 % needs {needed} seeds to be seen (power 80 %)."
    )


def spread(std: float) -> str:
    """A standard deviation of a log metric, as a relative one."""
    return f"{100 * math.expm1(std):.1f}\N{NO-BREAK SPACE}%"


def study_sentence(study: StudyResult) -> str:
    """The verdict on one resolution."""
    best = study.response.optimum if study.response else None
    if best is None or not best.found:
        return f"No optimum: {reason_of(study)}."
    effect = percent_interval(best.effect, best.effect_low, best.effect_high)
    return (
        f"The best strength is η* = {number(best.eta)} ({between(best.low, best.high)}), where AT changes the metric "
        f"against the replay control by {effect}: {best.reason}."
    )


def unfinished_sentence(result: SweepResult) -> str:
    """What is still missing from the sweep; empty once it is finished."""
    missing = sorted(set(result.space.ladder) - {study.resolution for study in result.studies})
    running = sum(trial.status == "running" for trial in result.trials)
    short = [s.resolution for s in result.studies if len(s.of_role("search")) < result.space.trials]
    parts = [f"{running} trials have not ended"] if running else []
    parts += [f"no study yet at {_pixels(missing)}"] if missing else []
    parts += [f"fewer search trials than the {result.space.trials} asked for at {_pixels(short)}"] if short else []
    return f"This sweep is not finished: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class Hypothesis:
    """An exponent that somebody may expect, and what the law says about it.

    Attributes:
        says: In words.
        exponent: Of the amplitude per element.
        p_value: Of this hypothesis among the others (Holm): all of them together err in 5 % of sweeps.
        rejected: Whether it is below 0.05.
    """

    says: str
    exponent: float
    p_value: float
    rejected: bool


def hypotheses(law: PowerLaw) -> list[Hypothesis]:
    """The null exponents of the three norms, tested together."""
    nulls = {
        "one amplitude per element for all resolutions: raw l₂ radius ∝ √D, raw l∞ radius constant": 0.0,
        "one raw l₂ radius for all resolutions": -0.5,
        "one raw l₁ radius for all resolutions": -1.0,
    }
    adjusted = holm([law.p_value(exponent) for exponent in nulls.values()])
    return [
        Hypothesis(says, exponent, p_value, p_value < LEVEL)
        for (says, exponent), p_value in zip(nulls.items(), adjusted, strict=True)
    ]


def _pixels(resolutions: list[int]) -> str:
    return ", ".join(f"{resolution} px" for resolution in resolutions)
