"""Pieces of remote files on the local disk: a limited size, and any number of processes at once."""

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from atdiff_core.data.unfinished import errors_naming

NUM_LOCKS = 64
LOOKS = 64
CHECKSUM_BYTES = 4
ABANDONED_SEC = 3600.0


class DiskCache:
    """Files by name, filled when they are asked for; the ones unused for longest go first.

    A file is written under another name and renamed, so that no reader sees half of it; it ends
    with a checksum, and one that does not fit is fetched again. Two processes that want the same
    file fetch it once. Nothing has to be closed or repaired after a crash.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use a folder.

        Args:
            folder: Shared by every process of the machine.
            limit_bytes: Kept on disk, but for what was written since a process looked last: a
                ``1 / LOOKS``-th of it for each process.
        """
        self.folder, self.limit_bytes = folder, limit_bytes
        self._unseen_bytes = limit_bytes  # What others left there.

    def opened(self, name: str, size: int | None, fetch: Callable[[], bytes]) -> BinaryIO:
        """A file, open for reading; it can be read even after another process has deleted it.

        Args:
            name: Of the file: letters, digits and ``-``.
            size: Bytes of its content if they are known; content of another length is never kept.
            fetch: Gives the content when it is not there.

        Raises:
            OSError: With the path in it, if the disk is full.
        """
        path = self.folder / name[:2] / name
        if (file := _intact(path, size)) is not None:
            return file
        with self._locked(zlib.crc32(name.encode()) % NUM_LOCKS):
            if (file := _intact(path, size)) is not None:  # Another process was faster.
                return file
            content = fetch()
            if size not in (None, len(content)):
                raise ValueError(f"{name}: {len(content)} bytes were fetched, {size} are right")
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}")
            with errors_naming(scratch):
                scratch.write_bytes(content + _checksum(content))
            file = scratch.open("rb")
            scratch.replace(path)
        self._unseen_bytes += len(content)
        if self._unseen_bytes * LOOKS >= self.limit_bytes:
            self._unseen_bytes = 0
            self._make_room(path)
        return file

    def content(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """The content of a small file, as ``opened`` finds it."""
        with self.opened(name, None, fetch) as file:
            return file.read()[:-CHECKSUM_BYTES]

    def has(self, name: str) -> bool:
        """Whether a file is there, without reading it."""
        return (self.folder / name[:2] / name).exists()

    @contextmanager
    def _locked(self, number: int) -> Iterator[None]:
        """Hold one of the locks; it goes with the process, however that ends."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / str(number)).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, newest: Path) -> None:
        """Delete the files that were unused for longest until the limit holds."""
        with self._locked(NUM_LOCKS):
            files = []
            for file in self.folder.glob("??/*"):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    if not file.name.startswith("."):
                        files.append((status.st_mtime, status.st_size, file))
                    elif time.time() - status.st_mtime > ABANDONED_SEC:
                        file.unlink()
            total = sum(size for _, size, _ in files)
            for _, size, file in sorted(files):
                if total <= self.limit_bytes:
                    break
                if file != newest:
                    file.unlink(missing_ok=True)
                    total -= size


def _intact(path: Path, size: int | None) -> BinaryIO | None:
    """The file at a path, at its beginning, if it is there and whole; it then counts as used."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with suppress(FileNotFoundError):
        os.utime(path)
    stored = file.read()
    content = memoryview(stored)[:-CHECKSUM_BYTES]
    if size in (None, len(content)) and stored[len(content) :] == _checksum(content):
        file.seek(0)
        return file
    file.close()
    return None


def _checksum(content: bytes | memoryview) -> bytes:
    """``CHECKSUM_BYTES`` that follow the content in its file."""
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")
