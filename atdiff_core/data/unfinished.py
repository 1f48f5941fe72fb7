"""A shard that appears under its name only when it is whole."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from webdataset import TarWriter

from atdiff_core.config import Config
from atdiff_core.data.index import Shard
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.files import write_bytes, write_json

UNFINISHED = "unfinished"
"""Folder in that of a set while it is being written: its settings, and what is known of each whole shard."""

BROKEN_FILE = "broken.json"
"""Lists the samples of the source that cannot be read, beside the index."""


class Broken(Config):
    """A sample of the source that cannot be read.

    Attributes:
        sample: Where it is in the source.
        reason: What is wrong with it.
    """

    sample: str
    reason: str


class Receipt(Config):
    """What the index needs to know of a whole shard.

    Attributes:
        captioned: Samples with captions.
        captions: Of all its samples.
        broken: Samples of the source that are missing in it.
    """

    shard: Shard
    captioned: int
    captions: int
    broken: tuple[Broken, ...]


class UnfinishedShard:
    """A WebDataset tar under a temporary name, until ``finish`` gives it its own.

    The same samples give the same bytes: times and owners are fixed. Left without ``finish``,
    by an error or an abandoned iterator, the temporary file is deleted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch = path.parent / UNFINISHED / f"{path.name}.{os.getpid()}"
        self._captioned = self._captions = 0
        self._broken: list[Broken] = []
        with errors_naming(self._scratch):
            self._stream = self._scratch.open("wb")
        self._tar = TarWriter(self._stream, encoder=False, mtime=0)

    def __enter__(self) -> Self:
        return self

    def write(self, key: str, members: dict[str, bytes], *, captions: Sequence[str] = ()) -> None:
        """Add one sample: bytes by extension, and its captions, which lose their line breaks."""
        sample: dict[str, str | bytes] = {"__key__": key, **members}
        if lines := [line for caption in captions if (line := " ".join(caption.split()))]:
            sample["txt"] = "\n".join(lines).encode()
            self._captioned += 1
            self._captions += len(lines)
        with errors_naming(self._scratch):
            self._tar.write(sample)

    def skip(self, broken: Broken) -> None:
        """Note that a sample is not in this shard."""
        self._broken.append(broken)

    def finish(self) -> None:
        """Give the tar its name, once its bytes, its table and its receipt are on the disk."""
        with errors_naming(self._scratch):
            self._tar.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            members = MemberTable.of_tar(self._scratch)
            write_bytes(members_file(self._path), members.to_bytes())
            receipt = Receipt(
                shard=Shard.of(self._path, samples=len(members), content=self._scratch),
                captioned=self._captioned,
                captions=self._captions,
                broken=tuple(self._broken),
            )
            write_json(receipt_file(self._path), receipt.model_dump(mode="json"))
            self._scratch.replace(self._path)

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # Closing flushes, which fails once more on a full disk.
            self._tar.close()
        with suppress(OSError):
            self._stream.close()
        self._scratch.unlink(missing_ok=True)


def receipt_file(shard: Path) -> Path:
    """Where the receipt of a shard lies until the set is finished."""
    return shard.parent / UNFINISHED / f"{shard.stem}.json"


def is_whole(shard: Path) -> bool:
    """Whether a shard of an unfinished set need not be written again."""
    return shard.exists() and receipt_file(shard).exists()


def receipt_of(shard: Path) -> Receipt:
    """The receipt of a whole shard.

    Raises:
        ValueError: If it is missing or damaged, or the tar is not as large as it says.
    """
    file = receipt_file(shard)
    try:
        receipt = Receipt.model_validate_json(file.read_bytes())
        found = shard.stat().st_size
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{file}: damaged or missing; delete {shard} and run the same command again") from error
    if found != receipt.shard.bytes:
        raise ValueError(f"{shard}: has {found} bytes, {receipt.shard.bytes} were written; delete it and run again")
    return receipt


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Put the path into an ``OSError`` that has none: writing to an open file does not know its name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
