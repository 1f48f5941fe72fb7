"""Pictures that lie in a folder or in a tar, each to be had by its number."""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from atdiff_core.data.image_files import MAX_FILE_BYTES, picture, picture_from
from atdiff_core.data.tar_walk import ByteRange


class PictureFiles(ABC):
    """Pictures by number.

    Attributes:
        names: Path of each below the folder, or its name in the tar.
    """

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def picture(self, number: int) -> Image.Image:
        """Decode one; ``ValueError`` if it is broken."""

    @abstractmethod
    def size(self, number: int) -> int:
        """Bytes of its file, 0 if it is missing."""


class FolderPictures(PictureFiles):
    """Files below a folder."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.names = list(names)
        self._path = path

    def picture(self, number: int) -> Image.Image:
        file = self._path / self.names[number]
        try:
            return picture_from(file)
        except FileNotFoundError as error:
            raise ValueError(f"{file}: missing") from error

    def size(self, number: int) -> int:
        try:
            return (self._path / self.names[number]).stat().st_size
        except FileNotFoundError:
            return 0


class TarPictures(PictureFiles):
    """Members of a tar, or of tars in a tar, by their byte ranges: nothing is unpacked."""

    def __init__(self, path: Path, places: Sequence[tuple[str, ByteRange]]) -> None:
        self.names = [name for name, _ in places]
        self._places = [(place.offset, place.size) for _, place in places]
        self._path = path

    def picture(self, number: int) -> Image.Image:
        offset, size = self._places[number]
        where = f"{self._path}, offset {offset} ({self.names[number]})"
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{where}: {size} bytes are too many for a picture")
        with self._path.open("rb") as tar:
            tar.seek(offset)
            return picture(tar.read(size), where)

    def size(self, number: int) -> int:
        return self._places[number][1]


class Window(io.RawIOBase):
    """A range of a file as a file of its own: a tar in a tar, read where it lies."""

    def __init__(self, stream: BinaryIO, place: ByteRange) -> None:
        self._stream, self._place, self._position = stream, place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._place.size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._place.size - self._position, 0)
        self._stream.seek(self._place.offset + self._position)
        content = self._stream.read(left if size is None or size < 0 else min(size, left))
        self._position += len(content)
        return content
