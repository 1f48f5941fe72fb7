"""MS-COCO: a folder of pictures and a JSON file with their captions."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from atdiff_core.data.picture_files import FolderPictures
from atdiff_core.data.sources import Source, SourceSample

LICENCE = "annotations CC BY 4.0; pictures under the terms of Flickr and their owners"


class _Image(BaseModel):
    id: int
    file_name: Annotated[str, Field(pattern=r"^[\w-]+\.(jpg|jpeg|png)$")]


class _Annotation(BaseModel):
    id: int
    image_id: int
    caption: str


class _Annotations(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]


class Coco(Source):
    """The pictures of one ``captions_*.json``; see ``coco``."""

    def __init__(self, path: Path, annotations: Path) -> None:
        parsed = _parsed(annotations)
        images = sorted(parsed.images, key=lambda image: image.id)
        self.name, self.licence, self.classes = f"coco-{annotations.stem.removeprefix('captions_')}", LICENCE, []
        captions: dict[int, list[str]] = {image.id: [] for image in images}
        if len(captions) < len(images) or len({image.file_name for image in images}) < len(images):
            raise ValueError(f"{annotations}: an image is listed twice")
        for annotation in sorted(parsed.annotations, key=lambda each: each.id):
            if annotation.image_id not in captions:
                raise ValueError(f"{annotations}: caption {annotation.id} is of an unknown image {annotation.image_id}")
            captions[annotation.image_id].append(annotation.caption)
        self._captions = [tuple(captions[image.id]) for image in images]
        self._pictures = FolderPictures(path, [image.file_name for image in images])
        if not any(self._pictures.size(number) for number in range(len(images))):
            raise ValueError(f"{path}: holds none of the {len(images)} images of {annotations}")

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> SourceSample:
        key = self.origin(number).rsplit(".", 1)[0]
        return SourceSample(self._pictures.picture(number), None, key, self._captions[number])

    def origin(self, number: int) -> str:
        """The picture's file."""
        return self._pictures.names[number]

    @cached_property
    def source_key(self) -> str:
        """sha256 of the pictures' names and sizes and of all captions."""
        digest = hashlib.sha256()
        for number, captions in enumerate(self._captions):
            digest.update(json.dumps([self.origin(number), self._pictures.size(number), captions]).encode())
        return digest.hexdigest()


def coco(path: Path, annotations: Path) -> Coco:
    """MS-COCO 2014 or 2017; all captions of a picture are kept, in the order of their numbers.

    Args:
        path: The folder of the pictures, ``train2017`` and the like.
        annotations: ``captions_train2017.json`` and the like.

    Raises:
        ValueError: If the JSON is damaged, or not one of its pictures is in the folder.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of images")
    return Coco(path, annotations)


def _parsed(file: Path) -> _Annotations:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; it is in COCO's annotations_trainval archives")
    try:
        parsed = TypeAdapter(_Annotations).validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file}: not COCO's captions ({where}: {first['msg']})") from error
    if not parsed.images:
        raise ValueError(f"{file}: lists no image")
    return parsed
