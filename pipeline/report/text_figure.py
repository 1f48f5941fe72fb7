"""Text-to-image arms against NFE with bands over their seeds, and prompts with what was made of them."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from atdiff_core.metrics.features import as_uint8
from pipeline.report.drawing import GREY, REPLAY_COLOURS, STYLE, blank_figure, legend_below, log_x

MARKERS = "os^Dv<>P"
TILE_INCHES, CAPTION_INCHES = 0.95, 2.2
Series = Mapping[str, Mapping[int, Sequence[float]]]
"""By arm and NFE, a value for each seed."""


def bands_figure(panels: Mapping[str, Series], *, title: str, lines: Mapping[str, Mapping[str, float]]) -> Figure:
    """A panel a figure: the mean over the seeds of each arm, and the range that they span.

    Args:
        panels: Series by the words on their axis.
        lines: Levels to mark in a panel, by the same words: a name and a height.
    """
    figure, drawn = blank_figure(4.6 * len(panels), 4.0, len(panels))
    for axes, (label, series) in zip(drawn, panels.items(), strict=True):
        for number, (arm, points) in enumerate(series.items()):
            steps = sorted(points)
            colour, marker = REPLAY_COLOURS[number % len(REPLAY_COLOURS)], MARKERS[number % len(MARKERS)]
            means = [float(np.mean(points[nfe])) for nfe in steps]
            axes.plot(steps, means, color=colour, marker=marker, markersize=4.5, label=arm)
            low, high = [min(points[nfe]) for nfe in steps], [max(points[nfe]) for nfe in steps]
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        for name, height in lines.get(label, {}).items():
            axes.axhline(height, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(name, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        everything = sorted({nfe for points in series.values() for nfe in points})
        log_x(axes, everything[0], everything[-1] + 1)
        axes.set_xticks(everything, [str(nfe) for nfe in everything])
        axes.set_xlabel("NFE per image")
        axes.set_ylabel(label)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    legend_below(figure, drawn[0].get_legend_handles_labels()[0], columns=4)
    return figure


def prompt_grid(captions: Sequence[str], columns: Mapping[str, Tensor], *, title: str) -> Figure:
    """A row a caption, a column each of the sets of images ``[captions, 1 or 3, height, width]`` in [-1, 1]."""
    width, height = CAPTION_INCHES + TILE_INCHES * len(columns), 0.6 + TILE_INCHES * len(captions)
    with rc_context(STYLE):
        figure, _ = blank_figure(width, height, 0)
        grid: Any = figure.add_gridspec(
            len(captions), len(columns) + 1, width_ratios=[CAPTION_INCHES, *[TILE_INCHES] * len(columns)],
            wspace=0.02, hspace=0.02,
        )  # fmt: skip
        for row, caption in enumerate(captions):
            axes = figure.add_subplot(grid[row, 0])
            axes.axis("off")
            axes.text(1, 0.5, textwrap.fill(caption, 30), ha="right", va="center", fontsize=7.5)
            for column, (name, images) in enumerate(columns.items(), start=1):
                axes = figure.add_subplot(grid[row, column])
                axes.axis("off")
                pixels = as_uint8(images[row]).expand(3, -1, -1).permute(1, 2, 0).numpy()
                axes.imshow(pixels, interpolation="nearest")
                if row == 0:
                    axes.set_title(name, fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure
