"""``atdiff solver-error``: how far a distillation's solver errs, level by level."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def solver_error(
    teacher: Annotated[Path, typer.Argument(help="Snapshot of a diffusion model, or a diffusers folder.")],
    shards: Annotated[str, typer.Option(help="Shard set of the data: a <resolution>px folder or its address.")],
    levels: Annotated[int, typer.Option(min=2, help="Noise levels of the distillation.")] = 40,
    solver: Annotated[str, typer.Option(help="heun or euler.")] = "heun",
    sigma_data: Annotated[float, typer.Option(help="Standard deviation of the data, as the objective has it.")] = 0.5,
    images: Annotated[int, typer.Option(min=2, help="Images, each noised at every level.")] = 256,
    fine_steps: Annotated[int, typer.Option(help="Heun steps of the reference for one step.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of images and noise.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Error of the teacher's coarse steps against fine ones: how large eta ought to be on the solver's output."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.files import write_json
    from atdiff_core.karras import KarrasNoise
    from atdiff_core.metrics.solver_error import solver_error
    from atdiff_core.objectives.consistency import ConsistencyDistillation
    from pipeline.evaluations import opened_models

    if solver not in ("heun", "euler"):
        raise ValueError(f"solver must be heun or euler, got {solver!r}")
    place, dataset = chosen_device(device), open_shards(shards)
    if images > dataset.num_samples:
        raise ValueError(f"images must be at most {dataset.num_samples}, all of {shards}, got {images}")
    (model,) = opened_models([str(teacher)], dataset, place)
    noise = KarrasNoise(num_levels=levels, sigma_data=sigma_data)
    ConsistencyDistillation(noise=noise).check_teacher(model.snapshot.noise)
    batch = next(dataset.batches(seed=seed, batch_size=images))
    condition = {"labels": batch.labels.to(place)} if model.snapshot.num_classes else {}
    found = solver_error(
        model.snapshot.teacher, noise, "heun" if solver == "heun" else "euler", batch.images.to(place),
        condition=condition, fine_steps=fine_steps, seed=seed,
    )  # fmt: skip
    errors = list(track(found, description="solving", total=levels - 1))
    title = f"{solver} steps between {levels} levels against {fine_steps} fine steps each, {images} images, seed {seed}"
    table = Table("sigma", "to", "error, RMS per element", "in units of the noise", "largest", "step", title=title)
    for each in errors:
        amplitude = f"{each.amplitude:.2g} ± {each.std_error:.1g}"
        numbers = (each.in_noise, each.largest, each.step)
        table.add_row(f"{each.sigma:.4g}", f"{each.reached:.4g}", amplitude, *(f"{number:.2g}" for number in numbers))
    Console().print(table)
    if json is not None:
        settings = {"levels": levels, "solver": solver, "images": images, "fine_steps": fine_steps, "seed": seed}
        record = {"teacher": model.snapshot.key, "dataset": dataset.fingerprint, "settings": settings}
        write_json(json, record | {"errors": [asdict(each) for each in errors]})
