"""What lies where in a tar: the byte ranges of its samples, found by its headers alone."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

IMAGE_EXTENSIONS = ("png", "webp", "jpg", "jpeg")
LATENT_EXTENSION = "safetensors"
EXTENSIONS = (*IMAGE_EXTENSIONS, LATENT_EXTENSION, "cls", "txt")
"""The only members that are ever looked at: pictures, latents, a label, captions."""

MAX_MEMBER_BYTES = 64 * 2**20
"""No picture, latent or caption is larger; a header that says so is damaged or hostile."""
MAX_KEY_BYTES = 1024


@dataclass(frozen=True)
class ByteRange:
    """Where a member's data lie in its tar."""

    offset: int
    size: int


@dataclass
class TarSample:
    """Members of one key, by extension."""

    key: str
    members: dict[str, ByteRange] = field(default_factory=dict)

    @property
    def has_content(self) -> bool:
        """Whether there is a picture or a latent among the members."""
        return any(extension in self.members for extension in (*IMAGE_EXTENSIONS, LATENT_EXTENSION))


def tar_samples(stream: BinaryIO, name: str) -> list[TarSample]:
    """The samples of an uncompressed tar that have an allowed member, in their order.

    Grouped as webdataset does: a key is the name up to the first dot of its last part, and the
    members of a sample follow each other. Only headers are read; names are never used as paths.

    Args:
        stream: The tar; seekable.
        name: What errors call it.

    Raises:
        ValueError: If the tar is damaged or truncated anywhere, a key comes twice, or a member
            is sparse or larger than ``MAX_MEMBER_BYTES``. The offset is in the message.
    """
    samples: list[TarSample] = []
    seen: set[str] = set()
    for member in regular_members(stream, name):
        key, extension = base_plus_ext(member.name)
        if key is None or (extension := extension.lower()) not in EXTENSIONS:
            continue
        where = f"{name}, offset {member.offset}"
        if len(key.encode("utf-8", "surrogateescape")) > MAX_KEY_BYTES or not _is_text(key):
            raise ValueError(f"{where}: the name of a member must be UTF-8 of at most {MAX_KEY_BYTES} bytes")
        if member.size > MAX_MEMBER_BYTES:
            raise ValueError(f"{where}: {key}.{extension} has {member.size} bytes, at most {MAX_MEMBER_BYTES} are read")
        if not samples or samples[-1].key != key:
            if key in seen:
                raise ValueError(f"{where}: the sample {key} comes twice")
            seen.add(key)
            samples.append(TarSample(key))
        if extension in samples[-1].members:
            raise ValueError(f"{where}: {key}.{extension} comes twice")
        samples[-1].members[extension] = ByteRange(member.offset_data, member.size)
    return samples


def regular_members(stream: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar; links, folders and devices are passed over.

    Python's ``tarfile`` takes a damaged header for the end of the archive. Here the end is the
    mark that the format asks for, zeros up to the last byte, and anything else is an error.
    """
    total = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    offset = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # It keeps every header otherwise.
                if member.issparse() or member.size < 0 or (member.offset_data <= offset and offset):
                    raise ValueError(f"{name}, offset {member.offset}: a sparse or negative member is no plain file")
                if member.offset_data + member.size > total:
                    raise ValueError(f"{name}, offset {member.offset}: the tar ends inside {member.name!r:.80}")
                offset = member.offset_data
                if member.isreg():
                    yield member
            end = tar.offset
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(f"{name}, after offset {offset}: damaged or truncated tar ({error})") from error
    if not _zeros_from(stream, end, total):
        raise ValueError(f"{name}, offset {end}: damaged header, or no end mark: the tar is cut off or changed here")


def _zeros_from(stream: BinaryIO, start: int, total: int) -> bool:
    if total - start < tarfile.BLOCKSIZE:
        return False
    stream.seek(start)
    while block := stream.read(2**20):
        if block.count(0) != len(block):
            return False
    return True


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name
