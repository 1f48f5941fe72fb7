"""Writing a source as WebDataset shards, several resolutions in one pass."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import ValidationError

from atdiff_core.data.index import INDEX_FILE, Shard, ShardIndex, ShardSettings, load_index, set_folder
from atdiff_core.data.resize import MODES, resized
from atdiff_core.data.sources import Source
from atdiff_core.data.unfinished import UnfinishedTar, errors_naming
from atdiff_core.files import write_json
from atdiff_core.randomness import derived_seed

SETTINGS_FILE = "unfinished.json"
"""Stands in for the index while a set is being written."""


@dataclass(frozen=True)
class WritingProgress:
    """Images of the source done so far, each in every resolution."""

    done: int
    total: int


def write_shards(
    source: Source,
    out: Path,
    resolutions: Sequence[int],
    *,
    image_channels: Literal[1, 3],
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> Iterator[WritingProgress]:
    """Write ``out/<resolution>px/000000.tar`` and so on, and an index beside them.

    The images are visited once, in an order drawn from the seed, and the same input gives the
    same bytes. A shard appears under its name when it is whole, and the index when all are: a
    writing that was interrupted is finished by the same call, which keeps the shards that are
    there, and a finished set is left alone.

    Args:
        resolutions: Sides of the images. A source smaller than that is enlarged.
        image_channels: 1 for grey, 3 for colour; the images are converted.

    Raises:
        ValueError: At once, if an argument is out of range or the folder holds another set;
            while iterating, if an image cannot be decoded.
        OSError: While iterating, with the path in it, if the disk is full.
    """
    if image_channels not in MODES:
        raise ValueError(f"image_channels must be 1 (grey) or 3 (colour), got {image_channels}")
    if not resolutions or min(resolutions) < 1 or len(set(resolutions)) < len(resolutions):
        raise ValueError(f"resolutions must be different sides in pixels, at least one, got {list(resolutions)}")
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be >= 1, got {samples_per_shard}")
    if not len(source):
        raise ValueError(f"{source.name}: the source is empty")
    asked = [
        ShardSettings(
            name=source.name,
            licence=source.licence,
            classes=tuple(source.classes),
            source_key=source.source_key,
            resolution=resolution,
            image_channels=image_channels,
            samples_per_shard=samples_per_shard,
            seed=seed,
        )
        for resolution in resolutions
    ]
    return _writing(source, {set_folder(out, each.resolution): each for each in asked if not _is_written(out, each)})


def _is_written(out: Path, asked: ShardSettings) -> bool:
    """Whether the set is there; an error if its place is taken by another one."""
    folder = set_folder(out, asked.resolution)
    present: ShardSettings
    if finished := (folder / INDEX_FILE).exists():
        present = load_index(folder)
    elif (folder / SETTINGS_FILE).exists():
        present = _settings_in(folder)
    elif any(folder.glob("*.tar")):
        raise ValueError(f"{folder}: holds tars of unknown origin; choose another --out")
    else:
        return False
    if differences := present.differences(asked):
        raise ValueError(f"{folder}: holds another set ({differences}); choose another --out")
    return finished


def _settings_in(folder: Path) -> ShardSettings:
    file = folder / SETTINGS_FILE
    try:
        return ShardSettings.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file}: damaged; delete {folder} or choose another --out") from error


def _writing(source: Source, folders: dict[Path, ShardSettings]) -> Iterator[WritingProgress]:
    total = len(source)
    if not folders:
        yield WritingProgress(total, total)
        return
    for folder, settings in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        with errors_naming(folder / SETTINGS_FILE):
            write_json(folder / SETTINGS_FILE, settings.model_dump(mode="json"))
    settings = next(iter(folders.values()))
    order = _order(total, settings.seed)
    size = settings.samples_per_shard
    chunks = [order[start : start + size] for start in range(0, total, size)]
    done = 0
    for number, chunk in enumerate(chunks):
        missing = {_shard_path(folder, number): each for folder, each in folders.items()}
        missing = {path: each for path, each in missing.items() if not path.exists()}
        yield from _writing_shard(source, chunk, missing, WritingProgress(done, total))
        done += len(chunk)
    for folder, settings in folders.items():
        _finish(folder, settings, [len(chunk) for chunk in chunks])


def _writing_shard(
    source: Source, chunk: list[int], missing: dict[Path, ShardSettings], before: WritingProgress
) -> Iterator[WritingProgress]:
    """One shard in every resolution that lacks it."""
    if not missing:
        yield WritingProgress(before.done + len(chunk), before.total)
        return
    with ExitStack() as stack:
        tars = [(stack.enter_context(UnfinishedTar(path)), settings) for path, settings in missing.items()]
        for done, number in enumerate(chunk, start=before.done + 1):
            image, label, key = source[number]
            for tar, settings in tars:
                small = resized(image, settings.resolution, image_channels=settings.image_channels)
                tar.write({"__key__": key, "png": _png(small), "cls": str(label).encode()})
            yield WritingProgress(done, before.total)
        for tar, _ in tars:
            tar.finish()


def _finish(folder: Path, settings: ShardSettings, counts: Sequence[int]) -> None:
    """Write the index: from here on the set exists."""
    shards = [Shard.of(_shard_path(folder, number), samples=samples) for number, samples in enumerate(counts)]
    index = ShardIndex(**dict(settings), tool_version=version("atdiff"), shards=tuple(shards))
    with errors_naming(folder / INDEX_FILE):
        write_json(folder / INDEX_FILE, index.model_dump(mode="json"))
    (folder / SETTINGS_FILE).unlink(missing_ok=True)


def _order(total: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(derived_seed(seed, "writing"))
    return [int(number) for number in torch.randperm(total, generator=generator)]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.tar"


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
