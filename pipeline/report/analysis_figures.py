"""Importance, contours, parallel coordinates, Pareto sets and fits against passes, one figure each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from atdiff_core.balls import Norm
from atdiff_core.response import Observation
from atdiff_core.surface import fit_surface
from pipeline.importance import Importance, Params
from pipeline.report.drawing import (
    BLACK,
    BLUE,
    GREY,
    NORM_NAMES,
    REPLAY_COLOURS,
    ROLE_COLOURS,
    blank_figure,
    log_x,
    log_y,
    say,
)
from pipeline.report.trial_figures import distance_name
from pipeline.results import StudyResult
from pipeline.trade_offs import Outcome, PassesFit

LABELS = {"eta": "η", "alpha": "α", "replays": "K", "reach": "reach", "norm": "norm"}
UNKNOWN_BELOW = 0.5  # Where less of the prior variance is gone, a contour is only a guess.


def importance_figure(resolution: int, found: Sequence[Importance]) -> Figure:
    """Bars with 95 % bootstrap intervals."""
    figure, (axes,) = blank_figure(6.4, 1.4 + 0.5 * len(found))
    for place, each in enumerate(reversed(found)):
        axes.barh(place, each.share, color=BLUE, alpha=0.7)
        axes.plot([each.low, each.high], [place, place], color=BLACK, linewidth=2, solid_capstyle="butt")
    axes.set_yticks(range(len(found)), [LABELS[each.name] for each in reversed(found)])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of what sets the best third apart (PED-ANOVA), 95 % bootstrap interval")
    say(axes, f"{resolution} px: what matters for the effect")
    return figure


def contour_figure(study: StudyResult, norm: Norm, name: str, points: Sequence[tuple[Observation, float]]) -> Figure:
    """Effect in per cent over eta and a second quantity; hatched where the trials say little.

    Raises:
        ValueError: Too few trials for a surface.
    """
    observations, others = [one for one, _ in points], [other for _, other in points]
    surface = fit_surface(observations, others)
    change = 100 * np.expm1(np.clip(surface.mean, -5, 2))
    figure, (axes,) = blank_figure(6.8, 4.2)
    shared: dict[str, Any] = {
        "norm": TwoSlopeNorm(0, min(-1.0, float(change.min())), max(1.0, float(change.max()))),
        "cmap": "RdBu_r",
    }
    drawn = axes.contourf(surface.etas, surface.others, change, levels=14, **shared)
    unknown = np.where(surface.known < UNKNOWN_BELOW, 1.0, np.nan)
    axes.contourf(surface.etas, surface.others, unknown, levels=[0.5, 1.5], colors="none", hatches=["///"])
    effects = 100 * np.expm1(np.clip([one.effect for one in observations], -5, 2))
    places = [one.eta for one in observations], others
    axes.scatter(*places, c=effects, s=42, edgecolors=BLACK, linewidths=0.8, zorder=4, **shared)
    log_x(axes, min(places[0]), max(places[0]))
    axes.set_xlabel("strength η (amplitude per element)")
    axes.set_ylabel(LABELS[name])
    figure.colorbar(drawn, ax=axes, label="change against replay, %")
    say(axes, f"{study.resolution} px, {NORM_NAMES[norm]}: effect over η and {LABELS[name]} (hatched: hardly known)")
    return figure


def parallel_figure(resolution: int, rows: Sequence[tuple[Params, float]]) -> Figure:
    """Every search trial as a line through its values, coloured by its effect; the best are drawn last."""
    names = [name for name in rows[0][0] if len({params[name] for params, _ in rows}) > 1]
    figure, (axes,) = blank_figure(7.2, 4.0)
    columns = [_heights([params[name] for params, _ in rows]) for name in names]
    effects = [effect for _, effect in rows]
    columns.append(_heights([max(0.0, 1 + effect) + 1e-9 for effect in effects], log=False))
    scale = Normalize(min(effects), float(np.quantile(effects, 0.75)) + 1e-9)
    for place in sorted(range(len(rows)), key=lambda place: -effects[place]):
        colour = colormaps["viridis_r"](scale(effects[place]))
        axes.plot(range(len(columns)), [column[place] for column in columns], color=colour, alpha=0.8, linewidth=1.3)
    labels = [f"{LABELS[name]}\n{_ends([params[name] for params, _ in rows])}" for name in names]
    axes.set_xticks(range(len(columns)), [*labels, f"effect\n{100 * math.expm1(min(effects)):+.0f} % and up"])
    axes.set_yticks([])
    say(axes, f"{resolution} px: {len(rows)} trials; dark lines are the best")
    return figure


def pareto_figure(study: StudyResult, found: Sequence[Outcome]) -> Figure:
    """Distance against NFE; filled where nothing is as good for as few NFE and passes, larger for more passes."""
    figure, (axes,) = blank_figure(6.8, 4.2)
    shown = [each for each in found if each.distance > 0]
    most = max((each.kpass for each in shown), default=1.0) or 1.0
    for each in shown:
        colour = ROLE_COLOURS.get(each.role, BLUE)
        size = 20 + 60 * each.kpass / most
        face = colour if each.best else "none"
        axes.scatter([each.nfe], [each.distance], s=size, c=face, edgecolors=colour, zorder=4)
    front = sorted((each.nfe, each.distance) for each in shown if each.best)
    if front:
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=0.8, zorder=2)
        log_x(axes, shown[0].nfe, max(each.nfe for each in shown) + 1)
        log_y(axes, min(each.distance for each in shown), max(each.distance for each in shown))
        axes.set_xticks(sorted({each.nfe for each in shown}), [str(nfe) for nfe in sorted({e.nfe for e in shown})])
    for role in dict.fromkeys(each.role for each in shown):
        axes.scatter([], [], c=ROLE_COLOURS.get(role, BLUE), label=role)
    axes.set_xlabel("NFE per image")
    axes.set_ylabel(distance_name(study))
    axes.legend(fontsize=8.5, framealpha=0.9)
    say(axes, f"{study.resolution} px: distance, NFE and passes (filled: Pareto)")
    return figure


def passes_figure(study: StudyResult, fits: Sequence[PassesFit]) -> Figure:
    """Distance against passes with each scheme's power law and its 95 % band."""
    figure, (axes,) = blank_figure(6.8, 4.2)
    every = [point for fit in fits for point in fit.points]
    low, high = min(kpass for kpass, _ in every), max(kpass for kpass, _ in every)
    along = np.geomspace(low, high, 40)
    for number, fit in enumerate(fits):
        colour = REPLAY_COLOURS[number % len(REPLAY_COLOURS)]
        middle, bottom, top = np.array([fit.band(float(kpass)) for kpass in along]).T
        if np.isfinite(bottom).all():
            axes.fill_between(along, bottom, top, color=colour, alpha=0.13, linewidth=0)
        axes.plot(along, middle, color=colour, label=f"{fit.scheme}: passes^{fit.slope:.2f}".replace("-", "−"))
        kpasses, distances = zip(*fit.points, strict=True)
        axes.scatter(kpasses, distances, color=colour, s=18, zorder=4)
    log_x(axes, low, high)
    log_y(axes, min(distance for _, distance in every), max(distance for _, distance in every))
    axes.set_xlabel("thousand passes of fine-tuning")
    axes.set_ylabel(distance_name(study))
    axes.legend(fontsize=8.5, framealpha=0.9)
    say(axes, f"{study.resolution} px: what more passes bring (95 % bands)")
    return figure


def _heights(values: Sequence[float | str], *, log: bool = True) -> list[float]:
    """Values on an axis from 0 to 1."""
    if any(isinstance(value, str) for value in values):
        order = sorted(set(values), key=str)
        return [order.index(value) / max(1, len(order) - 1) for value in values]
    numbers = np.array(values, dtype=float)
    numbers = np.log(numbers) if log else numbers
    return [float(place) for place in (numbers - numbers.min()) / max(1e-12, float(np.ptp(numbers)))]


def _ends(values: Sequence[float | str]) -> str:
    if any(isinstance(value, str) for value in values):
        return ", ".join(sorted({str(value) for value in values}))
    numbers = [float(value) for value in values]
    return f"{min(numbers):.3g} to {max(numbers):.3g}"
