"""Single samples of a set, each at the cost of one range read and one decoding."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import ShardIndex
from atdiff_core.data.members import ABSENT, Integers, MemberTable
from atdiff_core.data.order import Places
from atdiff_core.data.recently_used import RecentlyUsed
from atdiff_core.data.shard_files import ShardFiles
from atdiff_core.data.tar_walk import IMAGE_EXTENSIONS, LATENT_EXTENSION

SPAN_BYTES = 2**20
"""Members of a sample are neighbours: up to this length they are read at once, with what is between them."""

Member = tuple[int, int, int]
"""Where a member starts and ends in its tar, and its CRC-32."""


@dataclass(frozen=True)
class Sample:
    """What one sample holds: a picture or a latent, its label, all its captions."""

    content: NDArray[np.uint8] | NDArray[np.float32]
    label: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """Several samples.

    Attributes:
        content: ``[samples, height, width, channels]``, uint8, or latents
            ``[samples, channels, height, width]``, float32.
        labels: ``[samples]``, int64.
        captions: All of each sample.
        keys: Name of each sample in its shard.
        numbers: Of each sample in its set, counted through the shards.
    """

    content: Tensor
    labels: Tensor
    captions: list[tuple[str, ...]]
    keys: list[str]
    numbers: list[int]


class SampleReader:
    """Reads samples from their places, and keeps them decoded if all of the set fits into memory.

    Memory is taken sample by sample, as they are read. A set that does not fit is kept by the
    operating system's file cache alone, encoded.
    """

    def __init__(self, files: ShardFiles, memory_bytes: int) -> None:
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes must be >= 0, got {memory_bytes}")
        self._files, self._decoder = files, SampleDecoder(files.index)
        counts = torch.tensor([shard.samples for shard in files.index.shards])
        self._starts = counts.cumsum(0) - counts
        total, shape = int(counts.sum()), self._decoder.shape
        sample_bytes = int(np.prod(shape)) * self._decoder.dtype.itemsize
        self._columns = RecentlyUsed(lambda shard: _Columns(files.table(shard), files.index))
        self._memory = _Memory(total, self._decoder) if total * sample_bytes <= memory_bytes else None

    @property
    def keeps_all(self) -> bool:
        """Whether the set fits into memory."""
        return self._memory is not None

    def at(self, places: Places) -> Samples:
        """The samples at some places, in their order.

        Raises:
            ValueError: If a shard or a sample is missing or damaged; names it and the offset.
        """
        numbers = (self._starts[places.shards] + places.rows).tolist()
        where = list(zip(places.shards.tolist(), places.rows.tolist(), strict=True))
        keys = [self._files.table(shard).key(row) for shard, row in where]
        if self._memory is not None:
            for number, (shard, row) in zip(numbers, where, strict=True):
                if not self._memory.filled[number]:
                    self._memory.keep(number, self._sample(shard, row))
            return self._memory.samples(numbers, keys)
        content = torch.empty((len(numbers), *self._decoder.shape), dtype=self._decoder.dtype)
        labels, captions, array = [], [], content.numpy()
        for place, (shard, row) in enumerate(where):
            sample = self._sample(shard, row)
            array[place] = sample.content
            labels.append(sample.label)
            captions.append(sample.captions)
        return Samples(content, torch.tensor(labels, dtype=torch.int64), captions, keys, numbers)

    def captions_at(self, places: Places) -> list[tuple[str, ...]]:
        """All captions of the samples at some places; their pictures are not read.

        Raises:
            ValueError: If a shard is missing or damaged, or a caption is no UTF-8 text.
        """
        return [self._captions(*place) for place in zip(places.shards.tolist(), places.rows.tolist(), strict=True)]

    def _captions(self, shard: int, row: int) -> tuple[str, ...]:
        _, (*_, member) = self._columns(shard).members(row)
        if member is None:
            return ()
        (text,) = self._contents(shard, row, [member])
        try:
            return self._decoder.captions(text)
        except ValueError as error:
            raise ValueError(f"{self._named(shard, row, member)}: {error}") from error

    def _sample(self, shard: int, row: int) -> Sample:
        extension, members = self._columns(shard).members(row)
        decoder = self._decoder
        content, label, text = self._contents(shard, row, members)
        try:
            return Sample(decoder.decoded(content or b"", extension), decoder.label(label), decoder.captions(text))
        except ValueError as error:
            raise ValueError(f"{self._named(shard, row, members[0])}: {error}") from error

    def _contents(self, shard: int, row: int, members: Sequence[Member | None]) -> list[bytes | None]:
        """The bytes of each member, as they were indexed; one read where they are neighbours."""
        present = [member for member in members if member is not None]
        first, last = min(present)[0], max(member[1] for member in present)
        span = self._files.read(shard, first, last) if last - first <= SPAN_BYTES else None
        contents: list[bytes | None] = []
        for member in members:
            if member is None:
                contents.append(None)
                continue
            start, stop, checksum = member
            content = self._files.read(shard, start, stop) if span is None else span[start - first : stop - first]
            if zlib.crc32(content) != checksum:
                raise ValueError(
                    f"{self._named(shard, row, member)}: not the bytes that were indexed (their checksum differs)"
                )
            contents.append(content)
        return contents

    def _named(self, shard: int, row: int, member: Member | None) -> str:
        offset = "" if member is None else f", offset {member[0]}"
        return f"{self._files.name(shard)}, sample {self._files.table(shard).key(row)}{offset}"


class _Columns:
    """Where the members of a shard's samples lie, looked up row by row: a reader needs few rows of many shards."""

    def __init__(self, table: MemberTable, index: ShardIndex) -> None:
        def columns(extension: str) -> tuple[Integers, Integers, Integers]:
            offsets = table.offsets[extension]
            return offsets, offsets + table.sizes[extension], table.crc32s[extension]

        contents = (*IMAGE_EXTENSIONS, LATENT_EXTENSION)
        self._contents = {each: columns(each) for each in contents if each in table.offsets}
        wanted = (("cls", bool(index.classes)), ("txt", index.captions is not None))
        self._rows = len(table)
        self._beside = [columns(each) if used and each in table.offsets else None for each, used in wanted]

    def __len__(self) -> int:
        return self._rows

    def members(self, row: int) -> tuple[str, list[Member | None]]:
        """Extension of a sample's content; then its content, label and captions, ``None`` where there are none."""
        found = ((each, _member(columns, row)) for each, columns in self._contents.items())
        extension, content = next((each, member) for each, member in found if member is not None)
        return extension, [content, *(None if columns is None else _member(columns, row) for columns in self._beside)]


def _member(columns: tuple[Integers, Integers, Integers], row: int) -> Member | None:
    offsets, stops, checksums = columns
    offset = int(offsets[row])
    return None if offset == ABSENT else (offset, int(stops[row]), int(checksums[row]))


class _Memory:
    """All samples of a set, as far as they were read."""

    def __init__(self, total: int, decoder: SampleDecoder) -> None:
        self._content = torch.empty((total, *decoder.shape), dtype=decoder.dtype)
        self._array = self._content.numpy()
        self._labels = torch.zeros(total, dtype=torch.int64)
        self._captions: dict[int, tuple[str, ...]] = {}
        self.filled = bytearray(total)

    def keep(self, number: int, sample: Sample) -> None:
        self._array[number] = sample.content
        self._labels[number] = sample.label
        if sample.captions:
            self._captions[number] = sample.captions
        self.filled[number] = 1

    def samples(self, numbers: list[int], keys: list[str]) -> Samples:
        chosen = torch.tensor(numbers, dtype=torch.int64)
        captions = [self._captions.get(number, ()) for number in numbers]
        return Samples(self._content[chosen], self._labels[chosen], captions, keys, numbers)
