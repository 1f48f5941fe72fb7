"""CIFAR-10's binary version: small files of that format, read back."""

from pathlib import Path

import numpy as np
import pytest

from atdiff_core.data.cifar import cifar10

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RED, GREEN, BLUE = ([int(channel == each) * 255 for channel in range(3)] for each in range(3))


def record(label: int, colour: list[int], corner: int = 0) -> bytes:
    """One image of one colour whose first pixel of the second row is ``corner`` in every plane."""
    planes = np.repeat(np.array(colour, dtype=np.uint8), 1024).reshape(3, 32, 32)
    planes[:, 1, 0] = corner
    return bytes([label]) + planes.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images a training file, one to test."""
    path = tmp_path / "cifar-10-batches-bin"
    path.mkdir()
    (path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for number in range(1, 6):
        (path / f"data_batch_{number}.bin").write_bytes(record(number, RED) + record(0, BLUE, corner=number))
    (path / "test_batch.bin").write_bytes(record(9, GREEN))
    return path


def test_labels_colours_and_rows_come_back_in_the_order_of_the_files(folder: Path) -> None:
    source = cifar10(folder)
    assert (len(source), source.classes) == (10, NAMES)
    assert [sample.label for sample in source] == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    for number, (image, label, *_) in enumerate(source):
        assert (image.size, image.mode) == ((32, 32), "RGB")
        assert image.getpixel((5, 5)) == tuple(RED if label else BLUE)
        corner = 0 if label else number // 2 + 1
        assert image.getpixel((0, 1)) == (corner, corner, corner)


def test_the_test_split_is_its_own_file(folder: Path) -> None:
    (image, label, *_), *others = cifar10(folder, "test")
    assert (image.getpixel((0, 0)), label, others) == (tuple(GREEN), 9, [])
    with pytest.raises(ValueError, match="split must be train or test, got 'all'"):
        cifar10(folder, "all")  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["data_batch_4.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"there is no {missing}; give the folder of .* cifar-10-batches-bin"):
        cifar10(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(1, RED)[:-1], "whole records of 3073 bytes, got 3072 bytes"),
        (b"", "whole records of 3073 bytes, got 0 bytes"),
        (record(3, RED) + record(10, RED), "a label must be in 0 to 9, got 10 in record 1"),
    ],
)
def test_damaged_records_are_refused_with_their_file(folder: Path, content: bytes, message: str) -> None:
    (folder / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_2\.bin: .*{message}"):
        cifar10(folder)


def test_a_list_of_names_that_is_not_ten_is_refused(folder: Path) -> None:
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"batches\.meta\.txt: must name 10 classes, one a line, got 2"):
        cifar10(folder)
