"""The figures of a comparison: one colour an arm, the same in all of them."""

import math
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from atdiff_core.perturbations import RandomPerturbation, Unperturbed
from atdiff_core.samplers import Sampler
from pipeline.comparison_results import Cell, ComparisonResult, by_series
from pipeline.records import TrialRecord
from pipeline.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ROLE_COLOURS,
    SKY,
    STYLE,
    VERMILLION,
    blank_figure,
    legend_below,
    log_x,
    log_y,
    say,
)
from pipeline.report.robustness_figure import robustness_figure
from pipeline.report.wording import number, percent
from search_spaces.comparison import PLAIN

Line = Literal["-", "--", ":", "-."]
SCHEME_COLOURS = (BLUE, VERMILLION, GREEN, SKY)
LINES: tuple[Line, ...] = ("-", "--", ":", "-.")
WIDE = 1.4
"""Range of log ratios from which axes tell factors in place of changes in per cent."""
WIDEST = 4.0
"""Intervals are drawn up to so many times the largest effect of any seed; few seeds make wider ones."""


def comparison_figures(result: ComparisonResult) -> Iterator[tuple[str, Figure]]:
    """Yields the figures with their names; ``robustness_quality`` only where attacks were measured."""
    yield "effects", forest_figure(result)
    yield "metric_nfe", metric_figure(result)
    for name, against in (("reference", None), (PLAIN, PLAIN)):
        yield f"effects_nfe_{name}", effect_figure(result, against)
    yield "attack_gain", gain_figure(result)
    if result.comparison.evaluation.attacks:
        yield "robustness_quality", robustness_figure(result, arm_styles(result))


def arm_styles(result: ComparisonResult) -> dict[str, tuple[str, Line]]:
    """Colour and line of every arm; the controls have those that they have in other reports."""
    styles: dict[str, tuple[str, Line]] = {}
    controls: list[str] = []
    for arm in result.comparison.arms:
        match arm.perturbation:
            case Unperturbed(num_replays=replays) if arm.objective == result.comparison.objective:
                role = "plain" if replays == 1 else "replay"
            case RandomPerturbation():
                role = "random"
            case _:
                place = len(styles) - len(controls)
                line = LINES[place // len(SCHEME_COLOURS) % len(LINES)]
                styles[arm.name] = SCHEME_COLOURS[place % len(SCHEME_COLOURS)], line
                continue
        styles[arm.name] = ROLE_COLOURS[role], LINES[controls.count(role) % len(LINES)]
        controls.append(role)
    return styles


def metric_figure(result: ComparisonResult) -> Figure:
    """Metric against network evaluations, a panel a sampler; bands are the extremes over seeds."""
    series = by_series(result.samplers)
    figure, panels = _panel_grid(len(series))
    styles, heights = arm_styles(result), []
    for axes, (name, samplers) in zip(panels, series.items(), strict=True):
        drawn = _draw_base(axes, result, samplers)
        for arm, style in styles.items():
            drawn += _draw_metric(axes, result, arm, samplers, style)
        log_x(axes, samplers[0].nfe, samplers[-1].nfe + 1)
        axes.set_xticks([sampler.nfe for sampler in samplers], [str(sampler.nfe) for sampler in samplers])
        axes.set_xlabel(f"NFE per image ({name})")
        heights += drawn
    for axes in panels if heights else ():
        log_y(axes, min(heights), max(heights))
        axes.set_ylim(min(heights) / 1.05, max(heights) * 1.05)
    panels[0].set_ylabel(result.comparison.evaluation.metric_label)
    say(panels[0], "Metric against NFE (lower is better)")
    base = Line2D([], [], color=GREY, linestyle=":", marker="o", markersize=3.5, label="base")
    _legend(figure, result, [base])
    return figure


def _draw_metric(
    axes: Axes, result: ComparisonResult, arm: str, samplers: Sequence[Sampler], style: tuple[str, Line]
) -> list[float]:
    """Line and band of one arm; returns every value drawn. Distances below zero have no place on these axes."""
    columns = [(s.nfe, [v for v in result.metrics(arm, s).values() if v > 0]) for s in samplers]
    known = [(nfe, values) for nfe, values in columns if values]
    steps = [nfe for nfe, _ in known]
    lows, highs = [min(values) for _, values in known], [max(values) for _, values in known]
    colour, line = style
    axes.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
    axes.plot(steps, [mean(v) for _, v in known], line, marker="o", markersize=3.5, linewidth=1.3, color=colour)
    return [*lows, *highs]


def _draw_base(axes: Axes, result: ComparisonResult, samplers: Sequence[Sampler]) -> list[float]:
    values = [(sampler.nfe, result.base_metric(sampler)) for sampler in samplers]
    positive = [(nfe, value) for nfe, value in values if value is not None and value > 0]
    axes.plot(*_columns(positive), ":", marker="o", markersize=3.5, color=GREY)
    return [value for _, value in positive]


def effect_figure(result: ComparisonResult, against: str | None) -> Figure:
    """Effects with their 95 % intervals at every NFE, a panel a sampler.

    Args:
        against: The arm that all are compared with; each with its own reference where ``None``.
    """
    wanted = {arm.name: against or arm.reference for arm in result.comparison.arms if arm.name != against}
    cells = [cell for cell in result.cells if wanted.get(cell.arm) == cell.against]
    series = by_series(result.samplers)
    figure, panels = _panel_grid(len(series))
    styles = arm_styles(result)
    shown = [arm for arm in styles if any(cell.arm == arm for cell in cells)]
    for axes, (name, samplers) in zip(panels, series.items(), strict=True):
        axes.axhline(0, color=BLACK, linewidth=0.8)
        for cell in cells:
            if cell.samplers[0] in samplers and cell.effect.seeds:
                dodge = (shown.index(cell.arm) + 0.5) / len(shown) - 0.5
                place = samplers.index(cell.samplers[0]) + 0.8 * dodge
                _draw_effect(axes, cell, place, styles[cell.arm])
        axes.set_xticks(range(len(samplers)), [str(sampler.nfe) for sampler in samplers])
        axes.grid(visible=False, axis="x")
        for edge in range(len(samplers) - 1):
            axes.axvline(edge + 0.5, color="#EAEAEA", linewidth=1, zorder=0)
        axes.set_xlabel(f"NFE per image ({name})")
        _scale_effects(axes.yaxis, cells)
    panels[0].set_ylabel("change of the metric")
    say(panels[0], f"Effect against {against or 'the arm’s reference'} (lower is better)")
    _legend(figure, result, [], only=shown)
    return figure


def _draw_effect(axes: Axes, cell: Cell, place: float, style: tuple[str, Line]) -> None:
    """Mean and interval; filled where the interval does not hold zero."""
    effect, (colour, line) = cell.effect, style
    if effect.seeds > 1:
        axes.plot([place, place], effect.interval, line, color=colour, linewidth=1.3)
    face = colour if effect.verdict in ("better", "worse") else "white"
    axes.plot([place], [effect.mean], "o", markersize=4, markerfacecolor=face, markeredgecolor=colour, zorder=4)


def forest_figure(result: ComparisonResult) -> Figure:
    """Every arm's effect at the trial metric, and averaged over all samplers, against reference and plain."""
    arms = [arm for arm in result.comparison.arms if arm.name != PLAIN]
    figure, panels = blank_figure(10, 1.9 + 0.42 * len(arms), 2)
    styles = arm_styles(result)
    cells = [*result.at_trial_metric, *result.overall]
    for axes, against in zip(panels, (None, PLAIN), strict=True):
        axes.axvline(0, color=BLACK, linewidth=0.8)
        for row, arm in enumerate(arms):
            other = against or arm.reference
            for offset, family in ((-0.14, result.at_trial_metric), (0.18, result.overall)):
                cell = next(cell for cell in family if (cell.arm, cell.against) == (arm.name, other))
                _draw_row(axes, cell, row + offset, styles[arm.name][0], average=family is result.overall)
        labels = [arm.name if against else f"{arm.name}\nagainst {arm.reference}" for arm in arms]
        axes.set_yticks(range(len(arms)), labels, fontsize=9)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        _scale_effects(axes.xaxis, cells)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.set_xlabel("change of the metric, 95 % interval")
        say(axes, f"Against {against or 'the arm’s reference'} (left is better)")
    first = result.samplers[0]
    keys = [
        _key("o", f"{first.label}, {first.nfe} NFE: the trial metric"),
        _key("D", "mean over all samplers and NFE"),
        _key("|", "one seed"),
    ]
    legend_below(figure, keys)
    return figure


def _draw_row(axes: Axes, cell: Cell, row: float, colour: str, *, average: bool) -> None:
    effect = cell.effect
    if not effect.seeds:
        return
    axes.plot(effect.log_ratios, [row] * effect.seeds, "|", markersize=8, color=colour, markeredgewidth=1)
    if effect.seeds > 1:
        axes.plot(effect.interval, [row, row], color=colour, linewidth=1.1 if average else 2)
    face = colour if effect.verdict in ("better", "worse") else "white"
    shape, size = ("D", 4.5) if average else ("o", 6.5)
    axes.plot([effect.mean], [row], shape, markersize=size, markerfacecolor=face, markeredgecolor=colour, zorder=4)


def gain_figure(result: ComparisonResult) -> Figure:
    """How much each arm's perturbation raised the loss, over the passes; bands are the extremes over seeds."""
    figure, (axes,) = blank_figure(7.4, 4.2)
    axes.axhline(1, color=BLACK, linewidth=0.8)
    heights = [1.0]
    for arm, (colour, line) in arm_styles(result).items():
        points = _gain_points(result.of_arm(arm))
        steps = [kpass for kpass, _ in points]
        lows, highs = [min(values) for _, values in points], [max(values) for _, values in points]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
        axes.plot(steps, [mean(values) for _, values in points], line, linewidth=1.3, color=colour)
        heights += [*lows, *highs]
    if len(heights) > 1:
        log_y(axes, min(heights), max(heights))
        axes.set_ylim(min(heights) / 1.05, max(heights) * 1.05)
    axes.set_xlabel("kpass")
    axes.set_ylabel("attack gain, loss(δ) / loss(0)")
    say(axes, "What the perturbation does to the loss (above 1: raises it)")
    _legend(figure, result, [])
    return figure


def _gain_points(trials: Sequence[TrialRecord]) -> list[tuple[float, list[float]]]:
    """(kpass, gain of each seed) wherever every seed reported."""
    curves = [
        {round(p.kpass, 6): p.values["train/attack_gain"] for p in trial.curves if "train/attack_gain" in p.values}
        for trial in trials
    ]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return [(kpass, [curve[kpass] for curve in curves]) for kpass in sorted(shared)]


def _scale_effects(axis: Axis, cells: Sequence[Cell]) -> None:
    """Limits that hold every seed's effect, and the intervals as far as that leaves them readable."""
    seeds = [ratio for cell in cells for ratio in cell.effect.log_ratios]
    ends = [end for cell in cells for end in cell.effect.interval if math.isfinite(end)]
    widest = WIDEST * max((abs(ratio) for ratio in seeds), default=0.0)
    low = min(0.0, *seeds, max(-widest, min(ends, default=0.0)), -0.02)
    high = max(0.0, *seeds, min(widest, max(ends, default=0.0)), 0.02)
    margin = 0.05 * (high - low)
    axis.set_view_interval(low - margin, high + margin, ignore=True)
    if high - low > WIDE:
        base = next(base for base in (2, 5, 10, 100, 1e9) if (high - low) / math.log(base) < 7)
        powers = range(math.ceil(low / math.log(base)), math.floor(high / math.log(base)) + 1)
        ticks = [power * math.log(base) for power in powers]
        axis.set_major_formatter(FuncFormatter(lambda value, _: _factor(value)))
    else:
        ticks = _round_changes(low, high)
        axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0) if value else "0"))
    axis.set_major_locator(FixedLocator(ticks))


def _round_changes(low: float, high: float) -> list[float]:
    """Log ratios that are changes by a round number of per cent, a few on each side of zero."""
    ticks = [0.0]
    for side, change in ((-1, -math.expm1(low)), (1, math.expm1(high))):
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if 3 * step > change)
        ticks += [math.log1p(side * step * place) for place in range(1, math.floor(change / step + 1e-9) + 1)]
    return ticks


def _factor(log_ratio: float) -> str:
    factor = number(math.exp(abs(log_ratio)))
    return factor if not log_ratio else f"×{factor}" if log_ratio > 0 else f"÷{factor}"


def _panel_grid(panels: int) -> tuple[Figure, list[Axes]]:
    """Axes in rows of two or three."""
    columns = panels if panels <= 3 else 2
    rows = -(-panels // columns)
    figure, _ = blank_figure({1: 6.4, 2: 10, 3: 12.6}[columns], 0.9 + 3.2 * rows, 0)
    with rc_context(STYLE):
        return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]


def _legend(figure: Figure, result: ComparisonResult, more: Sequence[Line2D], only: Sequence[str] = ()) -> None:
    styles = {arm: style for arm, style in arm_styles(result).items() if not only or arm in only}
    handles = [
        Line2D([], [], color=colour, linestyle=line, marker="o", markersize=3.5, label=f"{arm} ({_seeds(result, arm)})")
        for arm, (colour, line) in styles.items()
    ]
    legend_below(figure, [*handles, *more], columns=4)


def _seeds(result: ComparisonResult, arm: str) -> str:
    count = len(result.of_arm(arm))
    return "1 seed" if count == 1 else f"{count} seeds"


def _key(marker: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=GREY, label=label)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
