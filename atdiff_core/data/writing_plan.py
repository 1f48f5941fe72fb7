"""Which samples of a source go into which tars: decided before the first one is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from atdiff_core.data.contents import Contents, Recipe, ShardSettings
from atdiff_core.data.encoding import FormatChoice, always_fits, chosen_format, encoded, samples_per_shard
from atdiff_core.data.index import INDEX_FILE, load_index, set_folder
from atdiff_core.data.resize import MODES, resized
from atdiff_core.data.sources import Source
from atdiff_core.data.unfinished import UNFINISHED
from atdiff_core.randomness import derived_seed

SETTINGS_FILE = "settings.json"
SHARD_BYTES = 256 * 2**20
JPG_QUALITY = 95
NUM_TRIED = 48
"""Pictures that are encoded beforehand, to learn how many make a tar."""


@dataclass(frozen=True)
class Cut:
    """One tar: which of the source's shuffled samples it holds.

    Attributes:
        path: Of the tar.
        start: First position in the order of writing.
        stop: One more than the last.
    """

    path: Path
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class WritingPlan:
    """A source and the sets that are made of it; whole units of it can be written in any order.

    Attributes:
        folders: Settings of each set that is not there yet, by its folder.
        seed: Of the order of writing.
        samples_per_unit: Of the order, how many are written together.
    """

    source: Source
    folders: dict[Path, ShardSettings]
    seed: int
    samples_per_unit: int

    @cached_property
    def order(self) -> list[int]:
        """Numbers of the source's samples in the order of writing."""
        return _order(len(self.source), self.seed)

    @property
    def num_units(self) -> int:
        return -(-len(self.source) // self.samples_per_unit)

    def unit(self, number: int) -> range:
        """Positions in the order of writing that a unit covers."""
        start = number * self.samples_per_unit
        return range(start, min(start + self.samples_per_unit, len(self.source)))

    def cuts(self, folder: Path, unit: int) -> list[Cut]:
        """The tars of one unit of a set."""
        size = self.folders[folder].recipe.samples_per_shard
        per_unit = -(-self.samples_per_unit // size)
        positions = self.unit(unit)
        starts = range(positions.start, positions.stop, size)
        return [
            Cut(folder / f"{unit * per_unit + number:06d}.tar", start, min(start + size, positions.stop))
            for number, start in enumerate(starts)
        ]


def planned(
    source: Source,
    out: Path,
    resolutions: Sequence[int],
    *,
    image_channels: Literal[1, 3],
    image_format: FormatChoice = "auto",
    jpg_quality: int = JPG_QUALITY,
    samples_per_unit: int = 1000,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
) -> WritingPlan:
    """Decide how a source becomes the sets ``out/<resolution>px``, leaving out those that are finished.

    Args:
        resolutions: Sides of the images. A source smaller than that is enlarged.
        image_channels: 1 for grey, 3 for colour; the images are converted.
        image_format: ``auto`` is png below 256 px and jpg from there on; ``webp`` is lossless.
        samples_per_unit: Most samples in a tar. A set whose tars would then be larger than
            about ``shard_bytes`` cuts every unit into several.

    Raises:
        ValueError: If an argument is out of range or a folder holds another set.
    """
    if image_channels not in MODES:
        raise ValueError(f"image_channels must be 1 (grey) or 3 (colour), got {image_channels}")
    if not resolutions or min(resolutions) < 1 or len(set(resolutions)) < len(resolutions):
        raise ValueError(f"resolutions must be different sides in pixels, at least one, got {list(resolutions)}")
    if samples_per_unit < 1:
        raise ValueError(f"samples_per_shard must be >= 1, got {samples_per_unit}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be >= 1, got {shard_bytes}")
    if not len(source):
        raise ValueError(f"{source.name}: the source is empty")
    folders = {}
    for resolution in resolutions:
        contents = Contents(
            name=source.name,
            licence=source.licence,
            classes=tuple(source.classes),
            source_key=source.source_key,
            resolution=resolution,
            image_channels=image_channels,
        )
        recipe = Recipe(
            image_format=chosen_format(image_format, resolution),
            jpg_quality=jpg_quality,
            samples_per_unit=samples_per_unit,
            samples_per_shard=samples_per_unit,
            seed=seed,
        )
        settings = ShardSettings(**dict(contents), recipe=_cut_to(shard_bytes, source, contents, recipe))
        if not _is_written(out, settings):
            folders[set_folder(out, resolution)] = settings
    return WritingPlan(source=source, folders=folders, seed=seed, samples_per_unit=samples_per_unit)


def settings_file(folder: Path) -> Path:
    """Where the settings of an unfinished set lie."""
    return folder / UNFINISHED / SETTINGS_FILE


def _cut_to(shard_bytes: int, source: Source, contents: Contents, recipe: Recipe) -> Recipe:
    """The recipe with as many samples a tar as make about ``shard_bytes``."""
    most = min(recipe.samples_per_unit, len(source))
    if always_fits(contents.resolution, contents.image_channels, most=most, shard_bytes=shard_bytes):
        return recipe
    sizes = []
    for number in _order(len(source), recipe.seed)[:NUM_TRIED]:
        try:
            image = resized(source[number].image, contents.resolution, image_channels=contents.image_channels)
        except ValueError:
            continue  # Broken; the writing counts it.
        sizes.append(len(encoded(image, recipe.image_format, jpg_quality=recipe.jpg_quality)))
    if not sizes:
        raise ValueError(f"{source.name}: none of {NUM_TRIED} samples that were tried can be read")
    return recipe.but(samples_per_shard=samples_per_shard(sizes, most=recipe.samples_per_unit, shard_bytes=shard_bytes))


def _is_written(out: Path, asked: ShardSettings) -> bool:
    """Whether the set is there; an error if its place is taken by another one."""
    folder = set_folder(out, asked.resolution)
    if finished := (folder / INDEX_FILE).exists():
        index = load_index(folder)
        if index.recipe is None:
            raise ValueError(f"{folder}: holds tars that were indexed as they are; choose another --out")
        present = ShardSettings(**{name: getattr(index, name) for name in Contents.model_fields}, recipe=index.recipe)
    elif settings_file(folder).exists():
        present = _settings_in(folder)
    elif any(folder.glob("*.tar")):
        raise ValueError(f"{folder}: holds tars of unknown origin; choose another --out")
    else:
        return False
    if differences := present.differences(asked):
        raise ValueError(f"{folder}: holds another set ({differences}); choose another --out")
    return finished


def _settings_in(folder: Path) -> ShardSettings:
    file = settings_file(folder)
    try:
        return ShardSettings.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file}: damaged; delete {folder} or choose another --out") from error


def _order(total: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(derived_seed(seed, "writing"))
    return [int(number) for number in torch.randperm(total, generator=generator)]
