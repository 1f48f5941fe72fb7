"""The bytes of a set's shards, wherever they live: member by member, never a whole tar."""

import os
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Generic, Protocol, TypeVar

from atdiff_core.data.addresses import Address, scheme_of
from atdiff_core.data.disk_cache import DiskCache
from atdiff_core.data.index import INDEX_FILE, Shard, ShardIndex, load_index, parsed_index
from atdiff_core.data.members import MemberTable, members_name
from atdiff_core.data.recently_used import RecentlyUsed
from atdiff_core.data.remote import Patience, RemoteFolder

Key = TypeVar("Key")

PIECE_BYTES = 8 * 2**20
"""A remote tar is fetched in pieces of this size, each once for all processes of a machine."""
OPEN_FILES = 400
CACHE_FOLDER = "ATDIFF_CACHE"
CACHE_GIB = "ATDIFF_CACHE_GIB"


def default_cache() -> DiskCache:
    """``~/.cache/atdiff/shards`` with at most 32 GiB, or what ATDIFF_CACHE and ATDIFF_CACHE_GIB say."""
    folder = os.environ.get(CACHE_FOLDER, "~/.cache/atdiff/shards")
    limit = os.environ.get(CACHE_GIB, "32")
    try:
        return DiskCache(Path(folder).expanduser(), int(float(limit) * 2**30))
    except ValueError:
        raise ValueError(f"{CACHE_GIB} must be a number of GiB, got {limit!r}") from None


class ShardFiles(Protocol):
    """What a reader needs to know of a set: its index, its tables, and any range of its tars."""

    index: ShardIndex

    def table(self, number: int) -> MemberTable:
        """The members of a shard."""

    def read(self, number: int, start: int, stop: int) -> bytes:
        """The bytes ``start`` to ``stop - 1`` of a shard."""

    def fetch(self, number: int, start: int, stop: int) -> None:
        """Bring a range near, so that reading it will not wait."""

    def name(self, number: int) -> str:
        """What errors call a shard."""


class LocalFiles:
    """The shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.index = load_index(folder)
        self._folder = folder
        self._opened = OpenFiles(self._open)
        self.table = RecentlyUsed(self._table)

    def name(self, number: int) -> str:
        return str(self._folder / self.index.shards[number].file)

    def read(self, number: int, start: int, stop: int) -> bytes:
        content = os.pread(self._opened[number].fileno(), stop - start, start)
        if len(content) != stop - start:
            raise ValueError(f"{self.name(number)}, offset {start}: the tar ends inside a member; it was changed")
        return content

    def fetch(self, number: int, start: int, stop: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with self._open(number) as file:
                os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def _open(self, number: int) -> BinaryIO:
        return (self._folder / self.index.shards[number].file).open("rb")

    def _table(self, number: int) -> MemberTable:
        shard = self.index.shards[number]
        path = self._folder / members_name(shard.file)
        return _checked_table(path.read_bytes(), shard, str(path))


class RemoteFiles:
    """The shards below a remote address, in pieces that a cache on the disk keeps.

    Pieces are named after the content of their shard: sets that share shards share pieces, and a
    set that was written anew under the same address never meets the old ones.
    """

    def __init__(self, address: str, cache: DiskCache, patience: Patience) -> None:
        self._remote, self._cache = RemoteFolder(address, patience), cache
        self.index = parsed_index(self._remote.content(INDEX_FILE), f"{address}/{INDEX_FILE}")
        if self.index.num_samples == 0:
            raise ValueError(f"{address}: the set is empty")
        self._opened: OpenFiles[tuple[int, int]] = OpenFiles(lambda key: self._piece(*key))
        self.table = RecentlyUsed(self._table)

    def name(self, number: int) -> str:
        return f"{self._remote.address}/{self.index.shards[number].file}"

    def read(self, number: int, start: int, stop: int) -> bytes:
        parts = []
        while start < stop:
            piece, within = divmod(start, PIECE_BYTES)
            size = min(stop - start, PIECE_BYTES - within)
            parts.append(os.pread(self._opened[number, piece].fileno(), size, within))
            start += size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fetch(self, number: int, start: int, stop: int) -> None:
        for piece in range(start // PIECE_BYTES, -(-stop // PIECE_BYTES)):
            if not self._cache.has(self._piece_name(number, piece)):
                self._piece(number, piece).close()

    def _piece_name(self, number: int, piece: int) -> str:
        return f"{self.index.shards[number].sha256}-{piece}"

    def _piece(self, number: int, piece: int) -> BinaryIO:
        shard = self.index.shards[number]
        start = piece * PIECE_BYTES
        stop = min(start + PIECE_BYTES, shard.bytes)
        return self._cache.opened(
            self._piece_name(number, piece), stop - start, lambda: self._remote.part(shard.file, start, stop)
        )

    def _table(self, number: int) -> MemberTable:
        shard = self.index.shards[number]
        name = members_name(shard.file)

        content = self._cache.content(shard.members_sha256, lambda: self._remote.content(name))
        return _checked_table(content, shard, f"{self._remote.address}/{name}")


def files_at(address: Address, patience: Patience | None = None) -> ShardFiles:
    """The shards in a folder, or below a remote address.

    Raises:
        ValueError: If there is no set, or no such scheme.
    """
    if scheme_of(address) is None:
        return LocalFiles(Path(address))
    return RemoteFiles(str(address), default_cache(), patience or Patience())


def _checked_table(content: bytes, shard: Shard, name: str) -> MemberTable:
    if sha256(content).hexdigest() != shard.members_sha256:
        raise ValueError(f"{name}: not the table that was indexed (its sha256 differs); atdiff shards index renews it")
    table = MemberTable.from_bytes(content, name, tar_bytes=shard.bytes, keys=False)
    if len(table) != shard.samples:
        raise ValueError(f"{name}: {len(table)} samples, the index says {shard.samples}")
    return table


class OpenFiles(Generic[Key]):
    """Files that stay open, the ``OPEN_FILES`` used last."""

    def __init__(self, open_file: Callable[[Key], BinaryIO]) -> None:
        self._open_file = open_file
        self._files: OrderedDict[Key, BinaryIO] = OrderedDict()

    def __getitem__(self, key: Key) -> BinaryIO:
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        file = self._open_file(key)
        self._files[key] = file
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file
