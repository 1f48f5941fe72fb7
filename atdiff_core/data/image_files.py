"""Decoding a picture of unknown origin, without trust and without surprises."""

import io
from pathlib import Path

from PIL import Image, ImageOps

from atdiff_core.data.resize import MAX_PIXELS

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
MAX_FILE_BYTES = 256 * 2**20


def picture_from(file: Path) -> Image.Image:
    """The picture in a file, turned upright; see ``picture``.

    Raises:
        ValueError: If it is no readable picture.
        OSError: If the file cannot be read, which is no fault of the picture's.
    """
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{file}: {size} bytes are too many for a picture")
    return picture(file.read_bytes(), str(file))


def picture(content: bytes, name: str, *, upright: bool = True) -> Image.Image:
    """The picture in some bytes, decoded to its end; errors call it ``name``.

    Args:
        upright: Whether it is turned as its EXIF data say.

    Raises:
        ValueError: If it cannot be decoded to its end as PNG, JPEG, WebP or BMP, has more than
            ``MAX_PIXELS``, or is not 8 bits deep.
    """
    try:
        with Image.open(io.BytesIO(content), formats=sorted(set(FORMATS.values()))) as opened:
            image: Image.Image = opened
            if opened.width * opened.height <= MAX_PIXELS:
                opened.load()
                image = ImageOps.exif_transpose(opened) if upright else opened
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to.
        raise ValueError(f"{name}: not a readable image ({error or type(error).__name__})") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name}: {image.width} x {image.height} pixels are too many, at most {MAX_PIXELS}")
    if image.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"{name}: pixels of mode {image.mode} are not 8 bits deep; convert the image first")
    return image
