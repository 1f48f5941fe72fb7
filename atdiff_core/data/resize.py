"""Square images of one side length and one mode, the way ADM prepares its training sets."""

from collections.abc import Sequence
from typing import Literal

from PIL import Image

MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
"""Pillow's mode for each channel count a set may have."""

MAX_PIXELS = 80_000_000
"""No image may have more: decoding one must not exhaust the memory."""

MAX_ASPECT = 50
"""No image is longer than this many times its shorter side: resampling it must not exhaust the memory."""


def resized(image: Image.Image, resolution: int, *, image_channels: int) -> Image.Image:
    """The centred square of an image at another side length; see ``resized_to_each``."""
    return resized_to_each(image, [resolution], image_channels=image_channels)[resolution]


def resized_to_each(image: Image.Image, resolutions: Sequence[int], *, image_channels: int) -> dict[int, Image.Image]:
    """The centred square of an image at several side lengths.

    The image is halved by 2x2 box means while its shorter side is at least twice the
    resolution, then resampled bicubically until that side is the resolution, and cropped. A
    square of ``resolution * 2**n`` is therefore an exact box reduction (rounded to 8 bits at
    each halving), and a smaller image is enlarged. Transparent parts become white first.

    The halvings are shared: each of the results is what the image gives alone.

    Args:
        image_channels: 1 for grey (``L``), 3 for colour (``RGB``); any other mode is converted.

    Raises:
        ValueError: If the image is longer than ``MAX_ASPECT`` times its shorter side.

    Source:
        Dhariwal & Nichol, arXiv:2105.05233, ``center_crop_arr`` of their repository.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are too long and thin, at most {MAX_ASPECT} to 1")
    halved = _opaque(image).convert(MODES[image_channels])
    results = {}
    for resolution in sorted(resolutions, reverse=True):
        while min(halved.size) >= 2 * resolution:
            halved = halved.resize((halved.width // 2, halved.height // 2), Image.Resampling.BOX)
        results[resolution] = _cropped(_fitted(halved, resolution), resolution)
    return results


def _fitted(image: Image.Image, resolution: int) -> Image.Image:
    """Resampled so that the shorter side is the resolution."""
    scale = resolution / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, resolution: int) -> Image.Image:
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def _opaque(image: Image.Image) -> Image.Image:
    """Laid on white where it is transparent."""
    if not image.has_transparency_data:
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)
