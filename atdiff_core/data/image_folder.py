"""Pictures in a folder, in one subfolder a class or without classes, with captions beside them or not."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

from atdiff_core.data.image_files import FORMATS, picture_from
from atdiff_core.data.sources import Source, SourceSample, numbered_key

CaptionChoice = Literal["all", "first", "none"]
MAX_CAPTION_BYTES = 2**20


class ImageFolder(Source):
    """Images on disk; see ``image_folder``."""

    def __init__(self, path: Path, *, licence: str, captions: CaptionChoice) -> None:
        self.name, self.licence = path.resolve().name, licence
        self._path, self._captions = path, captions
        self.classes, files = _listing(path)
        self._files = [(file.relative_to(path).as_posix(), label) for file, label in files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> SourceSample:
        name, label = self._files[number]
        file = self._path / name
        return SourceSample(picture_from(file), label, numbered_key(number), self._captions_of(file))

    def origin(self, number: int) -> str:
        """Path of the picture in the folder."""
        return self._files[number][0]

    @cached_property
    def source_key(self) -> str:
        """sha256 of the files' names and sizes, not of their content: it costs no reading."""
        digest = hashlib.sha256()
        for name, _ in self._files:
            digest.update(f"{name} {(self._path / name).stat().st_size}\n".encode("utf-8", "surrogateescape"))
            text = (self._path / name).with_suffix(".txt")
            if self._captions != "none" and text.is_file():
                digest.update(f"{self._captions} captions {text.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _captions_of(self, file: Path) -> tuple[str, ...]:
        text = file.with_suffix(".txt")
        if self._captions == "none" or not text.is_file():
            return ()
        if text.stat().st_size > MAX_CAPTION_BYTES:
            raise ValueError(f"{text}: more than {MAX_CAPTION_BYTES} bytes of captions")
        try:
            lines = [line.strip() for line in text.read_bytes().decode("utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{text}: captions must be UTF-8 ({error})") from error
        return tuple(lines[:1] if self._captions == "first" else lines)


def image_folder(path: Path, *, licence: str = "not stated", captions: CaptionChoice = "all") -> ImageFolder:
    """Images below ``path/<class>/``: png, jpg, jpeg, webp or bmp; classes in the order of their names.

    A folder that holds pictures itself has no classes, and its subfolders are searched too. A
    text file beside a picture, ``NAME.txt`` for ``NAME.png``, holds captions, one a line.

    Args:
        captions: Of each text file: all lines, the first one, or none.

    Raises:
        ValueError: If the folder is missing, has no picture, or a class has no image; and when
            an image is asked for that cannot be decoded.
    """
    return ImageFolder(path, licence=licence, captions=captions)


def caption_choice(text: str) -> CaptionChoice:
    """A choice by its name."""
    choices: dict[str, CaptionChoice] = {"all": "all", "first": "first", "none": "none"}
    if text not in choices:
        raise ValueError(f"captions must be all, first or none, got {text!r}")
    return choices[text]


def _listing(path: Path) -> tuple[list[str], list[tuple[Path, int | None]]]:
    """Names of the classes, and each picture with its label."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of images")
    if any(_is_picture(entry) for entry in path.iterdir()):
        return [], [(file, None) for file in _images_in(path)]
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{path}: no class subfolder and no image; put the images into {path}/<class>/")
    return classes, [(file, label) for label, name in enumerate(classes) for file in _images_in(path / name)]


def _images_in(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if _is_picture(file))
    if not files:
        raise ValueError(f"{folder}: no image ({', '.join(FORMATS)})")
    return files


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in FORMATS and file.is_file()
