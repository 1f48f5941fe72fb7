"""Optuna's own figures of every resolution on one page that opens offline."""

import html

from optuna import visualization

from pipeline.importance import optuna_study, searched_params
from pipeline.results import SweepResult


def interactive_page(result: SweepResult) -> str:
    """History, slices, parallel coordinates, contours and ranks; plotly itself is in it. The value is the effect."""
    parts, loaded = [], False
    for study in result.studies:
        rows = searched_params(study)
        if not rows:
            continue
        known = optuna_study(result.space, rows)
        names = list(known.trials[0].params)
        figures = {"history": visualization.plot_optimization_history(known), "slice": visualization.plot_slice(known)}
        if len(names) > 1:
            figures |= {
                "parallel coordinates": visualization.plot_parallel_coordinate(known),
                "contours": visualization.plot_contour(known),
                "rank": visualization.plot_rank(known),
            }
        for name, figure in figures.items():
            figure.update_layout(title=f"{study.resolution} px: {name}; value = log(metric / replay control)")
            parts.append(figure.to_html(full_html=False, include_plotlyjs=not loaded))
            loaded = True
    head = f'<meta charset="utf-8"><title>{html.escape(result.space.name)}</title>'
    return f'<!doctype html><html lang="en">{head}<body>{"".join(parts)}</body></html>'
