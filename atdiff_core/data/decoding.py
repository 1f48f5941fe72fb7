"""From the members of one sample to numbers: nothing is unpickled, run or fetched."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyspng
import torch
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from safetensors.torch import load
from simplejpeg import decode_jpeg, decode_jpeg_header

from atdiff_core.data.index import ShardIndex
from atdiff_core.data.png_chunks import checked_header
from atdiff_core.data.resize import MAX_PIXELS, MODES, resized

MAX_LABEL_DIGITS = 9
PICTURES: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "png": PngImagePlugin.PngImageFile,
    "jpg": JpegImagePlugin.JpegImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}
"""Pillow's decoder by extension: the bytes of a member never choose one."""
JPEGS = ("jpg", "jpeg")
JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}
"""As which mode Pillow opens a JPEG of each colour space."""
PNG_COLOURS = {1: 0, 3: 2}
"""What a PNG calls grey and RGB."""
COLOURS = {"L": "GRAY", "RGB": "RGB"}
"""What simplejpeg calls the modes."""
Array = NDArray[np.uint8] | NDArray[np.float32]
LATENT = "latent"
LATENT_TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class SampleDecoder:
    """Decodes the members of samples into what their set's index says that they are."""

    index: ShardIndex

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample: ``[height, width, channels]`` of a picture, ``[channels, height, width]`` of a latent."""
        side, channels = self.index.sample_side, self.index.sample_channels
        return (side, side, channels) if self.index.latents is None else (channels, side, side)

    @property
    def dtype(self) -> torch.dtype:
        """uint8 for pictures, float32 for latents."""
        return torch.uint8 if self.index.latents is None else torch.float32

    def decoded(self, content: bytes, extension: str, out: Array | None = None) -> Array:
        """A picture or a latent, of ``shape``.

        Args:
            out: Where it is written; what it held is lost even if it cannot be decoded. New memory without it.

        Raises:
            ValueError: If it is damaged, or another thing than the index says.
        """
        if extension in JPEGS and self.index.prepared:
            return self._jpeg(content, extension, out)
        if extension == "png" and self.index.prepared:
            found: Array = self._png(content)
        else:
            found = self._pixels(content, extension) if extension in PICTURES else self._latent(content)
        if out is None:
            return found
        out[...] = found
        return out

    def label(self, content: bytes | None) -> int:
        """Number of the class in a ``cls`` member; 0 where the set has no classes."""
        if not self.index.classes:
            return 0
        text = content or b""
        if not text.isdigit() or len(text) > MAX_LABEL_DIGITS or int(text) >= len(self.index.classes):
            known = len(self.index.classes)
            raise ValueError(f".cls must be the number of one of {known} classes, got {text[:20]!r}")
        return int(text)

    def captions(self, content: bytes | None) -> tuple[str, ...]:
        """The captions in a ``txt`` member, none where it is absent or blank."""
        if content is None or self.index.captions is None:
            return ()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f".txt is not UTF-8 ({error})") from error
        lines = text.splitlines() if self.index.captions.layout == "lines" else [text]
        return tuple(line.strip() for line in lines if line.strip())

    @property
    def _wanted(self) -> tuple[int, int, str]:
        """Width, height and mode of every picture of a prepared set."""
        return self.index.resolution, self.index.resolution, MODES[self.index.image_channels]

    def _jpeg(self, content: bytes, extension: str, out: Array | None) -> Array:
        """``[height, width, channels]``: Pillow's pixels to the last bit, in a third of its time for small ones."""
        wanted = self._wanted
        try:
            height, width, space, _ = decode_jpeg_header(content)
            found = (width, height, JPEG_MODES[space])
            if found == wanted:
                pixels: Array = decode_jpeg(content, COLOURS[wanted[2]], buffer=out)
                return pixels
        except Exception as error:  # As below.
            raise ValueError(f"not a readable {extension.upper()} ({error})") from error
        raise ValueError(f"width, height and mode are {found}, the index says {wanted}")

    def _png(self, content: bytes) -> NDArray[np.uint8]:
        """``[height, width, channels]``: Pillow's pixels in half its time; unusual ones are left to Pillow."""
        side, channels = self.index.resolution, self.index.image_channels
        try:
            header = checked_header(content)  # The decoder does not look at checksums.
            if header == (side, side, 8, PNG_COLOURS[channels], 0, 0, 0):
                pixels: NDArray[np.uint8] = pyspng.load(content)
                return pixels.reshape(side, side, channels)
        except Exception as error:  # As below.
            raise ValueError(f"not a readable PNG ({error})") from error
        return self._pixels(content, "png")

    def _pixels(self, content: bytes, extension: str) -> NDArray[np.uint8]:
        """``[height, width, channels]``."""
        side, channels, wanted = self.index.resolution, self.index.image_channels, self._wanted
        try:
            image = PICTURES[extension](io.BytesIO(content))
            found = (*image.size, image.mode)  # Known before decoding: no bomb ever goes off.
            if found == wanted:
                return np.frombuffer(image.tobytes(), np.uint8).reshape(side, side, channels)
            if not self.index.prepared and image.width * image.height <= MAX_PIXELS:
                return np.asarray(resized(image, side, image_channels=channels)).reshape(side, side, channels)
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to.
            raise ValueError(f"not a readable {extension.upper()} ({error})") from error
        raise ValueError(f"width, height and mode are {found}, the index says {wanted}")

    def _latent(self, content: bytes) -> NDArray[np.float32]:
        """``[channels, height, width]``."""
        try:
            tensors = load(content)
        except Exception as error:  # Not only SafetensorError: a header may name shapes that no memory holds.
            raise ValueError(f"not a readable latent ({error})") from error
        latent = tensors.get(LATENT)
        if latent is None or tuple(latent.shape) != self.shape or latent.dtype not in LATENT_TYPES:
            found = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
            raise ValueError(f"must hold the tensor {LATENT!r} of shape {self.shape}, got {found!s:.200}")
        values = latent.float()
        if not torch.isfinite(values).all():
            raise ValueError("the latent is not finite")
        return values.numpy()
