"""CIFAR-10 in its binary version: raw bytes, nothing is unpickled."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atdiff_core.data.sources import ArraySource

CIFAR_SIDE = 32
RECORD_BYTES = 1 + 3 * CIFAR_SIDE**2
NUM_CLASSES = 10
NAMES_FILE = "batches.meta.txt"
FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}


def cifar10(path: Path, split: Literal["train", "test"] = "train") -> ArraySource:
    """CIFAR-10, colour, 32 px.

    A record is one byte of label, then the red, the green and the blue plane, 1,024 bytes each,
    row by row.

    Args:
        path: The folder of ``data_batch_1.bin`` and its siblings, ``cifar-10-batches-bin``.
        split: ``train`` has 50,000 images, ``test`` has 10,000.

    Raises:
        ValueError: A file is missing, or does not hold such records.
    """
    if split not in FILES:
        raise ValueError(f"split must be train or test, got {split!r}")
    classes = _class_names(path)
    records = np.concatenate([_records(path / name) for name in FILES[split]])
    planes = records[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return ArraySource(f"cifar10-{split}", "not stated (Krizhevsky, 2009)", classes, images, records[:, 0].copy())


def _class_names(path: Path) -> list[str]:
    text = _read(path / NAMES_FILE).decode("ascii", errors="replace")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != NUM_CLASSES:
        raise ValueError(f"{path / NAMES_FILE}: must name {NUM_CLASSES} classes, one a line, got {len(names)}")
    return names


def _records(file: Path) -> NDArray[np.uint8]:
    """``[images, 3073]``."""
    content = np.frombuffer(_read(file), dtype=np.uint8)
    if not len(content) or len(content) % RECORD_BYTES:
        raise ValueError(f"{file}: must hold whole records of {RECORD_BYTES} bytes, got {len(content)} bytes")
    records = content.reshape(-1, RECORD_BYTES)
    strange = np.flatnonzero(records[:, 0] >= NUM_CLASSES)
    if len(strange):
        label = records[strange[0], 0]
        raise ValueError(f"{file}: a label must be in 0 to {NUM_CLASSES - 1}, got {label} in record {strange[0]}")
    return records


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise ValueError(
            f"{file.parent}: there is no {file.name}; give the folder of CIFAR-10's binary version, "
            "cifar-10-batches-bin"
        )
    return file.read_bytes()
