"""An index for tars that exist already: what lies in them is measured, not assumed."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Literal

from atdiff_core.data.contents import Captions
from atdiff_core.data.image_files import picture
from atdiff_core.data.index import INDEX_FILE, Shard, ShardIndex, read_index
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.resize import MODES
from atdiff_core.data.tar_walk import IMAGE_EXTENSIONS, TarSample, tar_samples
from atdiff_core.data.unfinished import BROKEN_FILE, Broken
from atdiff_core.files import sha256_of, write_bytes, write_json

MAX_LABEL_DIGITS = 6
NO_LABEL = -1

CaptionLayout = Literal["whole", "lines", "none"]
Shape = tuple[int, int, str]
"""Width, height and Pillow's mode."""


@dataclass(frozen=True, kw_only=True)
class IndexingSettings:
    """What the tars themselves do not tell.

    Attributes:
        name: What the set is called.
        licence: Under which terms it may be used.
        classes: Name of each label; empty: labels are named by their numbers.
        labels: Whether ``.cls`` members are used.
        captions: Whether a ``.txt`` member is one caption, holds one a line, or is not used.
        resolution: Side to which the pictures are brought when they are read; 0: they all have
            the same already.
        image_channels: 1 or 3, to which they are brought; 0: they all have the same already.
    """

    name: str
    licence: str = "not stated"
    classes: tuple[str, ...] = ()
    labels: bool = True
    captions: CaptionLayout = "whole"
    resolution: int = 0
    image_channels: Literal[0, 1, 3] = 0


@dataclass(frozen=True)
class TarFindings:
    """What one tar holds.

    Attributes:
        shapes: How many pictures have which width, height and mode.
        extensions: Of the pictures.
        labels: How many samples have which label, -1 for none.
        captioned: Samples with captions.
        captions: Of all its samples.
        broken: Samples without a readable picture.
    """

    shard: Shard
    shapes: Counter[Shape]
    extensions: frozenset[str]
    labels: Counter[int]
    captioned: int
    captions: int
    broken: tuple[Broken, ...]


def caption_layout(text: str) -> CaptionLayout:
    """A layout by its name."""
    choices: dict[str, CaptionLayout] = {"whole": "whole", "lines": "lines", "none": "none"}
    if text not in choices:
        raise ValueError(f"captions must be whole, lines or none, got {text!r}")
    return choices[text]


def tars_in(folder: Path) -> list[Path]:
    """The tars of a folder in the order of their names.

    Raises:
        ValueError: If there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of tars")
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not tars:
        raise ValueError(f"{folder}: holds no *.tar")
    return tars


def examine(tar: Path, settings: IndexingSettings) -> TarFindings:
    """Decode every picture of a tar, and write the table of its readable samples beside it.

    Raises:
        ValueError: If the tar itself is damaged.
    """
    readable: list[_Readable] = []
    kept: list[TarSample] = []
    broken: list[Broken] = []
    skipped = 0
    with tar.open("rb") as stream:
        for sample in tar_samples(stream, str(tar)):
            try:
                readable.append(_read(sample, stream, str(tar), settings))
                kept.append(sample)
            except ValueError as error:
                broken.append(Broken(sample=f"{tar.name}: {sample.key}", reason=str(error)))
                skipped += sample.has_content
        table = MemberTable.of_samples(kept, stream)
    write_bytes(members_file(tar), table.to_bytes())
    return TarFindings(
        shard=Shard.of(tar, samples=len(kept), skipped=skipped),
        shapes=Counter(each.shape for each in readable),
        extensions=frozenset(each.extension for each in readable),
        labels=Counter(each.label for each in readable),
        captioned=sum(1 for each in readable if each.captions),
        captions=sum(each.captions for each in readable),
        broken=tuple(broken),
    )


def write_index(folder: Path, findings: Sequence[TarFindings], settings: IndexingSettings) -> ShardIndex:
    """Make one set of the tars of a folder.

    Raises:
        ValueError: If they hold no readable sample, the pictures differ and no resolution is
            asked for, or the labels do not fit the classes.
    """
    broken = [each for found in findings for each in found.broken]
    shapes: Counter[Shape] = sum((found.shapes for found in findings), Counter())
    if not shapes:
        raise ValueError(f"{folder}: no readable sample" + (f"; the first: {broken[0].reason}" if broken else ""))
    resolution, channels = _shape(folder, shapes, settings)
    captions = Captions(
        layout="lines" if settings.captions == "lines" else "whole",
        samples=sum(found.captioned for found in findings),
        total=sum(found.captions for found in findings),
    )
    found_extensions = {extension for found in findings for extension in found.extensions}
    index = ShardIndex(
        name=settings.name,
        licence=settings.licence,
        classes=_classes(folder, sum((found.labels for found in findings), Counter()), settings),
        source_key=hashlib.sha256("/".join(found.shard.sha256 for found in findings).encode()).hexdigest(),
        resolution=resolution,
        image_channels=channels,
        image_formats=tuple(each for each in IMAGE_EXTENSIONS if each in found_extensions),
        prepared=set(shapes) == {(resolution, resolution, MODES[channels])},
        captions=captions if captions.total else None,
        latents=None,
        recipe=None,
        broken=len(broken),
        tool_version=version("atdiff"),
        shards=tuple(found.shard for found in findings),
    )
    (folder / BROKEN_FILE).unlink(missing_ok=True)
    if broken:
        write_json(folder / BROKEN_FILE, [each.model_dump() for each in broken])
    write_json(folder / INDEX_FILE, index.model_dump(mode="json"))
    return index


def renew_tables(folder: Path) -> list[Path]:
    """Write those tables of members of a set again that are missing or changed.

    Raises:
        ValueError: If a tar is not the one that was indexed, or a table left broken samples out.
    """
    renewed = []
    for shard in read_index(folder).shards:
        tar = folder / shard.file
        file = members_file(tar)
        if file.is_file() and sha256_of(file) == shard.members_sha256:
            continue
        content = MemberTable.of_tar(tar).to_bytes()
        if hashlib.sha256(content).hexdigest() != shard.members_sha256:
            raise ValueError(f"{tar}: not the tar that was indexed; delete {folder / INDEX_FILE} to index it anew")
        write_bytes(file, content)
        renewed.append(file)
    return renewed


@dataclass(frozen=True)
class _Readable:
    """What is known of one sample once it was decoded."""

    shape: Shape
    extension: str
    label: int
    captions: int


def _read(sample: TarSample, stream: BinaryIO, name: str, settings: IndexingSettings) -> _Readable:
    extension = next((each for each in IMAGE_EXTENSIONS if each in sample.members), None)
    if extension is None:
        raise ValueError(f"{name}, sample {sample.key}: has no picture")
    contents = {}
    for each in (extension, "cls", "txt"):
        if place := sample.members.get(each):
            stream.seek(place.offset)
            contents[each] = stream.read(place.size)
    named = f"{name}, sample {sample.key}, offset {sample.members[extension].offset}"
    image = picture(contents[extension], named, upright=False)
    return _Readable(
        (*image.size, image.mode),
        extension,
        _label(contents.get("cls"), named) if settings.labels else NO_LABEL,
        _captions(contents.get("txt"), named, settings.captions),
    )


def _label(content: bytes | None, named: str) -> int:
    if content is None:
        return NO_LABEL
    if not content.isdigit() or len(content) > MAX_LABEL_DIGITS:
        raise ValueError(f"{named}: .cls must be the number of a class, got {content[:20]!r}")
    return int(content)


def _captions(content: bytes | None, named: str, layout: CaptionLayout) -> int:
    """How many captions there are."""
    if content is None or layout == "none":
        return 0
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{named}: .txt is not UTF-8 ({error})") from error
    return sum(1 for line in (text.splitlines() if layout == "lines" else [text]) if line.strip())


def _shape(folder: Path, shapes: Counter[Shape], settings: IndexingSettings) -> tuple[int, Literal[1, 3]]:
    """Resolution and channels of the set: those that are asked for, or those that all pictures have."""
    sides = {side for width, height, _ in shapes for side in (width, height)}
    if len(sides) > 1 and not settings.resolution:
        raise ValueError(
            f"{folder}: the pictures' sides are {min(sides)} to {max(sides)} pixels; give the --resolution to which "
            "they are to be cropped when they are read"
        )
    grey = settings.image_channels == 1 or (not settings.image_channels and {mode for *_, mode in shapes} == {"L"})
    return settings.resolution or sides.pop(), 1 if grey else 3


def _classes(folder: Path, labels: Counter[int], settings: IndexingSettings) -> tuple[str, ...]:
    """Names of the labels that the samples have."""
    if set(labels) == {NO_LABEL}:
        if settings.classes:
            raise ValueError(f"{folder}: no sample has a .cls, but {len(settings.classes)} classes are named")
        return ()
    if NO_LABEL in labels:
        raise ValueError(
            f"{folder}: {labels[NO_LABEL]} of {labels.total()} samples have no .cls; --no-labels uses none of them"
        )
    classes = settings.classes or tuple(str(number) for number in range(max(labels) + 1))
    if max(labels) >= len(classes):
        raise ValueError(f"{folder}: label {max(labels)} is not one of the {len(classes)} classes")
    return classes
