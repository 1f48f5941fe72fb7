"""The report: one static page that opens offline, and the figures as files."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from atdiff_core.laws import PowerLaw
from pipeline.records import SAMPLES
from pipeline.report import tables, wording
from pipeline.report.drawing import as_png, as_svg
from pipeline.report.figures import all_figures
from pipeline.report.trial_figures import arms
from pipeline.results import StudyResult, SweepResult
from pipeline.workspace import Workspace

TEMPLATE = "page.html.j2"
LARGEST_GRID_PIXELS = 800


@dataclass(frozen=True)
class Grid:
    """Samples of one scheme, ready to embed."""

    source: str
    caption: str


def write_report(result: SweepResult, workspace: Workspace, *, command: str) -> Path:
    """Write the page of a sweep, finished or not, and return where it lies.

    Args:
        command: The command line that runs the same sweep again.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {name: Markup(as_svg(figure, name)) for name, figure in all_figures(result)}
    page = environment.get_template(TEMPLATE).render(
        result=result,
        space=result.space,
        law=result.law if isinstance(result.law, PowerLaw) else None,
        refusal=None if isinstance(result.law, PowerLaw) else str(result.law),
        prediction=_prediction(result),
        figures=figures,
        grids={study.resolution: sample_grids(study) for study in result.studies},
        tables=tables,
        say=wording,
        command=command,
    )
    workspace.report.parent.mkdir(parents=True, exist_ok=True)
    workspace.report.write_text(page, encoding="utf-8")
    return workspace.report


def write_figures(result: SweepResult, workspace: Workspace) -> list[Path]:
    """Write every figure as a PNG and return their paths."""
    workspace.figures.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in all_figures(result):
        file = workspace.figures / f"{name}.png"
        file.write_bytes(as_png(figure))
        written.append(file)
    return written


def sample_grids(study: StudyResult) -> list[Grid]:
    """Samples of base model, controls and leader, of the smallest seed each; those that were drawn."""
    grids = []
    for name, records in arms(study).items():
        record = min(records, key=lambda record: record.seed)
        file = record.folder / SAMPLES
        evaluation = record.assignment.config.evaluation
        sampler = evaluation.pictured
        if file.is_file():
            drawn = f"{sampler.label}, {sampler.nfe} NFE, latents of seed {evaluation.seed}"
            grids.append(Grid(_embedded(file), f"{name}: {drawn}; trained with seed {record.seed}"))
    return grids


def _embedded(file: Path) -> str:
    """The picture as a data URL, scaled down to what a page can show."""
    with Image.open(file) as picture:
        picture.load()
        if max(picture.size) > LARGEST_GRID_PIXELS:
            picture.thumbnail((LARGEST_GRID_PIXELS, LARGEST_GRID_PIXELS))
        content = io.BytesIO()
        picture.save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _prediction(result: SweepResult) -> dict[str, str]:
    """The prediction in words; empty without a law."""
    if not isinstance(result.law, PowerLaw):
        return {}
    at = result.law.predict(result.space.dimension(result.space.predict_at))
    raw = tables.raw_etas(result.space, at.value, round(at.scale))
    return {
        "eta": f"{wording.number(at.value)} ({wording.number(at.low)} to {wording.number(at.high)})",
        "raw": ", ".join(f"{norm} {wording.number(value)}" for norm, value in raw.items()),
    }
