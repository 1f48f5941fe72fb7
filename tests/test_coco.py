"""MS-COCO: pictures, all their captions, and annotation files that are not to be trusted."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atdiff_core.data.coco import Coco, coco

CAPTIONS = {139: ["A woman stands.", "A room with chairs.\n"], 285: ["A bear."], 632: []}


def annotations(**changes: Any) -> dict[str, Any]:
    numbered = [(image, caption) for image in (285, 139) for caption in CAPTIONS[image]]
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": image, "file_name": f"{image:012d}.jpg", "height": 6, "width": 8} for image in (632, 139, 285)
        ],
        "annotations": [
            {"id": number, "image_id": image, "caption": caption} for number, (image, caption) in enumerate(numbered)
        ],
    } | changes


def opened(path: Path, content: dict[str, Any] | str) -> Coco:
    folder = path / "val2017"
    folder.mkdir(exist_ok=True)
    for image in CAPTIONS:
        Image.new("RGB", (8, 6), (image % 256, 0, 0)).save(folder / f"{image:012d}.jpg")
    file = path / "captions_val2017.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return coco(folder, file)


def test_every_picture_comes_with_all_its_captions(tmp_path: Path) -> None:
    source = opened(tmp_path, annotations())
    assert (source.name, source.classes, len(source)) == ("coco-val2017", [], 3)
    assert {int(sample.key): list(sample.captions) for sample in source} == CAPTIONS
    assert all(sample.label is None and sample.image.size == (8, 6) for sample in source)


def test_the_key_of_the_source_changes_with_a_caption(tmp_path: Path) -> None:
    before = opened(tmp_path, annotations()).source_key
    assert opened(tmp_path, annotations()).source_key == before
    changed = annotations()
    changed["annotations"][0]["caption"] = "Another bear."
    assert opened(tmp_path, changed).source_key != before


def test_a_picture_that_is_missing_is_a_broken_sample(tmp_path: Path) -> None:
    source = opened(tmp_path, annotations())
    (tmp_path / "val2017" / "000000000139.jpg").unlink()
    with pytest.raises(ValueError, match=r"000000000139\.jpg: missing"):
        source[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not COCO's captions"),
        ("[" * 100_000, "not COCO's captions"),
        ({}, "not COCO's captions"),
        (annotations(images=[]), "lists no image"),
        (annotations(images=[{"id": 1, "file_name": "../../etc/passwd.jpg"}]), r"images\.0\.file_name"),
        (annotations(images=[{"id": 1, "file_name": "/etc/x.jpg"}]), r"images\.0\.file_name"),
        (annotations(images=[{"id": 1, "file_name": "a.jpg"}] * 2), "listed twice"),
        (annotations(images=[{"id": 139, "file_name": "a.jpg"}], annotations=[]), "holds none of the 1 images"),
        (annotations(annotations=[{"id": 5, "image_id": 7, "caption": "x"}]), "of an unknown image 7"),
        (annotations(annotations=[{"id": 5, "image_id": 139}]), r"annotations\.0\.caption"),
    ],
)
def test_annotations_that_cannot_be_are_refused(tmp_path: Path, content: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, content)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder of images"):
        coco(tmp_path / "missing", tmp_path / "captions.json")
    with pytest.raises(ValueError, match=r"captions\.json: no such file"):
        coco(tmp_path, tmp_path / "captions.json")
