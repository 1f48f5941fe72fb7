"""Pictures from members: Pillow is the peer, bit for bit."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import ShardIndex

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


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


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
    content = bytearray(jpeg(picture("RGB")))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(20, len(content)))]
    found, message = outcome(bytes(content))
    if message:
        assert message.startswith(("not a readable JPG", "width, height and mode are"))
    else:
        assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def outcome(content: bytes) -> tuple[Any, str]:
    """The pixels, or the message of the error."""
    try:
        return decoder(3).decoded(content, "jpg"), ""
    except ValueError as error:
        return None, str(error)


def test_pictures_of_a_foreign_set_are_resized() -> None:
    content = jpeg(picture("L", 48, 60))
    assert decoder(3, prepared=False).decoded(content, "jpg").shape == (SIDE, SIDE, 3)
