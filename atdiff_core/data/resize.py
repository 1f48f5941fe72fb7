"""Square images of one side length and one mode, the way ADM prepares its training sets."""

from typing import Literal

from PIL import Image

MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
"""Pillow's mode for each channel count a set may have."""


def resized(image: Image.Image, resolution: int, *, image_channels: int) -> Image.Image:
    """The largest centred square of an image at another side length.

    The side is halved by 2x2 box means while it is at least twice the resolution, then
    resampled bicubically if it is not there yet. A side of ``resolution * 2**n`` is therefore an
    exact box reduction (rounded to 8 bits at each halving), and a smaller image is enlarged.

    Args:
        image_channels: 1 for grey (``L``), 3 for colour (``RGB``); any other mode is converted.

    Source:
        Dhariwal & Nichol, arXiv:2105.05233, with the crop first rather than last.
    """
    square = _centre_square(image.convert(MODES[image_channels]))
    while square.width >= 2 * resolution:
        half = square.width // 2
        square = square.resize((half, half), Image.Resampling.BOX)
    if square.width == resolution:
        return square
    return square.resize((resolution, resolution), Image.Resampling.BICUBIC)


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
