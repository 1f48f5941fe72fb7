"""Writing, indexing and checking shards on all CPUs, with a bar that tells how far it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import ShardIndex
from atdiff_core.data.indexing import IndexingSettings, TarFindings, examine, tars_in, write_index
from atdiff_core.data.verifying import shard_findings, unlisted_tars
from atdiff_core.data.writing import begin, finish, write_unit
from atdiff_core.data.writing_plan import WritingPlan
from pipeline.parallel import in_parts

REPORT_EVERY = 64
"""Samples between two messages of a worker."""


def write_plan(plan: WritingPlan, *, workers: int) -> None:
    """Write all sets of a plan; the bytes do not depend on the workers.

    Raises:
        ValueError: If all samples are broken.
        OSError: If the disk is full, or the source cannot be read.
    """
    begin(plan)
    done = [0] * plan.num_units
    with progress_bar() as bar:
        task = bar.add_task(f"writing {plan.source.name}", total=len(plan.source))
        for unit, samples in in_parts(_unit, plan, plan.num_units, workers=workers):
            done[unit] = samples
            bar.update(task, completed=sum(done))
    finish(plan)


def index_folder(folder: Path, settings: IndexingSettings, *, workers: int) -> ShardIndex:
    """Index the tars of a folder as they are; see ``write_index``."""
    tars = tars_in(folder)
    found: dict[int, TarFindings] = {}
    with progress_bar() as bar:
        task = bar.add_task(f"indexing {folder}", total=len(tars))
        for number, findings in in_parts(_examined, _Tars(tars, settings), len(tars), workers=workers):
            found[number] = findings
            bar.update(task, completed=len(found))
    return write_index(folder, [found[number] for number in range(len(tars))], settings)


def verify_folder(folder: Path, index: ShardIndex, *, hashes: bool, decode: bool, workers: int) -> list[str]:
    """Every difference between a set and its index, in the order of the shards."""
    shared = _Checked(folder, index, hashes, decode)
    found: dict[int, list[str]] = {}
    with progress_bar() as bar:
        task = bar.add_task(f"checking {folder}", total=len(index.shards))
        for number, findings in in_parts(_checked, shared, len(index.shards), workers=workers):
            found[number] = findings
            bar.update(task, completed=len(found))
    ordered = [line for number in range(len(index.shards)) for line in found[number]]
    return [*ordered, *unlisted_tars(folder, index)]


def progress_bar() -> Progress:
    """How much is done, of how much, and how long the rest will take."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )


@dataclass(frozen=True)
class _Tars:
    tars: Sequence[Path]
    settings: IndexingSettings


@dataclass(frozen=True)
class _Checked:
    folder: Path
    index: ShardIndex
    hashes: bool
    decode: bool


def _unit(plan: WritingPlan, number: int) -> Iterator[int]:
    """Samples of a unit that are done, now and then and at its end."""
    done = 0
    for done in write_unit(plan, number):
        if done % REPORT_EVERY == 0:
            yield done
    yield done


def _examined(tars: _Tars, number: int) -> Iterator[TarFindings]:
    yield examine(tars.tars[number], tars.settings)


def _checked(checked: _Checked, number: int) -> Iterator[list[str]]:
    decoder = SampleDecoder(checked.index) if checked.decode else None
    yield shard_findings(checked.folder, checked.index.shards[number], hashes=checked.hashes, decoder=decoder)
