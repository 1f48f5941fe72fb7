"""The end of a sweep or a comparison: figures, report, and where a person looks next."""

from rich.console import Console

from atdiff_core.files import write_json
from pipeline.comparison_results import ComparisonResult
from pipeline.report.comparison_page import effect_metrics, print_comparison, write_comparison
from pipeline.report.page import write_figures, write_report
from pipeline.report.summary import law_json, law_metrics, print_summary
from pipeline.results import SweepResult
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace


def finish_sweep(result: SweepResult, workspace: Workspace, command: str, console: Console) -> None:
    """Write everything that is derived from the trials, and say where it lies."""
    with console.status("law, figures and report"):
        write_json(workspace.law, law_json(result))
        report = write_report(result, workspace, command=command)
        tracker = Tracker(workspace, result.space)
        tracker.log_outcome(law_metrics(result), [*write_figures(result, workspace), workspace.law, report])
        tracker.finish()
    print_summary(result, console)
    console.print(f"report: {report}")
    console.print(f"curves: atdiff ui --root {workspace.root}")


def finish_comparison(result: ComparisonResult, workspace: Workspace, command: str, console: Console) -> None:
    """The same for a comparison of arms."""
    with console.status("figures and tables"):
        written = write_comparison(result, workspace, command=command)
        tracker = Tracker(workspace, result.comparison)
        tracker.log_outcome(effect_metrics(result), written)
        tracker.finish()
    print_comparison(result, console)
    console.print(f"report: {written[0]}")
    console.print(f"curves: atdiff ui --root {workspace.root}")
