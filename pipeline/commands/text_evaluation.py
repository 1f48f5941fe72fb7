"""``atdiff evaluate-text``: what text-to-image models make of captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.data import numbers
from pipeline.commands.evaluation import BatchSize, Device
from pipeline.commands.studies import TrackingUri

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluations import Cell
    from pipeline.text_evaluations import TextEvaluationConfig, TextEvaluator, TextModel


def evaluate_text(
    snapshots: Annotated[
        list[str],
        typer.Argument(help="Folders of stock pipelines, each also as ARM=FOLDER; an arm given again has more seeds."),
    ],
    shards: Annotated[str, typer.Option(help="A set of pictures with captions: its folder or its address.")],
    clip: Annotated[str, typer.Option(help="Folder or hub id of the CLIP that judges.")],
    nfe: Annotated[str, typer.Option(help="Steps of the pipelines' schedulers, separated by commas.")] = "1,2,4,8",
    guidance: Annotated[float, typer.Option(min=1, help="Strength, as diffusers counts it: 1 is none.")] = 7.5,
    count: Annotated[int, typer.Option(min=3, help="Images for each model and NFE, one a caption.")] = 512,
    features: Annotated[str, typer.Option(help="efflite0_64 (offline) or inception (FID).")] = "efflite0_64",
    prompts: Annotated[
        Path | None, typer.Option(help="Embeddings by `atdiff prompts`, for pipelines without a text encoder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of latents, noise between steps, and the choice among captions.")] = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write the figures to this CSV file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw distance and score against NFE to this PNG.")] = None,
    grid: Annotated[Path | None, typer.Option(help="Also draw prompts by NFE, one PNG a model, into a folder.")] = None,
    track: Annotated[bool, typer.Option(help="Also log curves over NFE and grids to MLflow, a run a model.")] = False,
    root: Annotated[Path, typer.Option(help="Folder of the MLflow database.")] = Path("runs"),
    tracking: TrackingUri = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of reference features and finished cells; with it an interrupted run goes on.")
    ] = Path("runs/cache"),
    batch_size: BatchSize = 16,
    device: Device = "auto",
) -> None:
    """Judge text-to-image models on the captions of a set; interrupted, it continues with the same command."""
    from rich.console import Console

    from atdiff_core.clip import load_clip
    from atdiff_core.data.prompts import load_prompts
    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.files import write_json
    from atdiff_core.text_sampling import TextSampler
    from pipeline.evaluations import write_csv
    from pipeline.text_evaluations import TextEvaluationConfig, TextEvaluator, named_models, record_of

    samplers = [TextSampler(nfe=steps, guidance=guidance) for steps in numbers(nfe, "nfe")]
    settings = TextEvaluationConfig.model_validate(
        {"features": features, "count": count, "seed": seed, "samplers": samplers}
    )
    models, dataset, place, console = named_models(snapshots), open_shards(shards), chosen_device(device), Console()
    embedded = load_prompts(prompts) if prompts else None
    judge = load_clip(clip, device=place)
    with console.status("reference features"):
        evaluator = TextEvaluator(
            settings, dataset, judge, cache, prompts=embedded, device=place, batch_size=batch_size
        )
        anchors = evaluator.anchors()
    cells = _judged(models, evaluator, console)
    for table in _tables(models, cells, settings, anchors):
        console.print(table)
    written = [file for file in (csv, json, figure) if file is not None]
    if csv is not None:
        write_csv(csv, cells)
    if json is not None:
        write_json(json, record_of(models, cells, evaluator, judge.key))
    if figure is not None:
        _draw(models, cells, settings, anchors, figure)
    if grid is not None or track:
        written += _grids(models, evaluator, grid or cache / "grids")
    if track:
        _track(root, models, cells, evaluator, grid or cache / "grids", tracking)
    for file in written:
        console.print(f"written: {file}")


def _judged(models: "Sequence[TextModel]", evaluator: "TextEvaluator", console: "Console") -> "list[Cell]":
    """All cells, with a bar that counts images."""
    from rich.progress import MofNCompleteColumn, Progress

    from pipeline.evaluations import Cell

    settings = evaluator.config
    cells: list[Cell] = []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("sampling", total=len(models) * len(settings.samplers) * settings.count)
        for event in evaluator.judged(models):
            description = f"{event.model}: {event.sampler.name}"
            if isinstance(event, Cell):
                cells.append(event)
                progress.update(task, completed=len(cells) * settings.count, description=description)
            else:
                progress.update(task, advance=event.images, description=description)
    return cells


def _tables(
    models: "Sequence[TextModel]",
    cells: "Sequence[Cell]",
    settings: "TextEvaluationConfig",
    anchors: dict[str, float],
) -> "list[Table]":
    """One table a figure, a row for each arm, a column an NFE: the mean over its seeds and their range."""
    from rich.table import Table

    from pipeline.text_evaluations import by_arm

    tables = []
    for name in cells[0].figures:
        if name.endswith(("_std", "_se")):
            continue
        series = by_arm(models, cells, name)
        steps = sorted(next(iter(series.values())))
        sense = {"clip_score": " (higher is better)", "unet_evaluations": ""}.get(name, " (lower is better)")
        table = Table("arm", "seeds", *(f"NFE {nfe}" for nfe in steps), title=f"{name}{sense}")
        table.caption = f"{settings.count} images, guidance {settings.samplers[0].guidance:g}, seed {settings.seed}"
        if name == "clip_score":
            real, wrong = anchors["clip_score_real"], anchors["clip_score_mismatched"]
            table.caption += f"; the set's own images {real:.4g}, with another's caption {wrong:.4g}"
        for arm, points in series.items():
            seeds = len(points[steps[0]])
            table.add_row(arm, str(seeds), *(_mean_and_range(points[nfe]) for nfe in steps))
        tables.append(table)
    return tables


def _mean_and_range(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.4g}" if len(values) == 1 else f"{mean:.4g} ({min(values):.4g} to {max(values):.4g})"


def _draw(
    models: "Sequence[TextModel]",
    cells: "Sequence[Cell]",
    settings: "TextEvaluationConfig",
    anchors: dict[str, float],
    file: Path,
) -> None:
    from atdiff_core.metrics.features import METRIC_NAMES
    from pipeline.report.drawing import as_png
    from pipeline.report.text_figure import bands_figure
    from pipeline.text_evaluations import by_arm

    distance, score = METRIC_NAMES[settings.features]["frechet"], "CLIP score (higher is better)"
    panels = {
        f"{distance} (lower is better)": by_arm(models, cells, distance),
        score: by_arm(models, cells, "clip_score"),
    }
    lines = {score: {"own images": anchors["clip_score_real"], "wrong captions": anchors["clip_score_mismatched"]}}
    title = f"{settings.count} images of captions, guidance {settings.samplers[0].guidance:g}; bands: range over seeds"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_png(bands_figure(panels, title=title, lines=lines)))


def _grids(models: "Sequence[TextModel]", evaluator: "TextEvaluator", folder: Path) -> list[Path]:
    from pipeline.report.drawing import as_png
    from pipeline.report.text_figure import prompt_grid

    folder.mkdir(parents=True, exist_ok=True)
    real, written = evaluator.real(), []
    for model in models:
        columns = {"real": real}
        columns |= {f"NFE {each.nfe}": evaluator.shown(model, each) for each in evaluator.config.samplers}
        guidance = evaluator.config.samplers[0].guidance
        drawn = prompt_grid(
            evaluator.pairs.captions[: len(real)], columns, title=f"{model.name}, guidance {guidance:g}"
        )
        written.append(_grid_file(folder, model))
        written[-1].write_bytes(as_png(drawn))
    return written


def _grid_file(folder: Path, model: "TextModel") -> Path:
    return folder / f"prompts_{model.name}.png"


def _track(
    root: Path,
    models: "Sequence[TextModel]",
    cells: "Sequence[Cell]",
    evaluator: "TextEvaluator",
    grids: Path,
    tracking: str | None,
) -> None:
    from pipeline.tracking import track_evaluation

    judged_by = evaluator.config.model_dump(mode="json", exclude={"samplers"})
    for model in models:
        track_evaluation(
            root,
            key=evaluator.model_key(model),
            name=model.name,
            parameters={"arm": model.arm, "sha256": model.key[:16]}
            | {name: str(value) for name, value in judged_by.items()},
            cells=[cell for cell in cells if cell.model == model.name],
            tracking=tracking,
            pictures=[_grid_file(grids, model)],
        )
