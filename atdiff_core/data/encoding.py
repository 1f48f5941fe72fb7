"""The bytes of a picture in a shard."""

import io
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from atdiff_core.data.contents import ImageFormat

FormatChoice = Literal["auto", "png", "webp", "jpg"]
LARGE_RESOLUTION = 256
"""From here on ``auto`` means jpg: lossless pictures would be several times as many bytes."""

MEMBER_OVERHEAD_BYTES = 4096
"""More than a sample's headers, padding, label and the frame of its picture take."""


def format_choice(text: str) -> FormatChoice:
    """A choice by its name."""
    choices: dict[str, FormatChoice] = {"auto": "auto", "png": "png", "webp": "webp", "jpg": "jpg"}
    if text not in choices:
        raise ValueError(f"the image format must be auto, png, webp or jpg, got {text!r}")
    return choices[text]


def chosen_format(choice: FormatChoice, resolution: int) -> ImageFormat:
    """``auto`` is png below 256 px and jpg from there on."""
    if choice == "auto":
        return "jpg" if resolution >= LARGE_RESOLUTION else "png"
    return choice


def encoded(image: Image.Image, image_format: ImageFormat, *, jpg_quality: int) -> bytes:
    """A picture in its file format; the same pixels give the same bytes.

    ``webp`` is lossless. ``jpg`` keeps the full resolution of the colours.
    """
    stream = io.BytesIO()
    if image_format == "png":
        image.save(stream, format="PNG")
    elif image_format == "webp":
        image.save(stream, format="WEBP", lossless=True, exact=True)
    else:
        image.save(stream, format="JPEG", quality=jpg_quality, subsampling=0)
    return stream.getvalue()


def samples_per_shard(sizes: Sequence[int], *, most: int, shard_bytes: int) -> int:
    """How many samples a tar gets, so that a unit of ``most`` is cut into equal tars of about ``shard_bytes``.

    Args:
        sizes: Bytes of some encoded pictures.
    """
    mean = sum(sizes) / len(sizes) + MEMBER_OVERHEAD_BYTES / 2
    tars = max(1, round(most * mean / shard_bytes))
    return -(-most // min(tars, most))


def always_fits(resolution: int, image_channels: int, *, most: int, shard_bytes: int) -> bool:
    """Whether a tar of ``most`` pictures stays small whatever they show, so that none need be tried."""
    return most * (resolution**2 * image_channels + MEMBER_OVERHEAD_BYTES) <= shard_bytes
