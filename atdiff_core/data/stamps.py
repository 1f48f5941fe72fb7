"""Tux Paint's stamps: small pictures, each with a sentence that says what it shows."""

import re
from pathlib import Path
from typing import Literal

from atdiff_core.data.image_folder import ImageFolder
from atdiff_core.randomness import derived_seed

LICENCE = "GPL-2 (Tux Paint stamps)"
Part = Literal["train", "val", "all"]
HELD_OUT = 8
"""One in so many pictures is held out for validation."""
_TRANSLATED = re.compile(r"[a-z]{2,3}(_[A-Z]{2})?(@\w+)?\.utf-?8=", re.IGNORECASE)


class Stamps(ImageFolder):
    """Pictures with a sentence; see ``stamps``.

    Attributes:
        without_sentence: Pictures that were left out because nothing says what they show.
        drawings: Drawings in SVG that were left out: nothing here turns them into pixels.
    """

    def __init__(self, path: Path, part: Part) -> None:
        super().__init__(path, licence=LICENCE, captions="first")
        self.name = f"tuxpaint-stamps-{part}"
        told = [entry for entry in self._files if self._captions_of(path / entry[0])]
        self.without_sentence = len(self._files) - len(told)
        self.drawings = sum(file.is_file() for file in path.rglob("*.svg"))
        self._files = [entry for entry in told if part in ("all", _part_of(entry[0]))]
        if not self._files:
            raise ValueError(f"{path}: no picture of the part {part!r} has a sentence in a .txt file beside it")

    def _captions_of(self, file: Path) -> tuple[str, ...]:
        """The sentence in English, which comes first; its translations start with their language."""
        return tuple(line for line in super()._captions_of(file) if not _TRANSLATED.match(line))


def stamps(path: Path, part: str = "all") -> Stamps:
    """The stamps below ``path/<category>/``, those with an English sentence beside them.

    They come with Debian's ``tuxpaint-stamps-default`` in ``/usr/share/tuxpaint/stamps`` (GPL-2).

    Args:
        part: ``val`` is an eighth of the pictures, chosen by their names, ``train`` the others,
            ``all`` both. Some stamps are drawn much like others, so the parts are not strangers.

    Raises:
        ValueError: If the folder is missing or has no such picture.
    """
    if part not in ("train", "val", "all"):
        raise ValueError(f"split must be train, val or all, got {part!r}")
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; on Debian, apt install tuxpaint-stamps-default brings one")
    chosen: Part = "train" if part == "train" else "val" if part == "val" else "all"
    return Stamps(path, chosen)


def _part_of(name: str) -> Literal["train", "val"]:
    return "val" if derived_seed("stamps", name) % HELD_OUT == 0 else "train"
