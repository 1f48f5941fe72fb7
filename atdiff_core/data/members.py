"""The table beside a tar: where each member of each sample lies, so that any sample is one range read."""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from atdiff_core.data.tar_walk import (
    EXTENSIONS,
    IMAGE_EXTENSIONS,
    LATENT_EXTENSION,
    MAX_MEMBER_BYTES,
    ByteRange,
    TarSample,
    tar_samples,
)

ABSENT = -1
MAX_TABLE_BYTES = 2**30
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MemberTable:
    """Byte ranges and checksums of the members of one tar, a row for each sample.

    Attributes:
        offsets: By extension, ``[samples]``: where the member's data start in the tar, -1 where
            the sample lacks it.
        sizes: By extension, ``[samples]``: its bytes, -1 where the sample lacks it.
        crc32s: By extension, ``[samples]``: CRC-32 of its bytes, -1 where the sample lacks it.
        key_blob: UTF-8 of all keys, uint8.
        key_ends: ``[samples]``: where each key ends in the blob.
    """

    offsets: dict[str, Integers]
    sizes: dict[str, Integers]
    crc32s: dict[str, Integers]
    key_blob: NDArray[np.uint8]
    key_ends: Integers

    @classmethod
    def of_tar(cls, path: Path) -> Self:
        """The table of a tar on disk: its samples with a picture or a latent, in their order.

        Raises:
            ValueError: If the tar is damaged; see ``tar_samples``.
        """
        with path.open("rb") as stream:
            return cls.of_stream(stream, str(path))

    @classmethod
    def of_stream(cls, stream: BinaryIO, name: str) -> Self:
        """The same of a seekable stream; errors call it ``name``."""
        return cls.of_samples([sample for sample in tar_samples(stream, name) if sample.has_content], stream)

    @classmethod
    def of_samples(cls, samples: list[TarSample], stream: BinaryIO) -> Self:
        """The table of some samples of a tar; their members are read for the checksums."""
        shape = (len(samples),)
        present = [extension for extension in EXTENSIONS if any(extension in sample.members for sample in samples)]
        offsets, sizes, crc32s = ({each: np.full(shape, ABSENT, dtype=np.int64) for each in present} for _ in range(3))
        for row, sample in enumerate(samples):
            for extension, place in sample.members.items():
                stream.seek(place.offset)
                offsets[extension][row], sizes[extension][row] = place.offset, place.size
                crc32s[extension][row] = zlib.crc32(stream.read(place.size))
        keys = [sample.key.encode() for sample in samples]
        key_ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
        return cls(offsets, sizes, crc32s, np.frombuffer(b"".join(keys), dtype=np.uint8), key_ends)

    def __len__(self) -> int:
        return len(self.key_ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MemberTable) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of the members that at least one sample has."""
        return tuple(self.offsets)

    def key(self, row: int) -> str:
        """Name of a sample."""
        start = int(self.key_ends[row - 1]) if row else 0
        return self.key_blob[start : int(self.key_ends[row])].tobytes().decode()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each key."""
        return {self.key(row): row for row in range(len(self))}

    def place(self, row: int, extension: str) -> ByteRange | None:
        """Where a member lies, or ``None`` if the sample lacks it."""
        if extension not in self.offsets or self.offsets[extension][row] == ABSENT:
            return None
        return ByteRange(int(self.offsets[extension][row]), int(self.sizes[extension][row]))

    def content_extension(self, row: int) -> str:
        """Extension of a sample's picture or latent; every row has one."""
        choices = (*IMAGE_EXTENSIONS, LATENT_EXTENSION)
        return next(each for each in choices if self.place(row, each) is not None)

    def is_intact(self, row: int, extension: str, content: bytes) -> bool:
        """Whether these are the bytes of the member that was indexed."""
        place = self.place(row, extension)
        return (
            place is not None and len(content) == place.size and zlib.crc32(content) == int(self.crc32s[extension][row])
        )

    def to_bytes(self) -> bytes:
        """A safetensors file: tensors by name, and nothing that is ever run."""
        tensors: dict[str, Any] = {"keys": self.key_blob, "key_ends": self.key_ends}
        for extension in self.extensions:
            tensors[f"offset_{extension}"] = self.offsets[extension]
            tensors[f"size_{extension}"] = self.sizes[extension]
            tensors[f"crc32_{extension}"] = self.crc32s[extension]
        return save(tensors)

    @classmethod
    def load(cls, path: Path, *, tar_bytes: int) -> Self:
        """Read the table of a tar of this size.

        Raises:
            ValueError: If it is missing, damaged, or points outside the tar.
        """
        if not path.is_file():
            raise ValueError(f"{path}: the table of members is missing; atdiff shards index writes it again")
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size} bytes is no table of members")
        return cls.from_bytes(path.read_bytes(), str(path), tar_bytes=tar_bytes)

    @classmethod
    def from_bytes(cls, content: bytes, name: str, *, tar_bytes: int, keys: bool = True) -> Self:
        """The same from memory; errors call it ``name``.

        Args:
            keys: Look at every key too, microseconds each. A reader that knows by the sha256 that
                the table is the one that was indexed need not.
        """
        try:
            tensors = load(content)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: not a table of members ({error})") from error
        present = [extension for extension in EXTENSIONS if f"offset_{extension}" in tensors]
        kinds = {"offset": np.int64, "size": np.int64, "crc32": np.int64}
        wanted: dict[str, Any] = {f"{kind}_{each}": kinds[kind] for each in present for kind in kinds}
        wanted |= {"keys": np.uint8, "key_ends": np.int64}
        found = {key: tensor.dtype.type for key, tensor in tensors.items() if tensor.ndim == 1}
        if found != wanted or len(found) != len(tensors):
            raise ValueError(f"{name}: not a table of members (it holds {', '.join(sorted(tensors))[:200]})")
        offsets, sizes, crc32s = ({each: tensors[f"{kind}_{each}"] for each in present} for kind in kinds)
        table = cls(offsets, sizes, crc32s, tensors["keys"], tensors["key_ends"])
        if mistake := table._mistake(tar_bytes) or (keys and table._mistake_of_keys()):
            raise ValueError(f"{name}: damaged table of members: {mistake}")
        return table

    def _mistake(self, tar_bytes: int) -> str:
        """What is wrong with the numbers of a table that was read, empty if nothing is."""
        columns = [*self.offsets.values(), *self.sizes.values(), *self.crc32s.values()]
        if any(len(column) != len(self) for column in columns):
            return f"columns differ from {len(self)} rows"
        if len(self) and (self.key_ends[0] < 1 or np.any(np.diff(self.key_ends) < 1)):
            return "the ends of the keys do not increase"
        if len(self.key_blob) != (self.key_ends[-1] if len(self) else 0):
            return "the keys do not fill their place"
        for extension in self.extensions:
            offsets, sizes, crc32s = self.offsets[extension], self.sizes[extension], self.crc32s[extension]
            absent = (offsets == ABSENT) & (sizes == ABSENT) & (crc32s == ABSENT)
            # Written so that no sum can overflow.
            inside = (offsets > 0) & (offsets <= tar_bytes) & (sizes >= 0) & (sizes <= tar_bytes - offsets)
            small = (sizes <= MAX_MEMBER_BYTES) & (crc32s >= 0) & (crc32s < 2**32)
            if not np.all(absent | (inside & small)):
                row = int(np.flatnonzero(~(absent | (inside & small)))[0])
                return f"row {row}: {extension} at {offsets[row]} of {sizes[row]} bytes is not in {tar_bytes} bytes"
        contents = [self.offsets[each] for each in (*IMAGE_EXTENSIONS, LATENT_EXTENSION) if each in self.offsets]
        if len(self) and (not contents or np.any(np.max(contents, axis=0) == ABSENT)):
            return "a sample has neither picture nor latent"
        return ""

    def _mistake_of_keys(self) -> str:
        try:
            different = len(self.rows)
        except UnicodeDecodeError:
            return "a key is not UTF-8"
        return "" if different == len(self) else "a key comes twice"


def members_file(tar: Path) -> Path:
    """Where the table of a tar lies: beside it."""
    return tar.with_name(members_name(tar.name))


def members_name(tar_name: str) -> str:
    """``000000.members.safetensors`` for ``000000.tar``."""
    return f"{tar_name.removesuffix('.tar')}.members.safetensors"
