"""The index beside the shards: what a set holds, and the address of its content."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from atdiff_core.config import Config
from atdiff_core.files import sha256_of

INDEX_FILE = "index.json"


class Shard(Config):
    """One tar of a set.

    Attributes:
        file: Its name in the folder of the index; never a path.
        samples: Images in it.
        bytes: Size of the tar.
        sha256: Of the tar.
    """

    file: Annotated[str, Field(pattern=r"^[\w-]+\.tar$")]
    samples: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path, *, samples: int) -> Self:
        """The entry of a tar on disk, at the cost of reading it."""
        return cls(file=path.name, samples=samples, bytes=path.stat().st_size, sha256=sha256_of(path))


class ShardSettings(Config):
    """All that decides the bytes of a set: the source and how it was written.

    Attributes:
        name: The source's name.
        licence: The source's licence.
        classes: Name of each label.
        source_key: sha256 that changes when the source's images do.
        resolution: Side of the images.
        image_channels: 1 (grey) or 3 (colour).
        samples_per_shard: Images in every shard but the last.
        seed: Of the order in which the images were written.
    """

    name: str
    licence: str
    classes: tuple[str, ...]
    source_key: str
    resolution: Annotated[int, Field(ge=1)]
    image_channels: Literal[1, 3]
    samples_per_shard: Annotated[int, Field(ge=1)]
    seed: int

    def differences(self, asked: "ShardSettings") -> str:
        """Every setting that differs, as ``seed is 0, asked for 1``; empty if none does."""
        pairs = ((name, getattr(self, name), getattr(asked, name)) for name in ShardSettings.model_fields)
        different = (f"{name} is {mine!s:.70}, asked for {other!s:.70}" for name, mine, other in pairs if mine != other)
        return "; ".join(different)


class ShardIndex(ShardSettings):
    """What a set of shards holds.

    Attributes:
        tool_version: The atdiff that wrote the set.
        shards: In the order of writing.
    """

    tool_version: str
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """The set's content address, 64 hexadecimal digits; it enters every trial's lineage.

        A function of the tars, their order and what the pixels mean; the version of the tool
        that wrote them does not matter.
        """
        parts = [str(self.resolution), str(self.image_channels), *(shard.sha256 for shard in self.shards)]
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
        ValueError: If the folder or its index is missing or damaged, a shard is missing or
            has another size, or the set is empty.
    """
    index = _read_index(path)
    if index.num_samples == 0:
        raise ValueError(f"{path}: the set is empty")
    for shard in index.shards:
        file = path / shard.file
        if not file.is_file():
            raise ValueError(f"{file}: the index names this shard, but it is missing; write the set again")
        if file.stat().st_size != shard.bytes:
            found = file.stat().st_size
            raise ValueError(f"{file}: has {found} bytes, the index says {shard.bytes}; write the set again")
    return index


def _read_index(path: Path) -> ShardIndex:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of shards")
    file = path / INDEX_FILE
    if not file.is_file():
        inner = sorted(str(found.parent) for found in path.glob(f"*px/{INDEX_FILE}"))
        hint = f"did you mean {' or '.join(inner)}?" if inner else "was its writing interrupted? Write it again"
        raise ValueError(f"{path}: no {INDEX_FILE}; {hint}")
    try:
        return ShardIndex.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file}: not an index of shards ({where + ': ' if where else ''}{first['msg']})") from error
