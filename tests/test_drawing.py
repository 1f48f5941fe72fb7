"""Legends below figures."""

import pytest
from matplotlib.lines import Line2D

from pipeline.report.drawing import blank_figure, legend_below


@pytest.mark.parametrize(("length", "columns"), [(4, 4), (25, 3), (60, 1), (400, 1)])
def test_a_legend_has_as_many_columns_as_fit(length: int, columns: int) -> None:
    figure, _ = blank_figure(6.4, 4.2)
    legend_below(figure, [Line2D([], [], label="m" * length) for _ in range(7)], columns=4)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend._ncols == columns
    box = legend.get_window_extent()
    assert columns == 1 or (box.x0 >= 0 and box.x1 <= figure.bbox.width)


def test_nothing_to_tell_has_no_legend() -> None:
    figure, _ = blank_figure(6.4, 4.2)
    legend_below(figure, [])
    assert figure.legends == []
