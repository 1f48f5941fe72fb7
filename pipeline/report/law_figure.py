"""The best strength against the resolution, with the law through it."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atdiff_core.laws import LawRefused, PowerLaw
from pipeline.report.drawing import BLACK, BLUE, GREY, PALE, VERMILLION, blank_figure, legend_below, log_x, log_y, say
from pipeline.report.wording import law_title, number, verdict_of
from pipeline.results import StudyResult, SweepResult

SHORT = {
    "flat": "flat",
    "falling": "still falling here",
    "rising": "rising from here",
    "not_better": "not better\nthan control",
    "too_few": "too few\ntrials",
}


def law_figure(result: SweepResult) -> Figure:
    """eta* against resolution on logarithmic axes, and what the law makes of it.

    Resolutions without an optimum are hollow and say why. The bars are the ranges searched, the
    band is the 95 % prediction interval of a new resolution.
    """
    figure, (axes,) = blank_figure(7.6, 4.4)
    law, space = result.law, result.space
    searched = [study.response.etas[[0, -1]] for study in result.studies if study.response]
    low, high = (float(np.min(searched)), float(np.max(searched))) if searched else (0.01, 1.0)
    if isinstance(law, PowerLaw):
        at = law.predict(space.dimension(space.predict_at))
        low, high = min(low, at.low), max(high, at.high)
        _draw_law(axes, result, law)
    for study in result.studies:
        _draw_study(axes, study, math.sqrt(low * high))
    resolutions = [*space.ladder, space.predict_at]
    log_y(axes, low, high)
    log_x(axes, min(resolutions), max(resolutions))
    axes.set_xlim(min(resolutions) / 1.18, max(resolutions) * 1.3)
    axes.set_ylim(low / 1.3, high * 1.3)
    ticks = sorted(set(resolutions))
    axes.set_xticks(ticks, [f"{side} px\nD = {space.dimension(side):,}" for side in ticks])
    axes.set_xlabel("resolution, and elements of an image D")
    axes.set_ylabel("best strength η* (amplitude per element)")
    say(axes, law_title(result))
    if isinstance(law, LawRefused):
        axes.text(0.98, 0.02, "without a law nothing is predicted", transform=axes.transAxes, ha="right", color=GREY)
    legend_below(figure, axes.get_legend_handles_labels()[0], columns=2)
    return figure


def _draw_law(axes: Axes, result: SweepResult, law: PowerLaw) -> None:
    space = result.space
    ends = space.dimension(min(space.ladder)), space.dimension(max(*space.ladder, space.predict_at))
    dimensions = np.unique(np.geomspace(*ends, 60).round().astype(int))
    along = [law.predict(int(dimension)) for dimension in dimensions]
    sides = np.sqrt(dimensions / space.network.image_channels)
    axes.fill_between(sides, [p.low for p in along], [p.high for p in along], color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(sides, [p.value for p in along], color=BLUE, label="fitted law, 95 % band for a new resolution")
    at = law.predict(space.dimension(space.predict_at))
    axes.errorbar(
        [space.predict_at],
        [at.value],
        [[at.value - at.low], [at.high - at.value]],
        fmt="D",
        color=VERMILLION,
        capsize=4,
        label=f"predicted at {space.predict_at} px",
        zorder=4,
    )
    _beside(axes, space.predict_at, at.value, number(at.value), VERMILLION)


def _draw_study(axes: Axes, study: StudyResult, middle: float) -> None:
    side, verdict = study.resolution, verdict_of(study)
    if study.response is None:
        axes.text(side, middle, SHORT[verdict], color=GREY, ha="center", fontsize=9)
        return
    etas, best = study.response.etas, study.response.optimum
    axes.vlines(side, etas[0], etas[-1], color=PALE, linewidth=7, alpha=0.45, label=_once(axes, "range searched"))
    size = [[best.eta - best.low], [best.high - best.eta]]
    if best.found:
        label = _once(axes, "optimum found, 95 % interval")
        axes.errorbar([side], [best.eta], size, fmt="o", color=BLACK, capsize=4, label=label, zorder=4)
        _beside(axes, side, best.eta, number(best.eta), BLACK)
        return
    label = _once(axes, "no optimum (best within the range)")
    axes.errorbar([side], [best.eta], size, fmt="o", color=GREY, mfc="white", elinewidth=0.8, label=label, zorder=4)
    _beside(axes, side, best.eta, SHORT[verdict], GREY)


def _beside(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(text, (x, y), xytext=(8, 7), textcoords="offset points", color=colour, fontsize=9)


def _once(axes: Axes, label: str) -> str:
    """The label on its first use: a legend names everything once."""
    return "" if label in axes.get_legend_handles_labels()[1] else label
