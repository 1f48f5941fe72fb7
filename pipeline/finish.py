"""The end of a sweep or a comparison: figures, report, and where a person looks next."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from atdiff_core.files import write_json
from pipeline.comparison_results import ComparisonResult, load_comparison_result
from pipeline.extension import Declared
from pipeline.report.comparison_page import effect_metrics, print_comparison, write_comparison
from pipeline.report.page import write_figures, write_report
from pipeline.report.summary import law_json, law_metrics, print_summary
from pipeline.results import SweepResult, load_result
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from search_spaces.space import Space


def finish_sweep(result: SweepResult, workspace: Workspace, command: str, console: Console) -> None:
    """Write everything that is derived from the trials, and say where it lies."""
    with console.status("law, figures and report"):
        write_json(workspace.law, law_json(result))
        report = write_report(result, workspace, command=command)
        written = [*write_figures(result, workspace), workspace.law, report]
        _record(workspace, result.space, law_metrics(result), written, console)
    print_summary(result, console)
    console.print(f"report: {report}")
    _say_where(workspace, console)


def finish_comparison(result: ComparisonResult, workspace: Workspace, command: str, console: Console) -> None:
    """The same for a comparison of arms."""
    with console.status("figures and tables"):
        written = write_comparison(result, workspace, command=command)
        _record(workspace, result.comparison, effect_metrics(result), written, console)
    print_comparison(result, console)
    console.print(f"report: {written[0]}")
    _say_where(workspace, console)


def copy_again(workspace: Workspace) -> int:
    """Bring MLflow up to what a sweep's or a comparison's folder holds; the number of its trials.

    Copying is idempotent: what is there already is left alone. It serves what an outage left
    behind, and a move to another MLflow.

    Raises:
        ValueError: MLflow cannot be reached.
    """
    declared, folders = workspace.declared(), workspace.trial_folders()
    tracker = Tracker(workspace, declared)
    tracker.copy_all(folders)
    pages = [
        workspace.report,
        workspace.law,
        *workspace.folder.glob("comparison.[!j]*"),
        *workspace.figures.glob("*.png"),
    ]
    if isinstance(declared, Space) and workspace.law.is_file():
        tracker.log_outcome(law_metrics(load_result(workspace)), filter(Path.is_file, pages))
        tracker.finish()
    elif not isinstance(declared, Space) and (workspace.folder / "comparison.html").is_file():
        tracker.log_outcome(effect_metrics(load_comparison_result(workspace)), filter(Path.is_file, pages))
        tracker.finish()
    return len(folders)


def _record(
    workspace: Workspace, declared: Declared, figures: dict[str, float], written: Iterable[Path], console: Console
) -> None:
    """To MLflow, if it answers; a sweep that is done is done without it."""
    try:
        tracker = Tracker(workspace, declared)
        tracker.log_outcome(figures, written)
        tracker.finish()
    except ValueError as error:
        console.print(f"[yellow]{escape(str(error))}[/]")
        console.print(f"[yellow]once it answers, copy the outcome with: atdiff sync {workspace.folder}[/]")


def _say_where(workspace: Workspace, console: Console) -> None:
    elsewhere = workspace.tracking
    console.print(f"curves: {elsewhere}" if elsewhere else f"curves: atdiff ui --root {workspace.root}")
