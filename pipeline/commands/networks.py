"""``atdiff train``: one network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.records import Assignment
    from search_spaces.space import TrialConfig


def train(
    config: Annotated[Path, typer.Argument(help="A JSON or Python file with the run's configuration.")],
    shards: Annotated[str, typer.Option(help="The <resolution>px folder of a shard set, or its address.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; given again, the run continues in it.")],
    start: Annotated[Path | None, typer.Option(help="Snapshot to fine-tune; from scratch without it.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Snapshot that teaches a distillation; the one to fine-tune without it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the configuration.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU if there is one.")] = "auto",
    slice_size: Annotated[
        int, typer.Option(min=0, help="Images through the network at once, gradients accumulate; 0: the minibatch.")
    ] = 0,
    compile: Annotated[bool, typer.Option(help="Compile the network (for GPUs).")] = False,
    channels_last: Annotated[bool, typer.Option(help="Memory layout that GPUs prefer.")] = False,
    data_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read ahead; by default none for a set that fits into memory, else 4."),
    ] = None,
    outliers: Annotated[
        str | None, typer.Option(help="Shard set that the configuration's corruption takes outliers from.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder of `atdiff prompts`, for a network that attends to prompts.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute activations again in the backward: less memory, a third more work.")
    ] = False,
) -> None:
    """Train one network and judge it; interrupted, it continues with the same command."""
    from rich.console import Console
    from rich.progress import Progress

    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.hub import local_folder
    from atdiff_core.train_state import Execution
    from pipeline.places import Places
    from pipeline.records import Assignment, declare, load_record
    from pipeline.trial import run_trial
    from pipeline.trial_events import Judged, Trained

    start, teacher = (given and local_folder(str(given)) for given in (start, teacher))
    trial = _trial_config(config, shards, start, teacher, seed, prompts)
    assignment = Assignment(trial, "base" if start is None else "search")
    _claim(out, assignment)
    declare(out, assignment)
    readers = open_shards(shards).suggested_workers if data_workers is None else data_workers
    execution = Execution(
        chosen_device(device),
        slice_size,
        compile,
        channels_last,
        readers,
        gradient_checkpointing=gradient_checkpointing,
    )
    places = Places(
        shards, out, start or out, out / "cache", threads, execution, teacher or start or out, outliers, prompts=prompts
    )
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


def _trial_config(
    file: Path, shards: str, start: Path | None, teacher: Path | None, seed: int | None, prompts: Path | None
) -> "TrialConfig":
    """The file's ``train`` and ``evaluation``, completed with the dataset, the starting point and the teacher."""
    import runpy

    from pydantic import TypeAdapter

    from atdiff_core.data.prompts import load_prompts
    from atdiff_core.data.stream import open_shards
    from atdiff_core.files import read_json
    from atdiff_core.objectives import Objective
    from atdiff_core.objectives.denoising import Denoising
    from atdiff_core.snapshots import load_snapshot
    from atdiff_core.text_snapshots import Surroundings, check_belongs
    from atdiff_core.train_config import NO_TEACHER, SCRATCH
    from search_spaces.space import TrialConfig

    if not file.is_file():
        raise ValueError(f"there is no configuration at {file}")
    written = runpy.run_path(str(file)).get("config") if file.suffix == ".py" else read_json(file)
    if not isinstance(written, dict) or not isinstance(written.get("train"), dict):
        raise ValueError(f"{file} must give a mapping with `train` and `evaluation`; see search_spaces/train_digits.py")
    train = dict(written["train"])
    train["dataset"] = open_shards(shards).fingerprint
    texts = None if prompts is None else load_prompts(prompts)
    if texts is not None:
        train["prompts"] = texts.fingerprint
    train["start_from"] = load_snapshot(start).key if start else SCRATCH
    objective: Objective = TypeAdapter(Objective).validate_python(train.get("objective", Denoising()))
    teaching = teacher or (start if objective.needs_teacher else None)
    if objective.needs_teacher and teaching is None:
        raise ValueError(f"objective {objective.kind} needs a teacher: give --teacher SNAPSHOT, or --start SNAPSHOT")
    for folder in filter(None, {start, teaching}):
        check_belongs(folder, Surroundings(open_shards(shards).index.latents, texts))
    if teaching is not None:
        taught = load_snapshot(teaching)
        objective.check_teacher(taught.noise)
        train["teacher"] = taught.key
    else:
        train["teacher"] = NO_TEACHER
    if seed is not None:
        train["seed"] = seed
    trial = TrialConfig.model_validate({**written, "train": train})
    trial.check()
    return trial


def _claim(out: Path, assignment: "Assignment") -> None:
    from atdiff_core.files import read_json
    from pipeline.records import TRIAL

    if (out / TRIAL).is_file() and read_json(out / TRIAL)["key"] != assignment.key:
        raise ValueError(f"{out} holds a run with another configuration; choose another --out")
