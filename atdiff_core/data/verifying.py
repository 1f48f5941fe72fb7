"""Comparing a set with its index: every difference is found, and told with its shard and offset."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import Shard, ShardIndex
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.tar_walk import TarSample, tar_samples
from atdiff_core.files import sha256_of

MAX_FINDINGS = 20
"""Of one shard; damage beyond that is not listed singly."""


def unlisted_tars(folder: Path, index: ShardIndex) -> Iterator[str]:
    """Tars beside the index that it does not name."""
    known = {shard.file for shard in index.shards}
    for tar in sorted(folder.glob("*.tar")):
        if tar.name not in known:
            yield f"{tar}: not in the index"


def shard_findings(folder: Path, shard: Shard, *, hashes: bool, decoder: SampleDecoder | None = None) -> list[str]:
    """All that is wrong with one shard of a set, a line each; empty if nothing is.

    Its structure is always looked at: headers, table, counts.

    Args:
        hashes: Read all bytes too, and compare the sha256 and the members' checksums.
        decoder: Decode every sample too, as a stream would.

    Damage never raises. Only what is not the set's fault does: an ``OSError`` of the disk.
    """
    findings: list[str] = []
    for finding in _findings(folder / shard.file, shard, hashes, decoder):
        if len(findings) == MAX_FINDINGS:
            findings.append(f"{folder / shard.file}: and more")
            break
        findings.append(finding)
    return findings


def _findings(tar: Path, shard: Shard, hashes: bool, decoder: SampleDecoder | None) -> Iterator[str]:
    if not tar.is_file():
        yield f"{tar}: missing"
        return
    size = tar.stat().st_size
    if size != shard.bytes:
        yield f"{tar}, offset {min(size, shard.bytes)}: has {size} bytes, the index says {shard.bytes}"
    changed = hashes and sha256_of(tar) != shard.sha256
    table = None
    try:
        table = _checked_table(tar, shard)
    except ValueError as error:
        yield str(error)
    with tar.open("rb") as stream:
        try:
            samples = [sample for sample in tar_samples(stream, str(tar)) if sample.has_content]
        except ValueError as error:
            yield str(error)
        else:
            yield from _structure(tar, shard, samples, table)
    if table is None:
        if changed:
            yield f"{tar}: its sha256 differs from the index"
        return
    located = list(_changed_members(tar, table)) if changed else []
    yield from located
    if changed and not located:
        yield f"{tar}: its sha256 differs from the index, though every member is as it was: a header or padding changed"
    if decoder is not None:
        yield from _unreadable_samples(tar, table, decoder)


def _checked_table(tar: Path, shard: Shard) -> MemberTable:
    file = members_file(tar)
    table = MemberTable.load(file, tar_bytes=shard.bytes)
    if hashlib.sha256(file.read_bytes()).hexdigest() != shard.members_sha256:
        raise ValueError(f"{file}: its sha256 differs from the index")
    if len(table) != shard.samples:
        raise ValueError(f"{file}: {len(table)} samples, the index says {shard.samples}")
    return table


def _structure(tar: Path, shard: Shard, samples: list[TarSample], table: MemberTable | None) -> Iterator[str]:
    """Whether the headers of a tar say what its table says."""
    if len(samples) != shard.samples + shard.skipped:
        yield f"{tar}: holds {len(samples)} samples, the index says {shard.samples + shard.skipped}"
    if table is None:
        return
    for sample in samples:
        row = table.rows.get(sample.key)
        if row is None:
            if not shard.skipped:
                yield f"{tar}: sample {sample.key} is not in its table of members"
            continue
        indexed = {each: place for each in table.extensions if (place := table.place(row, each)) is not None}
        if indexed != sample.members:
            offset = min(place.offset for place in sample.members.values())
            yield f"{tar}, offset {offset}: sample {sample.key} lies elsewhere than its table of members says"
    found = {sample.key for sample in samples}
    for key in table.rows:
        if key not in found:
            yield f"{tar}: sample {key} of the table of members is not in the tar"


def _changed_members(tar: Path, table: MemberTable) -> Iterator[str]:
    """Members whose bytes changed."""
    with tar.open("rb") as stream:
        for row in range(len(table)):
            for extension in table.extensions:
                if (place := table.place(row, extension)) is None:
                    continue
                stream.seek(place.offset)
                if not table.is_intact(row, extension, stream.read(place.size)):
                    name = f"{table.key(row)}.{extension}"
                    yield f"{tar}, offset {place.offset}: the {place.size} bytes of {name} changed"


def _unreadable_samples(tar: Path, table: MemberTable, decoder: SampleDecoder) -> Iterator[str]:
    """Samples that cannot be decoded."""
    with tar.open("rb") as stream:
        for row in range(len(table)):
            extension, contents = table.content_extension(row), {}
            for each in table.extensions:
                if place := table.place(row, each):
                    stream.seek(place.offset)
                    contents[each] = stream.read(place.size)
            try:
                decoder.decoded(contents[extension], extension)
                decoder.label(contents.get("cls"))
                decoder.captions(contents.get("txt"))
            except ValueError as error:
                offset = int(table.offsets[extension][row])
                yield f"{tar}, offset {offset}: sample {table.key(row)}: {error}"
