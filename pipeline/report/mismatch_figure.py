"""The mismatch of training and sampling along a trajectory, one curve a model."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from atdiff_core.metrics.mismatch import MismatchAt
from atdiff_core.samplers import FINISHED, Sampler
from pipeline.report.drawing import PALE, REPLAY_COLOURS, blank_figure, say

ERRORS = 2
"""Half width of the bands, in standard errors."""
MAX_TICKS = 11


def mismatch_figure(curves: Mapping[str, Sequence[MismatchAt]], sampler: Sampler) -> Figure:
    """Distance of the sampler's states from noised data, from latents (left) to images (right).

    The bands are two standard errors wide to either side. What lies in the grey area cannot be
    told from zero. The levels are written below where all models share them.
    """
    figure, (axes,) = blank_figure(7.6, 4.4)
    places, size = range(sampler.nfe + 1), 4 if sampler.nfe <= 20 else 2
    floor = [max(curve[place].floor for curve in curves.values()) for place in places]
    axes.fill_between(places, 0, floor, color=PALE, alpha=0.6, linewidth=0, label="cannot be told from zero")
    for number, (name, curve) in enumerate(curves.items()):
        colour = REPLAY_COLOURS[number % len(REPLAY_COLOURS)]
        lows = [max(level.distance - ERRORS * level.std_error, 0) for level in curve]
        highs = [level.distance + ERRORS * level.std_error for level in curve]
        axes.fill_between(places, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axes.plot(places, [level.distance for level in curve], "-o", color=colour, markersize=size, label=name)
    axes.set_xlim(0, sampler.nfe)
    axes.set_ylim(bottom=0)
    ticks = _ticks(sampler.nfe)
    axes.set_xticks(ticks, [f"{place}{_level(curves, place)}" for place in ticks])
    axes.set_xlabel("network evaluations done, and the level t that is reached")
    axes.set_ylabel("W₂ between q(xₜ) and p(xₜ),\nin units of the spread of xₜ")
    say(axes, f"{sampler.label} at NFE {sampler.nfe}: how far its states are from noised data")
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9)
    return figure


def _ticks(nfe: int) -> list[int]:
    """At most ``MAX_TICKS`` places, evenly spaced, that end with the last."""
    stride = -(-nfe // (MAX_TICKS - 1))
    return list(range(nfe, -1, -stride))[::-1]


def _level(curves: Mapping[str, Sequence[MismatchAt]], place: int) -> str:
    timesteps = {curve[place].timestep for curve in curves.values()}
    if timesteps == {FINISHED}:
        return "\nimage"
    return f"\nt={timesteps.pop():.0f}" if len(timesteps) == 1 else ""
