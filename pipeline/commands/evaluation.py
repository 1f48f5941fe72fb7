"""``atdiff sample`` and ``evaluate``: what trained networks make."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.data import numbers
from pipeline.commands.studies import TrackingUri

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
    from atdiff_core.samplers import Sampler
    from pipeline.evaluations import Cell, Model

NAMES = (
    "ddim, ancestral, iddpm, dpmpp_2m or dpmpp_2m_logsnr, each also as NAME_es1.017 (epsilon scaling); "
    "edm_euler or edm_dpmpp_2m for EDM denoisers; cm for consistency models"
)
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of the latents.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images drawn at once; the result does not depend on it.")]


def sample(
    snapshot: Annotated[Path, typer.Argument(help="A snapshot: a diffusers DDPM folder.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("samples.png"),
    sampler: Annotated[str, typer.Option(help=f"{NAMES}.")] = "ddim",
    nfe: Annotated[int, typer.Option(help="Network evaluations an image.")] = 50,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Draw a grid of samples; classes, where the network knows some, are drawn at random."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from atdiff_core.autoencoders import load_autoencoder
    from atdiff_core.devices import chosen_device
    from atdiff_core.pictures import save_grid
    from atdiff_core.samplers import Sampler, sample_batches
    from atdiff_core.snapshots import load_snapshot

    chosen, place = Sampler.named(sampler, nfe=nfe), chosen_device(device)
    loaded = load_snapshot(snapshot, place)
    loaded.check_needs_no_prompt(str(snapshot))
    decoder = None if loaded.latents is None else load_autoencoder(loaded.latents.autoencoder, device=place)
    batches = sample_batches(
        loaded.network, loaded.noise, chosen, shape=loaded.image_shape, count=count, seed=seed,
        num_classes=loaded.num_classes, bounded=decoder is None, batch_size=batch_size, device=place,
    )  # fmt: skip
    drawn = (batch if decoder is None else decoder.decode(batch) for batch in batches)
    images = [batch.cpu() for batch in track(drawn, description="sampling", total=-(-count // batch_size))]
    save_grid(torch.cat(images), out)
    Console().print(f"{count} images by {chosen.label} at NFE {nfe}, seed {seed}: {out}")


def evaluate(
    snapshots: Annotated[list[str], typer.Argument(help="Snapshots, each a diffusers DDPM folder, or NAME=FOLDER.")],
    shards: Annotated[str, typer.Option(help="Shard set to compare with: a <resolution>px folder or its address.")],
    samplers: Annotated[str, typer.Option(help=f"{NAMES}; separated by commas.")] = "ddim",
    nfe: Annotated[str, typer.Option(help="Network evaluations, separated by commas.")] = "5,8,10,20,50",
    epsilon_scaling: Annotated[
        str, typer.Option(help="Judge every sampler once more with the noise divided by this constant[,slope].")
    ] = "",
    samples: Annotated[int, typer.Option(help="Images for each model, sampler and NFE.")] = 512,
    features: Annotated[str, typer.Option(help="efflite0_64 (offline) or inception (FID).")] = "efflite0_64",
    distance: Annotated[str, typer.Option(help="Drawn in the figure: frechet or kernel.")] = "frechet",
    seed: Seed = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write the figures to this CSV file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the distance against NFE to this PNG file.")] = None,
    track: Annotated[bool, typer.Option(help="Also log curves over NFE to MLflow, a run for each model.")] = False,
    root: Annotated[Path, typer.Option(help="Folder of the MLflow database.")] = Path("runs"),
    tracking: TrackingUri = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of reference features and finished cells; with it an interrupted run goes on.")
    ] = Path("runs/cache"),
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Judge models by samplers and NFE against a dataset; interrupted, it continues with the same command."""
    from rich.console import Console

    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.files import write_json
    from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
    from pipeline.evaluations import check_samplers, opened_models, record_of, write_csv

    chosen = _samplers(samplers, nfe, epsilon_scaling)
    settings = EvaluationConfig.model_validate(
        {"features": features, "distance": distance, "samples": samples, "seed": seed, "samplers": chosen, "full": True}
    )
    place, dataset, console = chosen_device(device), open_shards(shards), Console()
    models = opened_models(snapshots, dataset, place)
    check_samplers(models, chosen)
    with console.status("reference features"):
        evaluator = Evaluator(settings, dataset, cache, device=place, batch_size=batch_size)
    cells = _judged(models, evaluator, dataset.fingerprint, cache / "cells", console)
    for table in _tables(cells, settings):
        console.print(table)
    if csv is not None:
        write_csv(csv, cells)
    if json is not None:
        write_json(json, record_of(models, cells, settings, dataset.fingerprint))
    if figure is not None:
        _draw(cells, settings, figure)
    if track:
        _track(root, models, cells, settings, dataset.fingerprint, tracking)
    for file in filter(None, (csv, json, figure)):
        console.print(f"written: {file}")


def _samplers(labels: str, nfe: str, scaling: str) -> "tuple[Sampler, ...]":
    """Every label, and every label with the scaling, at every NFE."""
    from atdiff_core.epsilon_scaling import EpsilonScaling
    from atdiff_core.samplers import Sampler

    steps = numbers(nfe, "nfe")
    plain = [[Sampler.named(label, nfe=each) for each in steps] for label in labels.split(",")]
    if not scaling:
        return tuple(sampler for group in plain for sampler in group)
    constant, _, slope = scaling.partition(",")
    divisor = EpsilonScaling.model_validate({"constant": constant, "slope": slope or 0.0})
    if any(sampler.epsilon_scaling != EpsilonScaling() for group in plain for sampler in group):
        raise ValueError(f"epsilon scaling must be given once, in the samplers or as an option, got {labels!r} and it")
    scaled = ([sampler.but(epsilon_scaling=divisor) for sampler in group] for group in plain)
    return tuple(sampler for pair in zip(plain, scaled, strict=True) for group in pair for sampler in group)


def _judged(
    models: "Sequence[Model]", evaluator: "Evaluator", dataset: str, folder: Path, console: "Console"
) -> "list[Cell]":
    """All cells, with a bar that counts images."""
    from rich.progress import MofNCompleteColumn, Progress

    from pipeline.evaluations import Cell, judged

    settings = evaluator.config
    cells: list[Cell] = []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("sampling", total=len(models) * len(settings.samplers) * settings.samples)
        for event in judged(models, evaluator, dataset, folder):
            description = f"{event.model}: {event.sampler.name}"
            if isinstance(event, Cell):
                cells.append(event)
                progress.update(task, completed=len(cells) * settings.samples, description=description)
            else:
                progress.update(task, advance=event.images, description=description)
    return cells


def _tables(cells: "Sequence[Cell]", settings: "EvaluationConfig") -> "list[Table]":
    """One table a figure, a row for each sampler and model, a column an NFE; the best model stands out."""
    from rich.table import Table

    steps = sorted({cell.sampler.nfe for cell in cells})
    models = list(dict.fromkeys(cell.model for cell in cells))
    labels = list(dict.fromkeys(cell.sampler.label for cell in cells))
    values = {(cell.sampler.label, cell.model, cell.sampler.nfe): cell.figures for cell in cells}
    tables = []
    for name in cells[0].figures:
        if name.endswith("_std"):
            continue
        best = max if name.startswith(("precision", "recall", "inception_score")) else min
        caption = f"{settings.samples} samples, features {settings.features}, latents of seed {settings.seed}"
        sense = "higher" if best is max else "lower"
        table = Table("sampler", "model", *(f"NFE {nfe}" for nfe in steps), title=f"{name} ({sense} is better)")
        table.caption = caption
        for label in labels:
            leaders = {nfe: best(values[label, model, nfe][name] for model in models) for nfe in steps}
            for model in models:
                shown = [(values[label, model, nfe][name], leaders[nfe]) for nfe in steps]
                texts = (f"[bold]{x:.4g}[/]" if x == y and len(models) > 1 else f"{x:.4g}" for x, y in shown)
                table.add_row(label, model, *texts, end_section=model == models[-1])
        tables.append(table)
    return tables


def _draw(cells: "Sequence[Cell]", settings: "EvaluationConfig", file: Path) -> None:
    from atdiff_core.metrics.features import METRIC_NAMES
    from pipeline.report.drawing import as_png
    from pipeline.report.nfe_figure import nfe_figure

    label = f"{settings.metric_label}\n({settings.samples:,} samples)"
    metric = METRIC_NAMES[settings.features][settings.distance]
    drawn = nfe_figure(cells, metric, label=label, title="Distance to the data against NFE (lower is better)")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_png(drawn))


def _track(
    root: Path,
    models: "Sequence[Model]",
    cells: "Sequence[Cell]",
    settings: "EvaluationConfig",
    dataset: str,
    tracking: str | None,
) -> None:
    from pipeline.evaluations import evaluation_key
    from pipeline.tracking import track_evaluation

    judged_by = settings.model_dump(mode="json", exclude={"samplers", "distance", "full"})
    for model in models:
        parameters = {"snapshot": model.snapshot.key[:16], "sha256": model.sha256[:16], "dataset": dataset[:16]}
        track_evaluation(
            root,
            key=evaluation_key(model, settings, dataset),
            name=model.name,
            parameters=parameters | {name: str(value) for name, value in judged_by.items()},
            cells=[cell for cell in cells if cell.model == model.name],
            tracking=tracking,
        )
