"""From the bytes of a shard to one array of pixels: nothing is unpickled, run or fetched."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from atdiff_core.data.index import Shard, ShardIndex
from atdiff_core.data.resize import MODES
from atdiff_core.files import sha256_of

MEMBERS = (".png", ".cls")
MAX_LABEL_DIGITS = 9


@dataclass(frozen=True)
class DecodedShard:
    """All samples of a shard.

    Attributes:
        images: ``[samples, channels, height, width]``, uint8.
        labels: ``[samples]``, int64.
        keys: Name of each sample.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]


def decoded_shard(folder: Path, shard: Shard, index: ShardIndex) -> DecodedShard:
    """Read and check a whole shard.

    Raises:
        ValueError: If the tar or a member is damaged, an image has another size or mode than
            the index says, a label is no class, or the tar is not the one that was indexed.
    """
    path = folder / shard.file
    shape = (shard.samples, index.resolution, index.resolution, index.image_channels)
    images = np.empty(shape, dtype=np.uint8)
    labels, keys = [], []
    for row, sample in enumerate(_samples(path)):
        named = f"{path}, sample {sample['__key__']}"
        if row == shard.samples:
            raise ValueError(f"{named}: one more than the {shard.samples} samples of the index")
        images[row] = _pixels(sample, named, index)
        labels.append(_label(sample, named, index))
        keys.append(sample["__key__"])
    if len(keys) != shard.samples:
        raise ValueError(f"{path}: ends after {len(keys)} of the {shard.samples} samples of the index")
    if sha256_of(path) != shard.sha256:
        raise ValueError(f"{path}: not the file that was indexed (its sha256 differs); write the set again")
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return DecodedShard(torch.from_numpy(channels_first), torch.tensor(labels, dtype=torch.int64), keys)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """The allowed members of a local tar, as bytes, grouped by key."""
    with path.open("rb") as stream:
        # An open file, not an address: webdataset's own opener would run a "pipe:" in a shell.
        opened = [{"url": path.name, "stream": stream}]
        try:
            yield from group_by_keys(tar_file_expander(opened, select_files=lambda name: name.endswith(MEMBERS)))
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: damaged or truncated tar ({error.args[0]})") from error


def _pixels(sample: dict[str, Any], named: str, index: ShardIndex) -> NDArray[np.uint8]:
    """``[height, width, channels]``."""
    if "png" not in sample:
        raise ValueError(f"{named}: no .png member")
    try:
        with Image.open(io.BytesIO(sample["png"]), formats=["PNG"]) as image:
            found = (*image.size, image.mode)
            wanted = (index.resolution, index.resolution, MODES[index.image_channels])
            pixels = np.asarray(image) if found == wanted else None  # Sizes first: no bomb is ever decoded.
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to.
        raise ValueError(f"{named}: not a readable PNG ({error})") from error
    if pixels is None:
        raise ValueError(f"{named}: width, height and mode are {found}, the index says {wanted}")
    return pixels.reshape(index.resolution, index.resolution, index.image_channels)


def _label(sample: dict[str, Any], named: str, index: ShardIndex) -> int:
    if not index.classes:
        return 0
    text = sample.get("cls", b"")
    if not text.isdigit() or len(text) > MAX_LABEL_DIGITS or int(text) >= len(index.classes):
        raise ValueError(f"{named}: .cls must be the number of one of {len(index.classes)} classes, got {text[:20]!r}")
    return int(text)
