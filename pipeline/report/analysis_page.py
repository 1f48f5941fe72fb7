"""Everything a finished sweep can be asked about its trials: figures, an interactive page, a JSON file."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atdiff_core.files import write_json
from atdiff_core.response import Observation
from pipeline.importance import Importance, Params, importances, searched_params
from pipeline.interactive import interactive_page
from pipeline.quantities import QUANTITIES
from pipeline.report.analysis_figures import (
    LABELS,
    contour_figure,
    importance_figure,
    parallel_figure,
    pareto_figure,
    passes_figure,
)
from pipeline.report.drawing import as_png
from pipeline.report.trial_figures import arms
from pipeline.report.wording import number
from pipeline.results import StudyResult, SweepResult
from pipeline.trade_offs import Outcome, PassesFit, fit_passes, outcomes
from search_spaces.space import Space


@dataclass(frozen=True)
class StudyAnalysis:
    """What the trials of one resolution tell beyond the law."""

    study: StudyResult
    rows: tuple[tuple[Params, float], ...]
    importance: tuple[Importance, ...]
    outcomes: tuple[Outcome, ...]
    fits: tuple[PassesFit, ...]

    @property
    def side(self) -> int:
        return self.study.resolution


def analysed(result: SweepResult) -> list[StudyAnalysis]:
    """Every resolution; raises ``ValueError`` where no search trial has been judged yet."""
    analyses = []
    for study in result.studies:
        rows = tuple(searched_params(study))
        fits = (fit_passes(name, records) for name, records in arms(study).items() if name != "base")
        known = tuple(fit for fit in fits if fit is not None)
        analyses.append(StudyAnalysis(study, rows, tuple(importances(rows)), tuple(outcomes(study)), known))
    if not any(each.rows for each in analyses):
        raise ValueError("no search trial of this sweep has been judged together with its replay control yet")
    return analyses


def write_analysis(result: SweepResult, analyses: Sequence[StudyAnalysis], folder: Path) -> list[Path]:
    """Write figures as PNG, ``analysis.json`` and ``analysis.html`` (Optuna's own figures) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for analysis in analyses:
        for name, figure in _figures(result.space, analysis):
            file = folder / f"{name}_{analysis.side}px.png"
            file.write_bytes(as_png(figure))
            written.append(file)
    write_json(folder / "analysis.json", {f"{each.side}px": _as_json(each) for each in analyses})
    (folder / "analysis.html").write_text(interactive_page(result), encoding="utf-8")
    return [*written, folder / "analysis.json", folder / "analysis.html"]


def print_analysis(analyses: Sequence[StudyAnalysis], console: Console) -> None:
    """Print what matters, and what a distance costs, for every resolution."""
    for analysis in analyses:
        side = f"{analysis.side} px"
        if analysis.importance:
            table = Table(title=f"{side}: what matters for the effect", title_justify="left")
            for heading in ("", "share of the variance that sets the best third apart (95 % bootstrap)"):
                table.add_column(heading)
            for each in analysis.importance:
                table.add_row(LABELS[each.name], f"{each.share:.0%} ({each.low:.0%} to {each.high:.0%})")
            console.print(table)
        for fit in analysis.fits:
            known = "" if math.isnan(fit.slope_low) else f" (95 %: {fit.slope_low:.2f} to {fit.slope_high:.2f})"
            text = f"{side}, {fit.scheme}: distance ∝ passes^{fit.slope:.2f}{known}"
            console.print(escape(text.replace("-", "−")), highlight=False)
        best = [each for each in analysis.outcomes if each.best]
        listed = ", ".join(f"{number(e.distance)} at {e.nfe} NFE ({e.role}, {e.kpass:g} kpass)" for e in best)
        console.print(escape(f"{side}, Pareto set of distance, NFE and passes: {listed}"), highlight=False)


def _figures(space: Space, analysis: StudyAnalysis) -> Iterator[tuple[str, Figure]]:
    study = analysis.study
    if analysis.importance:
        yield "importance", importance_figure(analysis.side, analysis.importance)
    if analysis.rows:
        yield "parallel", parallel_figure(analysis.side, analysis.rows)
    yield from _contours(space, study)
    if analysis.outcomes:
        yield "pareto", pareto_figure(study, analysis.outcomes)
    if analysis.fits:
        yield "passes", passes_figure(study, analysis.fits)


def _contours(space: Space, study: StudyResult) -> Iterator[tuple[str, Figure]]:
    for norm in space.domains.norms():
        effects = StudyResult(study.resolution, study.dimension, study.base, study.trials, norm).effects_in_norm
        for name in ("replays", "reach"):
            value = QUANTITIES[name]
            points = [
                (
                    Observation(each.perturbation.ball.radius, each.effect, each.seed, each.weight),
                    value(each.perturbation),
                )
                for each in effects
            ]
            try:
                figure = contour_figure(study, norm, name, points)
            except ValueError:
                continue  # K or reach is fixed, or too few trials have this norm.
            yield f"contour_{name}_{norm}", figure


def _as_json(analysis: StudyAnalysis) -> dict[str, Any]:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "importance": [asdict(each) for each in analysis.importance],
        "outcomes": [asdict(each) for each in analysis.outcomes],
        "passes": [
            {"scheme": fit.scheme, "slope": fit.slope, "low": known(fit.slope_low), "high": known(fit.slope_high)}
            for fit in analysis.fits
        ],
    }
