"""Legends below figures."""

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.report.drawing import blank_figure, legend_below


def with_legend(length: int, columns: int) -> Figure:
    """Seven names of so many letters."""
    figure, _ = blank_figure(6.4, 4.2)
    legend_below(figure, [Line2D([], [], label="m" * length) for _ in range(7)], columns=columns)
    figure.draw_without_rendering()
    return figure


def width_in(columns: int, length: int) -> float:
    """Share of the figure that the names of a row of the legend take, told by as many single names."""
    figure = with_legend(length, 1)
    return columns * figure.legends[0].get_window_extent().width / figure.bbox.width


@pytest.mark.parametrize("length", [2, 6, 10, 14, 18, 30, 60])
def test_a_legend_has_as_many_columns_as_fit(length: int) -> None:
    figure = with_legend(length, 4)
    (legend,) = figure.legends
    box, columns = legend.get_window_extent(), legend._ncols
    assert columns == 1 or (box.x0 >= 0 and box.x1 <= figure.bbox.width)
    assert columns == 4 or width_in(columns + 1, length) > 1


def test_short_names_share_a_row_and_long_ones_do_not() -> None:
    assert with_legend(2, 4).legends[0]._ncols == 4
    assert with_legend(60, 4).legends[0]._ncols == 1


def test_nothing_to_tell_has_no_legend() -> None:
    figure, _ = blank_figure(6.4, 4.2)
    legend_below(figure, [])
    assert figure.legends == []
