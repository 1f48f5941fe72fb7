"""Quality against robustness: what every arm pays for the strength it withstands."""

from collections.abc import Mapping
from statistics import mean

from matplotlib.figure import Figure

from atdiff_core.metrics.robustness import Attack
from pipeline.comparison_results import ComparisonResult, distance
from pipeline.report.drawing import BLACK, blank_figure, log_x, log_y, say
from pipeline.report.wording import number


def robustness_figure(result: ComparisonResult, styles: Mapping[str, tuple[str, str]]) -> Figure:
    """Trial metric against attack gain, a panel an attack; crosses are the extremes over seeds.

    Args:
        styles: Colour and line of every arm.
    """
    attacks = result.comparison.evaluation.attacks
    figure, panels = blank_figure(5.2 * len(attacks), 4.4, panels=len(attacks))
    for axes, attack in zip(panels, attacks, strict=True):
        everything: list[tuple[float, float]] = []
        for arm in result.comparison.arms:
            points = _points(result, arm.name, attack)
            if not points:
                continue
            everything += points
            gains, metrics = zip(*points, strict=True)
            centre, colour = (mean(gains), mean(metrics)), styles[arm.name][0]
            axes.plot([min(gains), max(gains)], [centre[1]] * 2, color=colour, linewidth=1)
            axes.plot([centre[0]] * 2, [min(metrics), max(metrics)], color=colour, linewidth=1)
            axes.plot(*centre, "o", color=colour, markersize=5)
            axes.annotate(arm.name, centre, xytext=(5, 4), textcoords="offset points", fontsize=8, color=BLACK)
        if everything:
            gains, metrics = zip(*everything, strict=True)
            log_x(axes, min(gains), max(gains))
            if min(metrics) > 0:
                log_y(axes, min(metrics), max(metrics))
        axes.set_xlabel(f"loss under attack / loss ({attack.ball.norm}, radius {number(attack.ball.radius)})")
    panels[0].set_ylabel(f"{result.comparison.evaluation.metric_label}")
    say(panels[0], "Quality against robustness (lower left is better)")
    return figure


def _points(result: ComparisonResult, arm: str, attack: Attack) -> list[tuple[float, float]]:
    """Attack gain and trial metric of every seed."""
    trials = [trial for trial in result.of_arm(arm) if attack.name in trial.result]
    return [(trial.result[attack.name], distance(trial, result.samplers[0])) for trial in trials]
