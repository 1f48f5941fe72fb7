"""Pictures from members: Pillow is the peer, bit for bit."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import ShardIndex
from atdiff_core.data.png_chunks import SIGNATURE

SIDE = 24


def decoder(channels: int, *, prepared: bool = True) -> SampleDecoder:
    """Of a set of 24 px."""
    index: dict[str, Any] = {
        "name": "pictures", "licence": "", "classes": (), "source_key": "", "resolution": SIDE,
        "image_channels": channels, "image_formats": ("jpg",), "prepared": prepared, "captions": None,
        "latents": None, "recipe": None, "broken": 0, "tool_version": "", "shards": [],
    }  # fmt: skip
    return SampleDecoder(ShardIndex.model_validate(index))


def picture(mode: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """A wavy picture: JPEG keeps its colours and its edges."""
    rows, columns = np.mgrid[:height, :width]
    bands = [128 + 120 * np.sin(rows / (2 + band) + columns / (5 - band)) for band in range(len(mode))]
    return Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8).squeeze(), mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return encoded(image, "JPEG", **options)


def png(image: Image.Image, **options: Any) -> bytes:
    return encoded(image, "PNG", **options)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [40, 95])
@pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2)])
def test_a_jpeg_has_the_pixels_that_pillow_sees(mode: str, subsampling: int, quality: int, progressive: bool) -> None:
    content = jpeg(
        picture(mode), quality=quality, subsampling=subsampling, progressive=progressive, restart_marker_rows=1
    )
    expected = np.asarray(Image.open(io.BytesIO(content))).reshape(SIDE, SIDE, -1)
    of_mode = decoder(len(mode))
    out = np.zeros_like(expected)
    assert np.array_equal(of_mode.decoded(content, "jpg"), expected)
    assert np.array_equal(of_mode.decoded(content, "jpeg", out), expected)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable JPG"),
        (b"no picture", "not a readable JPG"),
        (jpeg(picture("RGB"))[:60], "not a readable JPG"),
        (jpeg(picture("RGB"))[:-40], "not a readable JPG"),
        (jpeg(picture("RGB", 24, 32)), r"width, height and mode are \(24, 32, 'RGB'\), the index says"),
        (jpeg(picture("L")), r"width, height and mode are \(24, 24, 'L'\), the index says"),
        (jpeg(picture("CMYK")), r"width, height and mode are \(24, 24, 'CMYK'\), the index says"),
    ],
)  # fmt: skip
def test_a_jpeg_that_is_none_of_the_set_is_told(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(3).decoded(content, "jpg")


@given(st.data())
def test_a_damaged_jpeg_is_told_or_has_the_pixels_that_pillow_sees(data: st.DataObject) -> None:
    content = damaged(jpeg(picture("RGB")), data)
    found, message = outcome(content, "jpg")
    if message:
        assert message.startswith(("not a readable JPG", "width, height and mode are"))
    else:
        assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("extra", [{}, {"transparency": 0}, {"dpi": (72, 72)}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_png_has_the_pixels_that_pillow_sees(mode: str, extra: dict[str, Any], level: int) -> None:
    if mode == "RGB" and "transparency" in extra:
        extra = {"transparency": (1, 2, 3)}
    content = png(picture(mode), compress_level=level, **extra)
    expected = np.asarray(Image.open(io.BytesIO(content))).reshape(SIDE, SIDE, -1)
    out = np.zeros_like(expected)
    assert np.array_equal(decoder(len(mode)).decoded(content, "png"), expected)
    assert np.array_equal(decoder(len(mode)).decoded(content, "png", out), expected)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
def test_every_filter_of_a_png_is_undone(kind: int) -> None:
    """Rows written with each filter of the specification (section 9.2): Pillow chooses among them, so we write ours."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    left, up = np.zeros_like(pixels), np.zeros_like(pixels)
    left[:, 1:], up[1:] = pixels[:, :-1], pixels[:-1]
    corner = np.zeros_like(pixels)
    corner[1:, 1:] = pixels[:-1, :-1]
    a, b, c = (each.astype(int) for each in (left, up, corner))
    paeth = np.select(
        [(abs(b - c) <= abs(a - c)) & (abs(b - c) <= abs(a + b - 2 * c)), abs(a - c) <= abs(a + b - 2 * c)], [a, b], c
    )
    guess = [np.zeros_like(a), a, b, (a + b) // 2, paeth][kind]
    rows = np.concatenate([np.full((SIDE, 1), kind), (pixels - guess).reshape(SIDE, -1) % 256], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    content = SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows.astype(np.uint8).tobytes())) + chunk(b"IEND", b"")
    assert np.array_equal(decoder(3).decoded(content, "png"), pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable PNG .it does not begin as a PNG does"),
        (b"no picture", "not a readable PNG .it does not begin as a PNG does"),
        (png(picture("RGB"))[:30], "not a readable PNG .it is cut off"),
        (png(picture("RGB"))[:-40], "not a readable PNG .it is cut off"),
        (png(picture("RGB"))[:-12], "not a readable PNG .it is cut off"),
        (png(picture("RGB")).replace(b"IDAT", b"IDAT!"), "not a readable PNG .the checksum of its 'IDAT' chunk"),
        (SIGNATURE + png(picture("RGB"))[33:], "not a readable PNG .its first chunk is not its header"),
        (png(picture("RGB", 24, 32)), r"width, height and mode are \(24, 32, 'RGB'\), the index says"),
        (png(picture("L")), r"width, height and mode are \(24, 24, 'L'\), the index says"),
        (png(picture("RGBA")), r"width, height and mode are \(24, 24, 'RGBA'\), the index says"),
        (png(picture("RGB").quantize(4)), r"width, height and mode are \(24, 24, 'P'\), the index says"),
    ],
)  # fmt: skip
def test_a_png_that_is_none_of_the_set_is_told(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(3).decoded(content, "png")


@given(st.data())
def test_a_damaged_png_is_told_or_has_its_own_pixels(data: st.DataObject) -> None:
    content = damaged(png(picture("RGB")), data)
    found, message = outcome(content, "png")
    assert message.startswith("not a readable PNG") if message else np.array_equal(found, np.asarray(picture("RGB")))


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """With some bytes changed, and perhaps cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(20, len(content)))])


def outcome(content: bytes, extension: str) -> tuple[Any, str]:
    """The pixels, or the message of the error."""
    try:
        return decoder(3).decoded(content, extension), ""
    except ValueError as error:
        return None, str(error)


def test_pictures_of_a_foreign_set_are_resized() -> None:
    content = jpeg(picture("L", 48, 60))
    assert decoder(3, prepared=False).decoded(content, "jpg").shape == (SIDE, SIDE, 3)
