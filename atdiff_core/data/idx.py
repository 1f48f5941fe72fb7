"""IDX, the file format of MNIST and its successors: a magic number, the sizes, then raw bytes."""

import gzip
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE = 8


def read_idx(folder: Path, stem: str, *, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """All items of ``stem`` or ``stem.gz`` in a folder, ``[items, *item_shape]``.

    Raises:
        ValueError: If the file is missing, damaged, or holds something else.
    """
    path = _existing(folder, stem)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return _items(stream, path, item_shape)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from error


def _existing(folder: Path, stem: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: neither {stem} nor {stem}.gz is there")


def _items(stream: BufferedIOBase, path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    num_dims = 1 + len(item_shape)
    magic = stream.read(4)
    expected = bytes([0, 0, UNSIGNED_BYTE, num_dims])
    if magic != expected:
        raise ValueError(f"{path}: not IDX with {num_dims} sizes (starts with {magic.hex()}, not {expected.hex()})")
    sizes = stream.read(4 * num_dims)
    if len(sizes) != 4 * num_dims:
        raise ValueError(f"{path}: ends inside its header")
    num_items, *shape = (int(size) for size in np.frombuffer(sizes, dtype=">u4"))
    if tuple(shape) != item_shape:
        raise ValueError(f"{path}: items have shape {tuple(shape)}, expected {item_shape}")
    wanted = num_items * int(np.prod(item_shape))
    content = stream.read(wanted + 1)
    if len(content) != wanted:
        found = "more" if len(content) > wanted else str(len(content))
        raise ValueError(f"{path}: its header promises {wanted} bytes of data, {found} are there")
    return np.frombuffer(content, dtype=np.uint8).reshape(num_items, *item_shape)
