"""The effect of AT against its strength at one resolution, between its controls."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from atdiff_core.perturbations import FreeAT
from atdiff_core.variance import NoiseBudget
from pipeline.noise import study_noise
from pipeline.records import TrialRecord
from pipeline.report.comparisons import adversarial, against_replay, controls_of, eta_of
from pipeline.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PALE,
    ROLE_COLOURS,
    blank_figure,
    legend_below,
    log_x,
    mark_trial,
    replay_colours,
    say,
    trial_legend,
)
from pipeline.report.wording import NORMS, study_title
from pipeline.results import StudyResult

Point = tuple[TrialRecord, float, float]
"""A trial, its eta, its effect in per cent."""

KEPT_IN_VIEW = 0.6  # At most two fifths of the trials may leave the top of the axes.


def response_figure(study: StudyResult) -> Figure:
    """Effect in per cent against eta: trials, posterior, controls, optimum.

    Strong attacks can raise the metric by orders of magnitude; the axis stays with the
    interesting part, and trials above it are arrows with their value.
    """
    points = _points(study)
    figure, (axes,) = blank_figure(7.6, 4.4 if points else 1.2)
    if not points:
        axes.text(0.5, 0.5, "no trial has been judged together with its replay control yet", ha="center", color=GREY)
        say(axes, study_title(study))
        axes.set_axis_off()
        return figure
    random, plain = _random_effects(study), _plain_effects(study)
    bottom, top = _view(study, [y for _, _, y in points], [*plain, *(y for ys in random.values() for y in ys)])
    etas = [x for _, x, _ in points]
    log_x(axes, min(etas), max(etas))
    axes.set_ylim(bottom, top)
    _draw_posterior(axes, study)
    _draw_controls(axes, plain, random, study_noise(study))
    _draw_trials(axes, points, top)
    _mark_dead_radii(axes, points)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.set_xlabel("strength η (amplitude per element)")
    axes.set_ylabel("change of the metric against replay\n(below 0 is better)")
    say(axes, study_title(study))
    lines, _ = axes.get_legend_handles_labels()
    legend_below(figure, [*trial_legend(trial for trial, _, _ in points), *lines])
    return figure


def _points(study: StudyResult) -> list[Point]:
    known = [(trial, eta_of(trial), study.effect(trial)) for trial in adversarial(study)]
    return [(t, eta, _per_cent(effect)) for t, eta, effect in known if eta is not None and effect is not None]


def _plain_effects(study: StudyResult) -> list[float]:
    pairs = against_replay(study, study.leader, "plain") if study.leader else None
    return [_per_cent(effect) for effect in pairs.effects] if pairs else []


def _random_effects(study: StudyResult) -> dict[float, list[float]]:
    """Effects of the random controls by eta, one a seed."""
    effects: dict[float, list[float]] = {}
    for trial in study.of_role("search"):
        for control in controls_of(study, trial, "random"):
            effect, eta = study.effect(control), eta_of(control)
            if effect is not None and eta is not None:
                effects.setdefault(eta, []).append(_per_cent(effect))
    return effects


def _tick(change: float) -> str:
    return f"{change:+g} %".replace("-", "−") if change else "0 %"


def _per_cent(effect: float) -> float:
    return 100 * math.expm1(effect)


def _view(study: StudyResult, seen: list[float], controls: list[float]) -> tuple[float, float]:
    """Range of the axis in per cent: everything below zero, controls, and most of what is above."""
    optimum = study.response.optimum if study.response else None
    bottom = min(0.0, *seen, *controls, _per_cent(optimum.effect_low) if optimum and optimum.found else 0.0)
    needed = max(-0.25 * bottom, 1.1 * max([0.0, *controls]), 1.15 * float(np.quantile(seen, KEPT_IN_VIEW)), 2.0)
    bearable = 2 * max(needed, -1.2 * bottom)
    top = max(needed, max(seen)) if max(seen) < bearable else bearable / 2
    margin = 0.08 * (top - bottom)
    return bottom - margin, top + margin


def _draw_posterior(axes: Axes, study: StudyResult) -> None:
    if study.response is None:
        return
    response, best = study.response, study.response.optimum
    low, mean, high = (100 * np.expm1(curve) for curve in (response.low, response.mean, response.high))
    axes.fill_between(response.etas, low, high, color=BLUE, alpha=0.13, linewidth=0, label="95 % band")
    axes.plot(response.etas, mean, color=BLUE, linewidth=1.6, label=f"posterior of the effect in {NORMS[study.norm]}")
    if best.found:
        axes.axvspan(best.low, best.high, color=GREEN, alpha=0.15, linewidth=0, label="η* with 95 % interval")
        axes.axvline(best.eta, color=GREEN, linewidth=1.4)


def _draw_controls(axes: Axes, plain: list[float], random: dict[float, list[float]], noise: NoiseBudget | None) -> None:
    axes.axhline(0, color=BLACK, linewidth=1.2, linestyle="--", label="replay control (0)")
    if noise is not None:
        by_chance = 1.96 * noise.paired_error(1)
        low, high = (_per_cent(edge) for edge in (-by_chance, by_chance))
        axes.axhspan(low, high, color=BLACK, alpha=0.06, linewidth=0, label="one pair without an effect, 95 %")
    if plain:
        colour = ROLE_COLOURS["plain"]
        axes.axhspan(min(plain), max(plain), color=colour, alpha=0.15, linewidth=0)
        label = f"plain, {_seeds(plain)}"
        axes.axhline(float(np.mean(plain)), color=colour, linewidth=1.4, linestyle="-.", label=label)
    for number, (eta, effects) in enumerate(sorted(random.items())):
        centre = float(np.mean(effects))
        axes.errorbar(
            [eta],
            [centre],
            [[centre - min(effects)], [max(effects) - centre]],
            fmt="D",
            markersize=6,
            color=ROLE_COLOURS["random"],
            markeredgecolor="white",
            capsize=3,
            zorder=5,
            label=None if number else f"random direction, {_seeds(effects)}",
        )


def _seeds(effects: list[float]) -> str:
    return "a single seed" if len(effects) == 1 else f"{len(effects)} seeds"


def _draw_trials(axes: Axes, points: list[Point], top: float) -> None:
    colours = replay_colours(trial for trial, _, _ in points)
    families: dict[str, list[tuple[float, float]]] = {}
    for trial, eta, effect in points:
        colour = colours[trial.assignment.config.train.perturbation.steps_per_minibatch]
        families.setdefault(trial.assignment.of or trial.key, []).append((eta, min(effect, top)))
        if effect <= top:
            mark_trial(axes, trial, eta, effect, colour)
            continue
        shown = f"{effect:+,.0f} %" if effect < 10_000 else f"{effect:+.0e} %"
        axes.annotate(
            shown,
            (eta, top),
            xytext=(0, -30),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0},
            color=colour,
            ha="center",
            va="top",
            rotation=90,
            fontsize=8.5,
        )
    several = [sorted(places) for places in families.values() if len(places) > 1]
    for number, places in enumerate(several):
        label = None if number else "same trial, other seeds"
        axes.plot(*zip(*places, strict=True), color=GREY, linewidth=1, zorder=3, label=label)


def _mark_dead_radii(axes: Axes, points: list[Point]) -> None:
    """Shade radii that no trial of the search can reach; cross trials whose own radius is out of reach."""
    schemes = [(eta, y, trial.assignment.config.train.perturbation) for trial, eta, y in points]
    longest = [(scheme.num_replays - 1) * scheme.step_size for _, _, scheme in schemes if isinstance(scheme, FreeAT)]
    largest = max(eta for eta, _, _ in schemes)
    if max(longest) < largest * (1 - 1e-9):
        axes.axvspan(max(longest), largest, color=PALE, alpha=0.35, linewidth=0, label="no trial reaches this η")
    dead = [(eta, y) for eta, y, scheme in schemes if isinstance(scheme, FreeAT) and scheme.reach < 1 - 1e-9]
    if dead:
        axes.plot(*zip(*dead, strict=True), "x", color=BLACK, markersize=4, zorder=6, label="cannot reach its η")
