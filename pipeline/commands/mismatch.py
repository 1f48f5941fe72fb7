"""``atdiff mismatch`` and ``robustness``: what trained networks do off the data they were shown."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from atdiff_core.metrics.mismatch import MismatchAt
    from atdiff_core.metrics.robustness import RobustnessAt
    from pipeline.evaluations import Model

Snapshots = Annotated[list[str], typer.Argument(help="Snapshots, each a diffusers DDPM folder, or NAME=FOLDER.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU if there is one.")]


def mismatch(
    snapshots: Snapshots,
    shards: Annotated[str, typer.Option(help="Shard set of the data: a <resolution>px folder or its address.")],
    sampler: Annotated[str, typer.Option(help="A sampler, say ddim.")] = "ddim",
    nfe: Annotated[int, typer.Option(help="Network evaluations an image.")] = 10,
    samples: Annotated[int, typer.Option(help="Trajectories, and images to compare them with.")] = 2000,
    principal: Annotated[int, typer.Option(help="Principal components of the data to look along.")] = 32,
    random: Annotated[int, typer.Option(help="Random directions orthogonal to them to look along.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of latents, noise and directions.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="Also draw the curves to this PNG file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    device: Device = "auto",
) -> None:
    """Distance between noised data and a sampler's states, level by level along its trajectory."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.files import write_json
    from atdiff_core.metrics.mismatch import mismatch
    from atdiff_core.samplers import Sampler
    from pipeline.evaluations import check_samplers, opened_models

    chosen = Sampler.named(sampler, nfe=nfe)
    place, dataset = chosen_device(device), open_shards(shards)
    models = opened_models(snapshots, dataset, place)
    check_samplers(models, (chosen,))
    console = Console()
    images = torch.cat(list(dataset.images(limit=2 * samples)))
    curves: dict[str, list[MismatchAt]] = {}
    with Progress(console=console) as progress:
        for model in models:
            task, opened = progress.add_task(model.name, total=nfe + 1), model.snapshot
            curves[model.name] = []
            for level in mismatch(
                opened.network, opened.noise, chosen, images, samples=samples, seed=seed, principal=principal,
                random=random, num_classes=opened.num_classes, bounded=dataset.index.latents is None, device=place,
            ):  # fmt: skip
                curves[model.name].append(level)
                progress.advance(task)
    title = f"{chosen.name}: {samples} samples, seed {seed}, {principal} principal and {random} random directions"
    for table in _mismatch_tables(curves, title):
        console.print(table)
    if json is not None:
        settings = {"samples": samples, "seed": seed, "principal": principal, "random": random}
        record = {"dataset": dataset.fingerprint, "sampler": chosen.model_dump(mode="json"), "settings": settings}
        levels = {name: [asdict(level) for level in curve] for name, curve in curves.items()}
        write_json(json, record | {"models": [_named(model) | {"levels": levels[model.name]} for model in models]})
    if figure is not None:
        from pipeline.report.drawing import as_png
        from pipeline.report.mismatch_figure import mismatch_figure

        figure.write_bytes(as_png(mismatch_figure(curves, chosen)))
        console.print(f"figure: {figure}")


def robustness(
    snapshots: Snapshots,
    shards: Annotated[str, typer.Option(help="Shard set, held out if possible: a folder or an address.")],
    norm: Annotated[str, typer.Option(help="l2, linf or l1.")] = "l2",
    radius: Annotated[str, typer.Option(help="Amplitudes per element, separated by commas.")] = "0.01,0.03,0.1",
    steps: Annotated[int, typer.Option(help="Ascent steps.")] = 5,
    images: Annotated[int, typer.Option(min=2, help="Images to attack, each noised once.")] = 1000,
    bins: Annotated[int, typer.Option(help="Ranges of noise levels.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of images, noise levels and noise.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    device: Device = "auto",
) -> None:
    """How much the worst perturbation found in a ball raises a network's loss, for each noise level."""
    from rich.console import Console
    from rich.progress import Progress

    from atdiff_core.balls import ball_of
    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.files import write_json
    from atdiff_core.karras import PREDICTS, KarrasNoise
    from atdiff_core.metrics.robustness import Attack, robustness
    from atdiff_core.objectives.denoising import Denoising
    from pipeline.evaluations import opened_models

    attacks = [Attack(ball=ball_of(norm, each), num_steps=steps) for each in _amplitudes(radius)]
    place, dataset = chosen_device(device), open_shards(shards)
    if images > dataset.num_samples:
        raise ValueError(f"images must be at most {dataset.num_samples}, all of {shards}, got {images}")
    models = opened_models(snapshots, dataset, place)
    batch = next(dataset.batches(seed=seed, batch_size=images))
    rows: dict[str, dict[float, list[RobustnessAt]]] = defaultdict(dict)
    console = Console()
    with Progress(console=console) as progress:
        task = progress.add_task("attacking", total=len(models) * len(attacks))
        for model in models:
            opened = model.snapshot
            if isinstance(opened.noise, KarrasNoise):
                raise ValueError(
                    f"robustness is measured on networks that predict noise, {model.name} {PREDICTS[opened.noise.kind]}"
                )
            labels = batch.labels if opened.num_classes else None
            for attack in attacks:
                found = robustness(
                    opened.network, Denoising(noise=opened.noise), batch.images, attack, labels=labels, seed=seed,
                    num_bins=bins, device=place,
                )  # fmt: skip
                rows[model.name][attack.ball.radius] = list(found)
                progress.advance(task)
    title = f"loss at the worst {norm} perturbation found in {steps} steps / loss, {images} images, seed {seed}"
    console.print(_robustness_table(rows, title))
    if json is not None:
        settings = {"norm": norm, "steps": steps, "images": images, "bins": bins, "seed": seed}
        figures = [
            _named(model) | {"radius": each, "levels": [_plain(level) for level in levels]}
            for model in models
            for each, levels in rows[model.name].items()
        ]
        write_json(json, {"dataset": dataset.fingerprint, "settings": settings, "figures": figures})


def _amplitudes(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"radius must be numbers separated by commas, got {text!r}") from None


def _mismatch_tables(curves: "Mapping[str, Sequence[MismatchAt]]", title: str) -> "list[Table]":
    """A column a model; a table for each noise schedule that occurs."""
    from rich.table import Table

    from atdiff_core.samplers import FINISHED

    alike: dict[tuple[tuple[float, float], ...], list[str]] = defaultdict(list)
    for name, curve in curves.items():
        alike[tuple((level.timestep, level.sigma) for level in curve)].append(name)
    tables = []
    for levels, names in alike.items():
        table = Table("t", "sigma", *names, "floor", title=title, caption="W2 in units of the spread of x_t")
        for place, (timestep, sigma) in enumerate(levels):
            here = [curves[name][place] for name in names]
            shown = "image" if timestep == FINISHED else f"{timestep:.0f}"
            table.add_row(shown, f"{sigma:.3f}", *(_distance(level) for level in here), f"{here[0].floor:.3f}")
        tables.append(table)
    return tables


def _distance(level: "MismatchAt") -> str:
    """Dim where it cannot be told from zero."""
    text = f"{level.distance:.3f} ± {level.std_error:.3f}"
    return text if level.distance > level.floor else f"[dim]{text}[/]"


def _robustness_table(rows: "Mapping[str, Mapping[float, Sequence[RobustnessAt]]]", title: str) -> "Table":
    """A row a model and range of levels, a column a radius."""
    from rich.table import Table

    radii = list(next(iter(rows.values())))
    table = Table("model", "t", "images", *(f"radius {radius:g}" for radius in radii), title=title)
    for name, by_radius in rows.items():
        for levels in zip(*(by_radius[radius] for radius in radii), strict=True):
            span = f"{levels[0].timesteps.start} to {levels[0].timesteps.stop - 1}"
            gains = (f"{level.gain:.3f} ± {level.std_error:.3f}" for level in levels)
            table.add_row(name, span, str(levels[0].samples), *gains)
        table.add_section()
    return table


def _named(model: "Model") -> dict[str, Any]:
    return {"name": model.name, "snapshot": model.snapshot.key}


def _plain(level: "RobustnessAt") -> dict[str, Any]:
    return asdict(level) | {"timesteps": [level.timesteps.start, level.timesteps.stop - 1]}
