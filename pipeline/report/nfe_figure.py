"""Models against network evaluations, one panel a sampler, one line a model."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluations import Cell
from pipeline.report.drawing import REPLAY_COLOURS, STYLE, blank_figure, legend_below, log_x, log_y

PANEL_INCHES, COLUMNS, MARKERS = 3.6, 4, "os^Dv<>P"


def nfe_figure(cells: Sequence[Cell], metric: str, *, label: str, title: str) -> Figure:
    """The figure named ``metric`` of every cell, on logarithmic axes that all panels share.

    What is not above zero (a kernel distance may be) has no place on them: it is left out and counted.
    """
    drawn = [cell for cell in cells if cell.figures[metric] > 0]
    if not drawn:
        raise ValueError(f"no {metric} is above zero, and logarithmic axes show nothing else; draw another figure")
    samplers = list(dict.fromkeys(cell.sampler.label for cell in cells))
    models = list(dict.fromkeys(cell.model for cell in cells))
    steps = sorted({cell.sampler.nfe for cell in cells})
    heights = [cell.figures[metric] for cell in drawn]
    figure, panels = _grid(len(samplers))
    for axes, sampler in zip(panels, samplers, strict=True):
        for number, model in enumerate(models):
            line = sorted(
                (cell.sampler.nfe, cell.figures[metric])
                for cell in drawn
                if (cell.sampler.label, cell.model) == (sampler, model)
            )
            colour, marker = REPLAY_COLOURS[number % len(REPLAY_COLOURS)], MARKERS[number % len(MARKERS)]
            shown = [nfe for nfe, _ in line], [height for _, height in line]
            axes.plot(*shown, color=colour, marker=marker, markersize=4.5, label=model)
        log_x(axes, steps[0], steps[-1] + 1)
        axes.set_xticks(steps, [str(nfe) for nfe in steps])
        axes.set_xlabel("NFE per image")
        axes.set_title(sampler, fontsize=10)
        log_y(axes, min(heights), max(heights))
        axes.set_ylim(min(heights) / 1.1, max(heights) * 1.1)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel(label)
    missing = len(cells) - len(drawn)
    left_out = f" ({missing} of {len(cells)} values are not above zero and left out)" if missing else ""
    figure.suptitle(title + left_out, x=0.01, ha="left", fontsize=11, fontweight="bold")
    legend_below(figure, panels[0].get_legend_handles_labels()[0], columns=4)
    return figure


def _grid(panels: int) -> tuple[Figure, list[Axes]]:
    """An empty figure with its panels in rows of ``COLUMNS``."""
    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    figure, _ = blank_figure(max(6.4, PANEL_INCHES * columns), 1 + 3.3 * rows, 0)
    with rc_context(STYLE):
        return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
