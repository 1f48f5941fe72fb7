"""Finding ImageNet's pictures in the forms in which they are distributed."""

import re
from pathlib import Path
from typing import BinaryIO, cast

from atdiff_core.data.picture_files import FolderPictures, PictureFiles, TarPictures, Window
from atdiff_core.data.tar_walk import ByteRange, regular_members

WNID = re.compile(r"n\d{8}")
PICTURE = re.compile(r"[\w-]+\.JPEG", re.IGNORECASE)
CLASS_TAR = re.compile(r"(n\d{8})\.tar")


def pictures_by_class(path: Path) -> tuple[PictureFiles, list[str]]:
    """``<wnid>/*.JPEG`` in a folder, or in a tar of one tar ``<wnid>.tar`` a class.

    Returns:
        The pictures in the order of their classes and names, and the WordNet id of each.

    Raises:
        ValueError: If there is no such thing, or a tar is damaged.
    """
    pictures = _in_class_tars(path) if path.is_file() else _in_class_folders(path)
    if not len(pictures):
        raise ValueError(f"{path}: holds no <wnid>/*.JPEG, and is no tar of <wnid>.tar files")
    return pictures, [name.split("/")[0] for name in pictures.names]


def pictures_in_one_place(path: Path) -> PictureFiles:
    """``*.JPEG`` of a folder or tar without classes, in the order of their names.

    Raises:
        ValueError: If there is none, or the tar is damaged.
    """
    pictures: PictureFiles
    if path.is_file():
        with path.open("rb") as tar:
            pictures = TarPictures(path, sorted(_members(tar, str(path)), key=_by_name))
    else:
        pictures = FolderPictures(path, sorted(entry.name for entry in path.iterdir() if PICTURE.fullmatch(entry.name)))
    if not len(pictures):
        raise ValueError(f"{path}: holds no *.JPEG")
    return pictures


def _in_class_folders(path: Path) -> PictureFiles:
    folders = sorted(entry.name for entry in path.iterdir() if WNID.fullmatch(entry.name))
    names = [f"{folder}/{file.name}" for folder in folders for file in sorted((path / folder).iterdir())]
    return FolderPictures(path, [name for name in names if PICTURE.fullmatch(name.split("/")[1])])


def _in_class_tars(path: Path) -> PictureFiles:
    """Two levels and no more: a tar in a class's tar is no picture, and is not opened."""
    places = []
    with path.open("rb") as outer:
        for member in list(regular_members(outer, str(path))):
            if not (named := CLASS_TAR.fullmatch(member.name)):
                continue
            inner = ByteRange(member.offset_data, member.size)
            window = cast("BinaryIO", Window(outer, inner))
            for name, place in _members(window, f"{path} ({member.name})"):
                places.append((f"{named[1]}/{name}", ByteRange(inner.offset + place.offset, place.size)))
    return TarPictures(path, sorted(places, key=_by_name))


def _members(tar: BinaryIO, name: str) -> list[tuple[str, ByteRange]]:
    """Names without folders of the pictures in a tar, and where they lie in it."""
    members = ((member.name.split("/")[-1], member) for member in regular_members(tar, name))
    return [(last, ByteRange(member.offset_data, member.size)) for last, member in members if PICTURE.fullmatch(last)]


def _by_name(pair: tuple[str, ByteRange]) -> str:
    return pair[0]
