"""Writing a source as WebDataset shards, several resolutions in one pass."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from atdiff_core.data.contents import Captions, ShardSettings
from atdiff_core.data.encoding import FormatChoice, encoded
from atdiff_core.data.index import INDEX_FILE, ShardIndex
from atdiff_core.data.resize import resized_to_each
from atdiff_core.data.sources import Source, SourceSample
from atdiff_core.data.unfinished import (
    BROKEN_FILE,
    UNFINISHED,
    Broken,
    Receipt,
    UnfinishedShard,
    errors_naming,
    is_whole,
    receipt_of,
)
from atdiff_core.data.writing_plan import JPG_QUALITY, SHARD_BYTES, Cut, WritingPlan, planned, settings_file
from atdiff_core.files import write_json


@dataclass(frozen=True)
class WritingProgress:
    """Samples of the source done so far, each in every resolution."""

    done: int
    total: int


def write_shards(
    source: Source,
    out: Path,
    resolutions: Sequence[int],
    *,
    image_channels: Literal[1, 3],
    image_format: FormatChoice = "auto",
    jpg_quality: int = JPG_QUALITY,
    samples_per_shard: int = 1000,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
) -> Iterator[WritingProgress]:
    """Write ``out/<resolution>px/000000.tar`` and so on, and an index beside them.

    The images are visited once, in an order drawn from the seed, and the same input gives the
    same bytes. A shard appears under its name when it is whole, and the index when all are: a
    writing that was interrupted is finished by the same call, which keeps the shards that are
    there, and a finished set is left alone. Samples that cannot be read are left out, counted
    in the index and listed in ``broken.json``.

    Args:
        samples_per_shard: Most samples in a tar.
        shard_bytes: About how large a tar may become; see ``planned`` for this and the rest.

    Raises:
        ValueError: At once, if an argument is out of range or the folder holds another set;
            while iterating, if all samples are broken.
        OSError: While iterating, with the path in it, if the disk is full or the source
            cannot be read.
    """
    plan = planned(
        source,
        out,
        resolutions,
        image_channels=image_channels,
        image_format=image_format,
        jpg_quality=jpg_quality,
        samples_per_unit=samples_per_shard,
        shard_bytes=shard_bytes,
        seed=seed,
    )
    return _writing(plan)


def _writing(plan: WritingPlan) -> Iterator[WritingProgress]:
    total = len(plan.source)
    if not plan.folders:
        yield WritingProgress(total, total)
        return
    begin(plan)
    for number in range(plan.num_units):
        before = plan.unit(number).start
        for done in write_unit(plan, number):
            yield WritingProgress(before + done, total)
    finish(plan)


def begin(plan: WritingPlan) -> None:
    """Make the folders, with the settings in them."""
    for folder, settings in plan.folders.items():
        with errors_naming(settings_file(folder)):
            write_json(settings_file(folder), settings.model_dump(mode="json"))


def write_unit(plan: WritingPlan, number: int) -> Iterator[int]:
    """Write those tars of a unit that are missing; yields how many of its samples are done.

    Units are independent: several processes may write different ones at the same time.
    """
    missing = [
        (cut, settings)
        for folder, settings in plan.folders.items()
        for cut in plan.cuts(folder, number)
        if not is_whole(cut.path)
    ]
    positions = plan.unit(number)
    if not missing:
        yield len(positions)
        return
    with ExitStack() as stack:
        open_shards: dict[Cut, UnfinishedShard] = {}
        for done, position in enumerate(positions, start=1):
            here = [(cut, settings) for cut, settings in missing if cut.start <= position < cut.stop]
            for cut, _ in here:
                if cut not in open_shards:
                    open_shards[cut] = stack.enter_context(UnfinishedShard(cut.path))
            _write_sample(plan, plan.order[position], [(open_shards[cut], settings) for cut, settings in here])
            for cut, _ in here:
                if position == cut.stop - 1:
                    open_shards.pop(cut).finish()
            yield done


def finish(plan: WritingPlan) -> None:
    """Write the index of every set: from here on they exist.

    Raises:
        ValueError: If not one sample could be read.
    """
    for folder, settings in plan.folders.items():
        cuts = [cut for number in range(plan.num_units) for cut in plan.cuts(folder, number)]
        receipts = [receipt_of(cut.path) for cut in cuts]
        broken = [each for receipt in receipts for each in receipt.broken]
        if len(broken) == len(plan.source):
            raise ValueError(f"{plan.source.name}: all {len(broken)} samples are broken; the first: {broken[0].reason}")
        with errors_naming(folder / INDEX_FILE):
            if broken:
                write_json(folder / BROKEN_FILE, [each.model_dump() for each in broken])
            write_json(folder / INDEX_FILE, _index(settings, receipts).model_dump(mode="json"))
        shutil.rmtree(folder / UNFINISHED)


def _write_sample(plan: WritingPlan, number: int, shards: Sequence[tuple[UnfinishedShard, ShardSettings]]) -> None:
    """One sample of the source into each of the shards, or a note in each that it is broken."""
    if not shards:
        return
    try:
        sample = plan.source[number]
        channels = shards[0][1].image_channels
        images = resized_to_each(sample.image, [settings.resolution for _, settings in shards], image_channels=channels)
    except ValueError as error:
        for shard, _ in shards:
            shard.skip(Broken(sample=plan.source.origin(number), reason=str(error)))
        return
    for shard, settings in shards:
        recipe = settings.recipe
        content = encoded(images[settings.resolution], recipe.image_format, jpg_quality=recipe.jpg_quality)
        shard.write(sample.key, {recipe.image_format: content, **_label(sample)}, captions=sample.captions)


def _label(sample: SourceSample) -> dict[str, bytes]:
    return {} if sample.label is None else {"cls": str(sample.label).encode()}


def _index(settings: ShardSettings, receipts: Sequence[Receipt]) -> ShardIndex:
    captioned = sum(receipt.captioned for receipt in receipts)
    captions = sum(receipt.captions for receipt in receipts)
    return ShardIndex(
        **dict(settings),
        image_formats=(settings.recipe.image_format,),
        prepared=True,
        captions=Captions(layout="lines", samples=captioned, total=captions) if captions else None,
        latents=None,
        broken=sum(len(receipt.broken) for receipt in receipts),
        tool_version=version("atdiff"),
        shards=tuple(receipt.shard for receipt in receipts),
    )
