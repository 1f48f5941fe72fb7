"""``atdiff train``, ``sample`` and ``evaluate``: one network at a time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.data import numbers

if TYPE_CHECKING:
    from atdiff_core.metrics.evaluation import Evaluated, Evaluator
    from pipeline.records import Assignment
    from search_spaces.space import TrialConfig

SnapshotFolder = Annotated[Path, typer.Argument(help="A snapshot: a diffusers DDPM folder.")]
Seed = Annotated[int, typer.Option(help="Seed of the latents.")]


def train(
    config: Annotated[Path, typer.Argument(help="A JSON or Python file with the run's configuration.")],
    shards: Annotated[Path, typer.Option(help="The <resolution>px folder of a shard set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; given again, the run continues in it.")],
    start: Annotated[Path | None, typer.Option(help="Snapshot to fine-tune; from scratch without it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the configuration.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Train one network and judge it; interrupted, it continues with the same command."""
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.records import Assignment, declare, load_record
    from pipeline.trial import Judged, Places, Trained, run_trial

    trial = _trial_config(config, shards, start, seed)
    assignment = Assignment(trial, "base" if start is None else "search")
    _claim(out, assignment)
    declare(out, assignment)
    places = Places(shards=shards, folder=out, start=start or out, cache=out / "cache", threads=threads)
    console = Console()
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=trial.train.budget_kpass)
        for event in run_trial(assignment, places):
            match event:
                case Trained(kpass=kpass, budget_kpass=budget):
                    description = "judging" if kpass >= budget else "training"
                    progress.update(task, completed=kpass, total=budget, description=description)
                case Judged(kpass=kpass):
                    progress.update(task, completed=kpass)
    record = load_record(out)
    for name, value in record.result.items():
        console.print(f"{name:40} {value:.5g}")
    console.print(f"snapshot: {out / 'snapshot'}   samples: {out / 'samples.png'}")


def sample(
    snapshot: SnapshotFolder,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("samples.png"),
    sampler: Annotated[str, typer.Option(help="ddim, ancestral or dpmpp_2m.")] = "ddim",
    nfe: Annotated[int, typer.Option(help="Network evaluations an image.")] = 50,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    seed: Seed = 0,
) -> None:
    """Draw a grid of samples."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from atdiff_core.pictures import save_grid
    from atdiff_core.samplers import Sampler, sample_batches
    from atdiff_core.snapshots import load_snapshot

    loaded = load_snapshot(snapshot)
    chosen = Sampler.model_validate({"kind": sampler, "nfe": nfe})
    batches = sample_batches(
        loaded.network, loaded.noise, chosen, shape=loaded.image_shape, count=count, seed=seed, batch_size=64
    )
    images = torch.cat(list(track(batches, description="sampling", total=-(-count // 64))))
    save_grid(images, out)
    Console().print(f"{count} images by {sampler} at NFE {nfe}, seed {seed}: {out}")


def evaluate(
    snapshot: SnapshotFolder,
    shards: Annotated[Path, typer.Option(help="Shard set to compare with: a <resolution>px folder.")],
    samplers: Annotated[str, typer.Option(help="Names separated by commas.")] = "ddim",
    nfe: Annotated[str, typer.Option(help="Network evaluations, separated by commas.")] = "5,10,20",
    samples: Annotated[int, typer.Option(help="Images for each sampler and NFE.")] = 512,
    features: Annotated[str, typer.Option(help="efflite0_64 (offline) or inception (FID).")] = "efflite0_64",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of reference features.")] = Path("runs/cache"),
) -> None:
    """Distance of a network's samples to a dataset, for each sampler and NFE."""
    from rich.console import Console
    from rich.progress import track

    from atdiff_core.data.stream import open_shards
    from atdiff_core.files import write_json
    from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
    from atdiff_core.snapshots import load_snapshot

    settings = EvaluationConfig.model_validate(
        {
            "features": features,
            "samples": samples,
            "seed": seed,
            "samplers": [{"kind": kind, "nfe": n} for kind in samplers.split(",") for n in numbers(nfe, "nfe")],
        }
    )
    loaded, reference = load_snapshot(snapshot), open_shards(shards)
    if loaded.image_shape != (reference.image_channels, reference.resolution, reference.resolution):
        raise ValueError(
            f"the snapshot makes images of shape {loaded.image_shape}, {shards} holds "
            f"{reference.image_channels} channels at {reference.resolution} px"
        )
    console = Console()
    with console.status("reference features"):
        evaluator = Evaluator(settings, reference, cache)
    judged = evaluator.evaluate(loaded.network, loaded.noise)
    rows = list(track(judged, description="sampling", total=len(settings.samplers), console=console))
    console.print(_table(evaluator, rows))
    if out is not None:
        figures = {name: value for row in rows for name, value in evaluator.named(row).items()}
        record = {"snapshot": loaded.key, "dataset": reference.fingerprint, "figures": figures}
        write_json(out, record | {"settings": settings.model_dump(mode="json")})


def _table(evaluator: "Evaluator", rows: "list[Evaluated]") -> Any:
    from rich.table import Table

    from atdiff_core.metrics.features import METRIC_NAMES

    settings = evaluator.config
    title = f"{settings.samples} samples, features {settings.features}, latents of seed {settings.seed}"
    names = METRIC_NAMES[settings.features]
    table = Table("sampler", "NFE", names["frechet"], names["kernel"], "± (subsets)", title=title)
    for row in rows:
        figures = (row.distances.frechet, row.distances.kernel, row.distances.kernel_std)
        table.add_row(row.sampler.kind, str(row.sampler.nfe), *(f"{figure:.5g}" for figure in figures))
    return table


def _trial_config(file: Path, shards: Path, start: Path | None, seed: int | None) -> "TrialConfig":
    """The file's ``train`` and ``evaluation``, completed with the dataset and the starting point."""
    import runpy

    from atdiff_core.data.stream import open_shards
    from atdiff_core.files import read_json
    from atdiff_core.snapshots import load_snapshot
    from atdiff_core.trainer import SCRATCH
    from search_spaces.space import TrialConfig

    if not file.is_file():
        raise ValueError(f"there is no configuration at {file}")
    written = runpy.run_path(str(file)).get("config") if file.suffix == ".py" else read_json(file)
    if not isinstance(written, dict) or not isinstance(written.get("train"), dict):
        raise ValueError(f"{file} must give a mapping with `train` and `evaluation`; see search_spaces/train_digits.py")
    train = dict(written["train"])
    train["dataset"] = open_shards(shards).fingerprint
    train["start_from"] = load_snapshot(start).key if start else SCRATCH
    if seed is not None:
        train["seed"] = seed
    return TrialConfig.model_validate({**written, "train": train})


def _claim(out: Path, assignment: "Assignment") -> None:
    from atdiff_core.files import read_json
    from pipeline.records import TRIAL

    if (out / TRIAL).is_file() and read_json(out / TRIAL)["key"] != assignment.key:
        raise ValueError(f"{out} holds a run with another configuration; choose another --out")
