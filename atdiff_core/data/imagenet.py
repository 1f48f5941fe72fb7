"""ImageNet (ILSVRC2012): its folders, its official tars, the validation labels and the synset names."""

import csv
import hashlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from scipy.io import loadmat

from atdiff_core.data.imagenet_files import WNID, pictures_by_class, pictures_in_one_place
from atdiff_core.data.picture_files import PictureFiles
from atdiff_core.data.sources import Source, SourceSample

LICENCE = "ImageNet terms of access: non-commercial research and education only"


class ImageNet(Source):
    """One split of ILSVRC2012; see ``imagenet``.

    The classes are in the order of their WordNet ids, as everybody numbers them; a sample's key
    is the name of its file without the ending.
    """

    def __init__(self, pictures: PictureFiles, labels: list[int], classes: list[str], split: str) -> None:
        self.name, self.licence, self.classes = f"imagenet-{split}", LICENCE, classes
        if repeated := [name for name, count in Counter(map(stem, pictures.names)).items() if count > 1]:
            raise ValueError(
                f"two pictures are called {repeated[0]}, as ImageNet's never are; try atdiff shards folder"
            )
        self._pictures, self._labels = pictures, labels

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> SourceSample:
        return SourceSample(self._pictures.picture(number), self._labels[number], stem(self._pictures.names[number]))

    def origin(self, number: int) -> str:
        """The picture's file, with the folder or tar of its class."""
        return self._pictures.names[number]

    @cached_property
    def source_key(self) -> str:
        """sha256 of the pictures' names, sizes and labels: the same for folders and tars."""
        digest = hashlib.sha256()
        for number, label in enumerate(self._labels):
            digest.update(f"{stem(self._pictures.names[number])} {self._pictures.size(number)} {label}\n".encode())
        return digest.hexdigest()


def imagenet(
    path: Path,
    split: Literal["train", "val"] = "train",
    *,
    labels: Path | None = None,
    synsets: Path | None = None,
) -> ImageNet:
    """ILSVRC2012 as it is distributed.

    Args:
        path: For ``train``, a folder of ``<wnid>/*.JPEG`` or the official tar of one tar a class,
            ``ILSVRC2012_img_train.tar``. For ``val``, a folder of ``ILSVRC2012_val_*.JPEG``,
            a folder of ``<wnid>/*.JPEG``, or ``ILSVRC2012_img_val.tar``.
        labels: Of ``val`` where they are not folders: a WordNet id a line in the order of the
            pictures; Kaggle's ``LOC_val_solution.csv``; or the development kit's
            ``ILSVRC2012_validation_ground_truth.txt``, which needs its ``meta.mat`` as ``synsets``.
        synsets: Names of the classes: lines like ``n01440764 tench, Tinca tinca``
            (``synset_words.txt``, ``LOC_synset_mapping.txt``), or the development kit's
            ``meta.mat``. Without it the WordNet ids are the names.

    Raises:
        ValueError: If something is missing or does not fit together; the message says what.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be train or val, got {split!r}")
    names, ids = _synsets(synsets) if synsets else ({}, {})
    if not path.exists():
        raise ValueError(f"{path}: no such folder or tar")
    in_classes = path.is_dir() and any(WNID.fullmatch(entry.name) for entry in path.iterdir())
    if split == "train" or in_classes:
        pictures, wnids = pictures_by_class(path)
    else:
        pictures = pictures_in_one_place(path)
        wnids = _val_wnids([stem(name) for name in pictures.names], labels, ids)
    known = sorted(set(names) or set(wnids))
    number_of = {wnid: number for number, wnid in enumerate(known)}
    if unknown := sorted(set(wnids) - set(known)):
        raise ValueError(f"{synsets}: does not name {len(unknown)} classes of {path}, the first is {unknown[0]}")
    classes = [f"{wnid} {names[wnid]}" if wnid in names else wnid for wnid in known]
    return ImageNet(pictures, [number_of[wnid] for wnid in wnids], classes, split)


def stem(name: str) -> str:
    """The last part of a name without its ending."""
    return name.split("/")[-1].rsplit(".", 1)[0]


def _val_wnids(keys: list[str], labels: Path | None, ids: dict[int, str]) -> list[str]:
    """WordNet id of each validation picture; keys are in the order of their numbers."""
    if labels is None:
        raise ValueError("the validation pictures carry no labels: give the list of them with --labels")
    lines = _text(labels).splitlines()
    if lines and lines[0].startswith("ImageId"):
        return _from_csv(lines, keys, labels)
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != len(keys):
        raise ValueError(f"{labels}: {len(lines)} labels for {len(keys)} pictures")
    if all(WNID.fullmatch(line) for line in lines):
        return lines
    if not all(line.isdigit() and len(line) < 6 for line in lines):
        raise ValueError(f"{labels}: must hold a WordNet id (n01440764) or a number a line")
    if not ids:
        raise ValueError(f"{labels}: holds numbers; give the development kit's meta.mat with --synsets to read them")
    strange = next((line for line in lines if int(line) not in ids), None)
    if strange is not None:
        raise ValueError(f"{labels}: there is no class of number {strange}")
    return [ids[int(line)] for line in lines]


def _from_csv(lines: list[str], keys: list[str], file: Path) -> list[str]:
    """Kaggle's list: a picture's name, then the id of its class and boxes."""
    wnids = {}
    for row in csv.DictReader(lines):
        first = (row.get("PredictionString") or "").split(" ")[0]
        if not WNID.fullmatch(first):
            raise ValueError(f"{file}: {row.get('ImageId')} has no WordNet id, got {first!r:.40}")
        wnids[row["ImageId"]] = first
    missing = next((key for key in keys if key not in wnids), None)
    if missing is not None:
        raise ValueError(f"{file}: has no label for {missing}")
    return [wnids[key] for key in keys]


def _synsets(file: Path) -> tuple[dict[str, str], dict[int, str]]:
    """Name of each WordNet id, and the id behind each of the development kit's numbers if it is that."""
    if file.suffix == ".mat":
        return _from_mat(file)
    names = {}
    for line in _text(file).splitlines():
        wnid, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if not WNID.fullmatch(wnid) or not name:
            raise ValueError(f"{file}: must hold lines like 'n01440764 tench, Tinca tinca', got {line!r:.60}")
        names[wnid] = name.strip()
    if not names:
        raise ValueError(f"{file}: names no class")
    return names, {}


def _from_mat(file: Path) -> tuple[dict[str, str], dict[int, str]]:
    """The classes among the synsets of ``meta.mat``: those without children."""
    try:
        synsets: Any = loadmat(file, squeeze_me=True, struct_as_record=True)["synsets"]
        leaves = [row for row in synsets if int(row["num_children"]) == 0]
        names = {str(row["WNID"]): str(row["words"]) for row in leaves}
        ids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except Exception as error:  # The reader of MATLAB files raises whatever a damaged one leads it to.
        raise ValueError(f"{file}: not the meta.mat of the development kit ({error})") from error
    if not names or not all(WNID.fullmatch(wnid) for wnid in names):
        raise ValueError(f"{file}: its synsets are no WordNet ids")
    return names, ids


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from error
