"""How an SQLite file is written: through a write-ahead log where its disk is this machine's own.

With SQLite's defaults a commit waits for the disk; with the log it waits for nothing, a killed process
loses nothing, and a power cut may cost the last commits but never the file. The log needs memory that
all its readers share, which a network file system does not have; there the defaults stay.
"""

from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import event
from sqlalchemy.engine import Engine

LOCAL_DISKS = frozenset({"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "xfs", "zfs"})


def keep_file(engine: Engine, path: Path) -> None:
    """Have an engine write as the file's disk allows, and notice a file that is no longer its own.

    Args:
        path: Of the engine's file, which exists.
    """
    identity = _identity(path)

    local = _has_local_disk(path)

    def prepare(connection: Any, record: object) -> None:
        connection.execute(f"PRAGMA journal_mode={'WAL' if local else 'DELETE'}")
        if local:
            connection.execute("PRAGMA synchronous=NORMAL")

    def check(connection: object, record: object, proxy: object) -> None:
        if _identity(path) != identity:  # SQLite would write on into a file that has no name.
            raise OSError(f"{path} was deleted, or replaced by another file, while it was in use")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "checkout", check)
    engine.dispose()  # Connections made before know nothing of it.


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _has_local_disk(path: Path) -> bool:
    """Whether the disk is known not to be a network's."""
    where = path.resolve()
    mounts = [each for each in psutil.disk_partitions(all=True) if where.is_relative_to(each.mountpoint)]
    nearest = max(mounts, key=lambda each: len(each.mountpoint), default=None)
    return nearest is not None and nearest.fstype in LOCAL_DISKS
