"""A shard that appears under its name only when it is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from webdataset import TarWriter


class UnfinishedTar:
    """A WebDataset tar under a temporary name, until ``finish`` gives it its own.

    The same samples give the same bytes: times and owners are fixed. Left without ``finish``,
    by an error or an abandoned iterator, the temporary file is deleted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch = path.with_name(f".{path.name}.{os.getpid()}")
        with errors_naming(self._scratch):
            self._stream = self._scratch.open("wb")
        self._tar = TarWriter(self._stream, encoder=False, mtime=0)

    def __enter__(self) -> Self:
        return self

    def write(self, sample: dict[str, str | bytes]) -> None:
        """Add one sample: its ``__key__``, and bytes by extension."""
        with errors_naming(self._scratch):
            self._tar.write(sample)

    def finish(self) -> None:
        """Give the tar its name, once its bytes are on the disk."""
        with errors_naming(self._scratch):
            self._tar.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._scratch.replace(self._path)

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # Closing flushes, which fails once more on a full disk.
            self._tar.close()
        with suppress(OSError):
            self._stream.close()
        self._scratch.unlink(missing_ok=True)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Put the path into an ``OSError`` that has none: writing to an open file does not know its name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
