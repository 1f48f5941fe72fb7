"""``atdiff analyse``: what matters, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer


def analyse(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder, say runs/demo.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; the sweep's analysis folder without it.")] = None,
) -> None:
    """Importance, contours, parallel coordinates, Pareto sets and fits against passes, as figures and as a page."""
    from rich.console import Console

    from pipeline.report.analysis_page import analysed, print_analysis, write_analysis
    from pipeline.results import load_sweep

    console, result = Console(), load_sweep(folder)
    analyses = analysed(result)
    written = write_analysis(result, analyses, out or folder / "analysis")
    print_analysis(analyses, console)
    console.print(f"{len(written)} files in {written[0].parent}; interactive: {written[-1]}", highlight=False)
