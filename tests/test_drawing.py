"""Legends below figures."""

import pytest
from matplotlib.lines import Line2D

from pipeline.report.drawing import blank_figure, legend_below


def handles(length: int) -> list[Line2D]:
    """Seven names of so many letters."""
    return [Line2D([], [], label="m" * length) for _ in range(7)]


def columns_for(length: int) -> int:
    figure, _ = blank_figure(6.4, 4.2)
    legend_below(figure, handles(length), columns=4)
    (legend,) = figure.legends
    return int(legend._ncols)


def fits(length: int, columns: int) -> bool:
    """Whether a legend of so many columns lies in the figure once all is laid out."""
    figure, _ = blank_figure(6.4, 4.2)
    legend = figure.legend(
        handles=handles(length), loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False
    )
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    return bool(box.x0 >= 0 and box.x1 <= figure.bbox.width)


@pytest.mark.parametrize("length", [2, 6, 10, 14, 18, 30, 60])
def test_a_legend_has_as_many_columns_as_fit(length: int) -> None:
    most = max((columns for columns in range(1, 5) if fits(length, columns)), default=1)
    assert columns_for(length) == most


def test_short_names_share_a_row_and_long_ones_do_not() -> None:
    assert (columns_for(2), columns_for(60)) == (4, 1)


def test_nothing_to_tell_has_no_legend() -> None:
    figure, _ = blank_figure(6.4, 4.2)
    legend_below(figure, [])
    assert figure.legends == []
