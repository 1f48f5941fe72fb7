"""Single samples of a set, each at the cost of one range read and one decoding."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atdiff_core.data.decoding import Array, SampleDecoder
from atdiff_core.data.index import ShardIndex
from atdiff_core.data.members import ABSENT, Integers, MemberTable
from atdiff_core.data.order import Places
from atdiff_core.data.recently_used import RecentlyUsed
from atdiff_core.data.shard_files import ShardFiles
from atdiff_core.data.tar_walk import IMAGE_EXTENSIONS, LATENT_EXTENSION

SPAN_BYTES = 2**20
"""Members of a sample are neighbours: up to this length they are read at once, with what is between them."""

READ_TOGETHER = 32
"""Samples that are read, and then decoded."""
CONTENTS = (*IMAGE_EXTENSIONS, LATENT_EXTENSION)


class Annotation(NamedTuple):
    """What a sample has beside its content: its label, all its captions."""

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
        self._lines = RecentlyUsed(lambda shard: _Lines(files.table(shard), files.index))
        self._memory = _Memory(total, self._decoder) if total * sample_bytes <= memory_bytes else None

    @property
    def keeps_all(self) -> bool:
        """Whether the set fits into memory."""
        return self._memory is not None

    def content_of(self, count: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of the content of so many samples."""
        return (count, *self._decoder.shape), self._decoder.dtype

    def at(self, places: Places, content: Tensor | None = None) -> Samples:
        """The samples at some places, in their order.

        Args:
            content: Where their content is written, say in memory that processes share; as
                ``content_of`` describes it. New memory without it.

        Raises:
            ValueError: If a shard or a sample is missing or damaged; names it and the offset.
        """
        numbers = (self._starts[places.shards] + places.rows).tolist()
        where = _pairs(places)
        lines = {shard: self._lines(shard) for shard in {shard for shard, _ in where}}
        keys = [lines[shard].key(row) for shard, row in where]
        if content is None:
            shape, dtype = self.content_of(len(numbers))
            content = torch.empty(shape, dtype=dtype)
        if self._memory is not None:
            new = {number: place for number, place in zip(numbers, where, strict=True) if not self._memory.has(number)}
            decoded = self._decoded(list(new.values()), self._memory.places(new))
            for number, annotation in zip(new, decoded, strict=True):
                self._memory.keep(number, annotation)
            return self._memory.samples(numbers, keys, content)
        annotations = list(self._decoded(where, content.numpy()))
        labels = torch.tensor([each.label for each in annotations], dtype=torch.int64)
        return Samples(content, labels, [each.captions for each in annotations], keys, numbers)

    def captions_at(self, places: Places) -> list[tuple[str, ...]]:
        """All captions of the samples at some places; their pictures are not read.

        Raises:
            ValueError: If a shard is missing or damaged, or a caption is no UTF-8 text.
        """
        return [self._captions(*place) for place in _pairs(places)]

    def _captions(self, shard: int, row: int) -> tuple[str, ...]:
        _, first, _, *members = self._lines(shard).of[row].tolist()
        start, stop, checksum = members[-3:]
        if checksum == ABSENT:
            return ()
        text = self._files.read(shard, first + start, first + stop)
        self._check(text, checksum, shard, row, first + start)
        try:
            return self._decoder.captions(text)
        except ValueError as error:
            raise ValueError(f"{self._named(shard, row, first + start)}: {error}") from error

    def _decoded(self, where: list[tuple[int, int]], contents: Iterable[Array]) -> Iterator[Annotation]:
        """Decode the samples in some rows of some shards, each into its place.

        A few are read and checked, then they are decoded: one by one, reading would drive decoding
        out of the processor's caches every time.
        """
        lines, places = {shard: self._lines(shard).of for shard in {shard for shard, _ in where}}, iter(contents)
        for start in range(0, len(where), READ_TOGETHER):
            together = [(shard, row, lines[shard][row].tolist()) for shard, row in where[start : start + READ_TOGETHER]]
            encoded = [self._members(*sample) for sample in together]
            for sample, members in zip(together, encoded, strict=True):
                yield self._decode(*sample, members, next(places))

    def _members(self, shard: int, row: int, line: list[int]) -> list[bytes | None]:
        """Content, label and captions of a sample as they were indexed; ``line`` as in ``_Lines``."""
        _, first, length, *places = line
        span = self._files.read(shard, first, first + length) if length <= SPAN_BYTES else None
        members: list[bytes | None] = []
        for start, stop, checksum in zip(places[0::3], places[1::3], places[2::3], strict=True):
            if checksum == ABSENT:
                members.append(None)
                continue
            member = self._files.read(shard, first + start, first + stop) if span is None else span[start:stop]
            self._check(member, checksum, shard, row, first + start)
            members.append(member)
        return members

    def _decode(self, shard: int, row: int, line: list[int], members: list[bytes | None], out: Array) -> Annotation:
        content, label, text = members
        try:
            self._decoder.decoded(content or b"", CONTENTS[line[0]], out)
            return Annotation(self._decoder.label(label), self._decoder.captions(text))
        except ValueError as error:
            raise ValueError(f"{self._named(shard, row, line[1] + line[3])}: {error}") from error

    def _check(self, member: bytes, checksum: int, shard: int, row: int, offset: int) -> None:
        """Whether these are the bytes that were indexed."""
        if zlib.crc32(member) != checksum:
            where = self._named(shard, row, offset)
            raise ValueError(f"{where}: not the bytes that were indexed (their checksum differs)")

    def _named(self, shard: int, row: int, offset: int) -> str:
        return f"{self._files.name(shard)}, sample {self._files.table(shard).key(row)}, offset {offset}"


def _pairs(places: Places) -> list[tuple[int, int]]:
    """Number of the shard and row of each place."""
    return list(zip(places.shards.tolist(), places.rows.tolist(), strict=True))


class _Lines:
    """A shard's table turned round: what a reader needs of a sample lies together and is looked up at once.

    Attributes:
        of: ``[samples, 12]``, int64: which of ``CONTENTS``; where the members start in the tar and
            how many bytes further the last ends; then, for content, label and captions, where the
            member starts and stops, counted from the first, and its CRC-32, -1 where it is absent.
    """

    def __init__(self, table: MemberTable, index: ShardIndex) -> None:
        contents = [each for each in CONTENTS if each in table.offsets]
        kinds = np.argmax([table.offsets[each] != ABSENT for each in contents], axis=0)
        beside = [("cls", bool(index.classes)), ("txt", index.captions is not None)]
        absent = np.full(len(table), ABSENT)

        def of_members(columns: dict[str, Integers]) -> Integers:
            content = np.choose(kinds, [columns[each] for each in contents])
            others = (columns[each] if used and each in columns else absent for each, used in beside)
            return np.stack([content, *others])

        starts, sizes, checksums = map(of_members, (table.offsets, table.sizes, table.crc32s))
        first = np.where(starts == ABSENT, np.iinfo(np.int64).max, starts).min(axis=0)
        stops = starts + sizes
        numbered = np.array([CONTENTS.index(each) for each in contents])
        members = np.stack([starts - first, stops - first, checksums], axis=1).reshape(-1, len(table))
        self.of: Integers = np.stack([numbered[kinds], first, stops.max(axis=0) - first, *members], axis=1)
        self._keys, self._key_ends = table.key_blob.data, table.key_ends

    def __len__(self) -> int:
        return len(self.of)

    def key(self, row: int) -> str:
        """As ``MemberTable.key``, without an array in between."""
        return str(self._keys[self._key_ends[row - 1] if row else 0 : self._key_ends[row]], "utf-8")


class _Memory:
    """All samples of a set, as far as they were read."""

    def __init__(self, total: int, decoder: SampleDecoder) -> None:
        self._content = torch.empty((total, *decoder.shape), dtype=decoder.dtype)
        self._array = self._content.numpy()
        self._labels = torch.zeros(total, dtype=torch.int64)
        self._captions: dict[int, tuple[str, ...]] = {}
        self._filled = bytearray(total)

    def has(self, number: int) -> bool:
        return bool(self._filled[number])

    def places(self, numbers: Iterable[int]) -> Iterator[Array]:
        """Where the content of each of some samples belongs."""
        return (self._array[number] for number in numbers)

    def keep(self, number: int, annotation: Annotation) -> None:
        """Remember that the content of a sample is in its place, and what is beside it."""
        self._labels[number] = annotation.label
        if annotation.captions:
            self._captions[number] = annotation.captions
        self._filled[number] = 1

    def samples(self, numbers: list[int], keys: list[str], content: Tensor) -> Samples:
        chosen = torch.tensor(numbers, dtype=torch.int64)
        captions = [self._captions.get(number, ()) for number in numbers]
        torch.index_select(self._content, 0, chosen, out=content)
        return Samples(content, self._labels[chosen], captions, keys, numbers)
