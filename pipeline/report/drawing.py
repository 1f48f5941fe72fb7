"""The look that all figures share, and how they become SVG and PNG."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from atdiff_core.perturbations import FreeAT
from pipeline.records import TrialRecord
from pipeline.report.wording import number

# Okabe and Ito's palette: told apart with every common colour vision.
BLUE, VERMILLION, SKY, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7"
BLACK, GREY, PALE = "#000000", "#767676", "#D0D0D0"
ROLE_COLOURS = {"base": GREY, "plain": ORANGE, "replay": BLACK, "random": PURPLE, "leader": BLUE}
REPLAY_COLOURS = (BLUE, VERMILLION, SKY, GREEN, PURPLE, ORANGE)
NORM_MARKERS = {"l2": "o", "linf": "s", "l1": "^"}
NORM_NAMES = {"l2": "l₂", "linf": "l∞", "l1": "l₁"}

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EAEAEA",
    "axes.edgecolor": GREY,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}


def blank_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches, with its axes side by side."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        return figure, [figure.add_subplot(1, panels, place + 1) for place in range(panels)]


def say(axes: Axes, title: str) -> None:
    """Put what is seen above the axes, flush left."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", wrap=True)


def log_x(axes: Axes, low: float, high: float, *, narrow: bool = False) -> None:
    """Logarithmic scale with plain numbers at its ticks, fewer of them where the axes are ``narrow``."""
    axes.set_xscale("log")
    few = (1, 3) if high / low < 200 else (1,)
    _plain_ticks(axes.xaxis, low, high, few if narrow else (1, 2, 5))


def log_y(axes: Axes, low: float, high: float) -> None:
    """Logarithmic scale with plain numbers at its ticks."""
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis, low, high, (1, 2, 5))


def _plain_ticks(axis: Axis, low: float, high: float, digits: tuple[int, ...]) -> None:
    if high / low < 4:
        ticks = MaxNLocator(5).tick_values(low, high)
    else:
        ticks = LogLocator(subs=digits if high / low < 2000 else (1,)).tick_values(low, high)
    axis.set_major_locator(FixedLocator([tick for tick in ticks if tick > 0]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def replay_colours(trials: Iterable[TrialRecord]) -> dict[int, str]:
    """A colour for every K that occurs."""
    counts = sorted({trial.assignment.config.train.perturbation.steps_per_minibatch for trial in trials})
    return {count: REPLAY_COLOURS[place % len(REPLAY_COLOURS)] for place, count in enumerate(counts)}


def mark_trial(axes: Axes, trial: TrialRecord, x: float, y: float, colour: str) -> None:
    """One adversarial trial: shape by norm, colour by K, hollow unless complete."""
    scheme = trial.assignment.config.train.perturbation
    marker = NORM_MARKERS[scheme.ball.norm] if isinstance(scheme, FreeAT) else "o"
    face = colour if trial.status == "complete" else "white"
    axes.plot([x], [y], marker=marker, markersize=6.5, markerfacecolor=face, markeredgecolor=colour, zorder=4)


def trial_legend(trials: Iterable[TrialRecord]) -> list[Line2D]:
    """Keys to ``mark_trial``, only for what occurs among the trials."""
    known = list(trials)
    schemes = [trial.assignment.config.train.perturbation for trial in known]
    norms = sorted({scheme.ball.norm for scheme in schemes if isinstance(scheme, FreeAT)})
    handles = [_key("o", colour, colour, f"K = {count}") for count, colour in replay_colours(known).items()]
    handles += [_key(NORM_MARKERS[norm], GREY, GREY, NORM_NAMES[norm]) for norm in norms]
    if any(trial.status != "complete" for trial in known):
        handles.append(_key("o", "white", GREY, "stopped early"))
    return handles


def _key(marker: str, face: str, edge: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markerfacecolor=face, markeredgecolor=edge, label=label)


def legend_below(figure: Figure, handles: Sequence[Any], *, columns: int = 3) -> None:
    """A legend under all axes in as many columns as fit into the figure, ``columns`` at most; none without handles."""
    for count in range(min(columns, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=count, fontsize=8.5, frameon=False)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def as_svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element with text as text; ``prefix`` keeps its ids apart from other figures'."""
    text = io.StringIO()
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(text, format="svg", metadata=unsaid)
    element = text.getvalue()
    element = element[element.index("<svg") :]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", element)


def as_png(figure: Figure) -> bytes:
    """The figure at twice the screen's usual density."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200)
    return content.getvalue()
