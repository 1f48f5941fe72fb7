"""One trial of a sweep run again from its key, and compared with what it was."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from atdiff_core.data.addresses import joined
from atdiff_core.train_config import SCRATCH
from pipeline.places import Places
from pipeline.records import SNAPSHOT, TrialRecord, declare, load_record
from pipeline.trial import run_trial
from pipeline.trial_events import Judged, Trained
from pipeline.workspace import Workspace

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Compared:
    """One figure of both runs."""

    name: str
    before: float
    now: float


@dataclass(frozen=True)
class Replayed:
    """A trial and its replay.

    Attributes:
        record: What it was.
        folder: Where the replay lies.
        figures: Every figure of the result; of a stopped trial the metric at its rung.
        largest_difference: Of any weight of the snapshots; ``None`` for a stopped trial, which has none.
    """

    record: TrialRecord
    folder: Path
    figures: tuple[Compared, ...]
    largest_difference: float | None

    @property
    def identical(self) -> bool:
        """Whether every weight and every figure is the same to the last bit."""
        return not self.largest_difference and all(each.before == each.now for each in self.figures)


def trial_named(workspace: Workspace, prefix: str) -> TrialRecord:
    """The trial whose key begins with ``prefix``.

    Raises:
        ValueError: None does, several do, or it has no end to compare with.
    """
    found = [folder for folder in workspace.trial_folders() if folder.name.startswith(prefix[:16])]
    if len(found) != 1:
        many = f"{len(found)} trials" if found else "no trial"
        raise ValueError(f"{many} of {workspace.folder} have a key that begins with {prefix!r}; give more of it")
    record = load_record(found[0])
    if record.status not in ("complete", "pruned"):
        raise ValueError(
            f"trial {record.key[:16]} is {record.status}: only complete and stopped trials can be compared"
        )
    return record


def replay(workspace: Workspace, record: TrialRecord) -> Iterator[Trained | Replayed]:
    """Run a trial again, from its start, in a folder of its own; yields its progress, at last the comparison."""
    folder = workspace.folder / "replays" / record.folder.name
    shutil.rmtree(folder, ignore_errors=True)
    declare(folder, record.assignment)
    for event in run_trial(record.assignment, _places(workspace, record, folder)):
        if isinstance(event, Trained):
            yield event
        elif event.final or record.status == "pruned":
            yield _compared(record, folder, event)
            return


def _places(workspace: Workspace, record: TrialRecord, folder: Path) -> Places:
    train = record.assignment.config.train
    start = _base_of(workspace, record).folder / SNAPSHOT
    return Places(
        shards=joined(workspace.space().shards, f"{train.network.resolution}px"),
        folder=folder,
        start=start,
        cache=workspace.cache,
        teacher=start,
        prompts=Path(prompts) if (prompts := workspace.space().prompts) else None,
    )


def _base_of(workspace: Workspace, record: TrialRecord) -> TrialRecord:
    """The base model that a trial fine-tunes; the trial itself where it starts from random weights."""
    start = record.assignment.config.train.start_from
    if start == SCRATCH:
        return record
    for folder in workspace.trial_folders():
        other = load_record(folder)
        if other.assignment.config.train.key == start:
            return other
    raise ValueError(f"the base model {start[:16]} of trial {record.key[:16]} is not in {workspace.folder}")


def _compared(record: TrialRecord, folder: Path, judged: Judged) -> Replayed:
    if record.status == "pruned":
        before = record.metric_at().get(round(judged.kpass, 6), float("nan"))
        return Replayed(record, folder, (Compared("metric", before, judged.metric),), None)
    now = load_record(folder).result
    figures = tuple(Compared(name, value, now[name]) for name, value in record.result.items())
    ours, theirs = (load_file(each / SNAPSHOT / WEIGHTS) for each in (record.folder, folder))
    largest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return Replayed(record, folder, figures, largest)
