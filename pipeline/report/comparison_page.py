"""What a comparison leaves for people: Markdown, CSV, figures, a static page, a summary."""

from collections.abc import Collection
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from pipeline.comparison_results import ComparisonResult
from pipeline.report.comparison_figures import comparison_figures
from pipeline.report.comparison_tables import Table, arm_table, as_csv, as_markdown, effect_table, grids
from pipeline.report.comparison_wording import metric_words, sentences, start_sentence, trial_metric_words
from pipeline.report.drawing import as_png, as_svg
from pipeline.report.tables import versions
from pipeline.workspace import Workspace, machine

TEMPLATE = "comparison.html.j2"
STYLES = {"better": "green", "worse": "red"}
CAPTIONS = {
    "effects": "A filled mark: the 95 % interval (Student's t over seeds) does not hold zero. "
    "Intervals may leave the axes.",
    "metric_nfe": "Lines are means over seeds, bands their extremes. Arms of one seed move together: "
    "differences are told by the effects below, not by these bands.",
    "effects_nfe_reference": "Paired by seed, with 95 % intervals that are not adjusted for their number.",
    "effects_nfe_plain": "Paired by seed, with 95 % intervals that are not adjusted for their number.",
    "attack_gain": "The loss of the last replay against that of the same draws without perturbation. "
    "Without any perturbation it falls below 1 because the replays themselves teach.",
    "robustness_quality": "Means over seeds with their extremes. The worst case is searched, not known: a gain is a "
    "lower bound of it.",
}
READING = (
    "▼ better, ▲ worse: the 95 % interval over seeds does not hold zero. Twice: also after Holm's adjustment for "
    "all effects of the tables by NFE. Effects are changes of the metric, paired by seed."
)


def tables_of(result: ComparisonResult) -> tuple[list[Table], list[Table]]:
    """The tables that matter most, and those of every sampler and NFE."""
    at_metric = f"At the trial metric: {trial_metric_words(result)}"
    overall = "Averaged over all samplers and NFE"
    main = [
        arm_table(result),
        effect_table(result, at_metric, result.at_trial_metric, result.samplers[:1]),
        effect_table(result, overall, result.overall, ()),
    ]
    return main, grids(result)


def write_comparison(result: ComparisonResult, workspace: Workspace, *, command: str) -> list[Path]:
    """Write everything derived from the trials; returns the files, the page first.

    Args:
        command: The command line that runs the same comparison again.
    """
    figures = dict(comparison_figures(result))
    written = {
        workspace.folder / "comparison.html": _page(result, figures, command).encode(),
        workspace.folder / "comparison.md": _markdown(result, figures, command).encode(),
        workspace.folder / "comparison.csv": as_csv(result).encode(),
    }
    written |= {workspace.figures / f"{name}.png": as_png(figure) for name, figure in figures.items()}
    workspace.figures.mkdir(parents=True, exist_ok=True)
    for file, content in written.items():
        file.write_bytes(content)
    return list(written)


def _page(result: ComparisonResult, figures: dict[str, Figure], command: str) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    main, by_nfe = tables_of(result)
    return environment.get_template(TEMPLATE).render(
        comparison=result.comparison,
        sentences=sentences(result),
        start=start_sentence(result),
        main=main,
        by_nfe=by_nfe,
        metric=metric_words(result),
        figures={name: Markup(as_svg(figure, name)) for name, figure in figures.items()},
        captions=CAPTIONS,
        reading=READING,
        command=command,
        machine=machine(),
        versions=versions(),
    )


def _markdown(result: ComparisonResult, drawn: Collection[str], command: str) -> str:
    main, by_nfe = tables_of(result)
    said = "\n".join(f"* {sentence}" for sentence in sentences(result))
    figures = "\n\n".join(
        f"![{name}](figures/{name}.png)\n\n{caption}" for name, caption in CAPTIONS.items() if name in drawn
    )
    parts = [
        f"# {result.comparison.name}\n\n{start_sentence(result)}\n\n{said}\n",
        *(as_markdown(table) for table in main),
        f"## Figures\n\n{figures}\n",
        f"## Every sampler and NFE\n\n{metric_words(result)}. {READING}\n",
        *(as_markdown(table) for table in by_nfe),
        f"## Run it again\n\n```\n{command}\n```\n",
    ]
    return "\n".join(parts)


def effect_metrics(result: ComparisonResult) -> dict[str, float]:
    """Mean effects (log ratios) by the names they have in MLflow."""
    families = {"trial_metric": result.at_trial_metric, "all_samplers": result.overall}
    return {
        f"effect/{family}/{cell.arm}/against_{cell.against}": cell.effect.mean
        for family, cells in families.items()
        for cell in cells
        if cell.effect.seeds
    }


def print_comparison(result: ComparisonResult, console: Console) -> None:
    """The effects at the trial metric and on average, then everything in sentences."""
    for table in tables_of(result)[0][1:]:
        drawn = rich_table.Table(title=escape(table.title), title_justify="left")
        for heading in table.head:
            drawn.add_column(escape(heading))
        for row in table.rows:
            drawn.add_row(*(f"[{STYLES.get(text.split(' ')[0], 'none')}]{escape(text)}[/]" for text in row))
        console.print(drawn)
    for sentence in sentences(result):
        console.print(escape(sentence), highlight=False)
