"""The index beside the shards, a set's manifest: what it holds, and the address of its content."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from atdiff_core.config import Config
from atdiff_core.data.contents import Captions, Contents, Latents, Recipe
from atdiff_core.data.members import members_file
from atdiff_core.files import sha256_of

INDEX_FILE = "index.json"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shard(Config):
    """One tar of a set, with its table of members beside it.

    Attributes:
        file: Its name in the folder of the index; never a path.
        samples: In its table.
        skipped: Samples in the tar that the table leaves out, because they cannot be read.
        bytes: Size of the tar.
        sha256: Of the tar.
        members_sha256: Of its table of members, ``MemberTable``.
    """

    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.tar$", max_length=200)]
    samples: Count
    skipped: Count
    bytes: Count
    sha256: Sha256
    members_sha256: Sha256

    @classmethod
    def of(cls, path: Path, *, samples: int, skipped: int = 0, content: Path | None = None) -> Self:
        """The entry of a tar on disk whose table is there too, at the cost of reading both.

        Args:
            content: Where the tar still lies, if not under its name.
        """
        content = content or path
        return cls(
            file=path.name,
            samples=samples,
            skipped=skipped,
            bytes=content.stat().st_size,
            sha256=sha256_of(content),
            members_sha256=sha256_of(members_file(path)),
        )


class ShardIndex(Contents):
    """What a set of shards holds.

    Attributes:
        image_formats: Extensions of the pictures; empty for latents.
        prepared: Whether every picture has exactly the set's side and channels. If not, as in
            tars that were indexed as they are, a reader makes it so with ``resized``.
        captions: Of the samples, ``None`` if there are none.
        latents: What the samples are if they are no pictures.
        recipe: How atdiff wrote the images, ``None`` for tars that were indexed as they are.
        broken: Samples of the source that are not in the set because they cannot be read; they
            are listed in ``broken.json``.
        tool_version: The atdiff that wrote the index.
        shards: In the order of writing.
    """

    image_formats: tuple[Literal["png", "webp", "jpg", "jpeg"], ...]
    prepared: bool
    captions: Captions | None
    latents: Latents | None
    recipe: Recipe | None
    broken: Count
    tool_version: str
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _is_one_set(self) -> Self:
        files = [shard.file for shard in self.shards]
        if len(set(files)) < len(files):
            raise ValueError("a shard is listed twice")
        if (self.latents is None) == (not self.image_formats):
            raise ValueError("a set holds either pictures, with image_formats, or latents")
        return self

    @property
    def kind(self) -> Literal["images", "latents"]:
        return "images" if self.latents is None else "latents"

    @property
    def sample_channels(self) -> int:
        """Channels of what a network sees: of the images, or of the latents."""
        return self.image_channels if self.latents is None else self.latents.channels

    @property
    def sample_side(self) -> int:
        """Height and width of what a network sees, in pixels or places of a latent."""
        return self.resolution if self.latents is None else self.latents.side

    @property
    def fingerprint(self) -> str:
        """The set's content address, 64 hexadecimal digits; it enters every trial's lineage.

        A function of the tars, their order and what the pixels mean; the version of the tool
        that wrote them does not matter.
        """
        parts = [str(self.resolution), str(self.image_channels), *(shard.sha256 for shard in self.shards)]
        if any(shard.skipped for shard in self.shards):  # Which samples are left out then says the table alone.
            parts += [shard.members_sha256 for shard in self.shards]
        if self.recipe is None:  # Then the tars alone do not tell how their labels and captions are read.
            parts += [str(len(self.classes)), self.captions.layout if self.captions else ""]
        if self.latents is not None:
            parts += [self.kind, self.latents.autoencoder_key]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


def set_folder(out: Path, resolution: int) -> Path:
    """Where below ``out`` the set of one resolution lies."""
    return out / f"{resolution}px"


def load_index(path: Path) -> ShardIndex:
    """The index of a ``<resolution>px`` folder, checked against the sizes of the shards.

    Raises:
        ValueError: If the folder or its index is missing or damaged, a shard or its table of
            members is missing, a shard has another size, or the set is empty.
    """
    index = read_index(path)
    if index.num_samples == 0:
        raise ValueError(f"{path}: the set is empty")
    for shard in index.shards:
        file = path / shard.file
        for needed in (file, members_file(file)):
            if not needed.is_file():
                raise ValueError(f"{needed}: the index needs this file, but it is missing; write the set again")
        if file.stat().st_size != shard.bytes:
            found = file.stat().st_size
            raise ValueError(f"{file}: has {found} bytes, the index says {shard.bytes}; write the set again")
    return index


def read_index(path: Path) -> ShardIndex:
    """The index of a folder, not compared with anything; see ``load_index``."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of shards")
    file = path / INDEX_FILE
    if not file.is_file():
        inner = sorted(str(found.parent) for found in path.glob(f"*px/{INDEX_FILE}"))
        hint = f"did you mean {' or '.join(inner)}?" if inner else "was its writing interrupted? Write it again"
        raise ValueError(f"{path}: no {INDEX_FILE}; {hint}")
    return parsed_index(file.read_bytes(), str(file))


def parsed_index(content: bytes, name: str) -> ShardIndex:
    """The index in the bytes of an ``index.json``; errors call it ``name``.

    Raises:
        ValueError: If it is damaged, or of another version of atdiff.
    """
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(
            f"{name}: not an index of shards ({what}); if another version of atdiff wrote it, delete it with its tars "
            "and write the set again"
        ) from error
