"""Captions as a text encoder sees them, computed once for a set and read where they lie."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.data.stream import ShardSet
from atdiff_core.files import read_json, sha256_of, write_json
from atdiff_core.text_encoders import TextEncoder

MANIFEST, UNFINISHED = "prompts.json", "unfinished.json"
FILE_BYTES = 256 * 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EMBEDDINGS, DIGESTS = "embeddings", "captions"
NAMED_CHARACTERS = 60

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PromptFile(Config):
    """One file of embeddings.

    Attributes:
        captions: How many it holds.
    """

    file: Annotated[str, Field(pattern=r"^prompts-\d{5}\.safetensors$")]
    captions: Annotated[int, Field(ge=1)]
    sha256: Sha256


class PromptSettings(Config):
    """All that decides what a folder of prompts holds.

    Attributes:
        encoder: Folder or hub id of the text encoder, as it was given.
        encoder_key: sha256 of its configuration, weights and tokenizer.
        tokens: Places of a sentence.
        width: Numbers for each token.
        dtype: In which they are stored.
        captions_key: sha256 of all captions, the empty one first, then in the order of the shards.
    """

    encoder: str
    encoder_key: Sha256
    tokens: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    dtype: Literal["float32", "bfloat16"]
    captions_key: Sha256

    @property
    def fingerprint(self) -> str:
        """The content address of the prompts: which captions, as which encoder sees them; 64 hexadecimal digits."""
        return hashlib.sha256("/".join([self.captions_key, self.encoder_key, self.dtype]).encode()).hexdigest()


class PromptManifest(Config):
    """What a finished folder of prompts holds.

    Attributes:
        captions: Different captions, the empty one included.
        cut: How many of them have more tokens than there are places.
    """

    settings: PromptSettings
    captions: Annotated[int, Field(ge=1)]
    cut: Annotated[int, Field(ge=0)]
    files: Annotated[tuple[PromptFile, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """Captions, and where their embeddings go.

    Attributes:
        captions: Different ones, the empty one first.
    """

    captions: list[str]
    encoder: TextEncoder
    settings: PromptSettings
    out: Path

    @property
    def rows_per_file(self) -> int:
        """Captions in a file of about ``FILE_BYTES``."""
        row = self.settings.tokens * self.settings.width * DTYPES[self.settings.dtype].itemsize
        return max(1, FILE_BYTES // row)


def plan_prompts(
    shards: ShardSet, encoder: TextEncoder, out: Path, *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> PromptPlan:
    """Decide how a set's captions become embeddings; all of them are read.

    A sample without a caption stands for the empty one, which is always among the prompts.

    Raises:
        ValueError: If not one sample has a caption, or the folder is taken by other prompts.
    """
    known: dict[str, None] = {"": None}
    for captions in shards.captions():
        known.update(dict.fromkeys(captions))
    if len(known) == 1:
        raise ValueError(f"{shards.path}: no sample has a caption; write the set from pictures with a .txt beside each")
    settings = PromptSettings(
        encoder=encoder.name,
        encoder_key=encoder.key,
        tokens=encoder.tokens,
        width=encoder.width,
        dtype=dtype,
        captions_key=hashlib.sha256(b"".join(map(_digest, known))).hexdigest(),
    )
    for file in (out / MANIFEST, out / UNFINISHED):
        if file.exists() and _settings_in(file).fingerprint != settings.fingerprint:
            raise ValueError(f"{out}: holds prompts of other captions or of another encoder; choose another --out")
    return PromptPlan(captions=list(known), encoder=encoder, settings=settings, out=out)


def write_prompts(plan: PromptPlan, *, batch_size: int = 64) -> Iterator[int]:
    """Yields how many captions are encoded; interrupted and called again, it goes on with the first missing file."""
    if (plan.out / MANIFEST).exists():
        return
    write_json(plan.out / UNFINISHED, plan.settings.model_dump(mode="json"))
    files, cut = [], 0
    for number, start in enumerate(range(0, len(plan.captions), plan.rows_per_file)):
        captions = plan.captions[start : start + plan.rows_per_file]
        file = plan.out / f"prompts-{number:05d}.safetensors"
        if not file.exists():  # Under its name it is whole.
            pieces = []
            for first in range(0, len(captions), batch_size):
                pieces.append(plan.encoder.encode(captions[first : first + batch_size]))
                yield start + first + len(pieces[-1])
            _write(file, captions, torch.cat(pieces).to(DTYPES[plan.settings.dtype]))
        cut += plan.encoder.cut(captions)
        files.append(PromptFile(file=file.name, captions=len(captions), sha256=sha256_of(file)))
        yield start + len(captions)
    manifest = PromptManifest(settings=plan.settings, captions=len(plan.captions), cut=cut, files=tuple(files))
    write_json(plan.out / MANIFEST, manifest.model_dump(mode="json"))
    (plan.out / UNFINISHED).unlink()


class Prompts:
    """Embeddings of captions; the files are mapped into memory, so that only what is asked for is read."""

    def __init__(self, folder: Path, manifest: PromptManifest) -> None:
        self.folder, self.manifest = folder, manifest
        settings = manifest.settings
        self._embeddings: list[Tensor] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for number, entry in enumerate(manifest.files):
            tensors = _loaded(folder / entry.file)
            shape = (entry.captions, settings.tokens, settings.width)
            if set(tensors) != {EMBEDDINGS, DIGESTS} or tuple(tensors[EMBEDDINGS].shape) != shape:
                raise ValueError(f"{folder / entry.file}: not the prompts that {MANIFEST} lists; write them again")
            self._embeddings.append(tensors[EMBEDDINGS])
            digests = tensors[DIGESTS].numpy().tobytes()
            for row in range(entry.captions):
                self._places[digests[32 * row : 32 * (row + 1)]] = number, row
        self.empty: Tensor = self.of([""])[0]

    @property
    def fingerprint(self) -> str:
        return self.manifest.settings.fingerprint

    @property
    def encoder(self) -> str:
        """Folder or hub id of the text encoder, as it was given."""
        return self.manifest.settings.encoder

    @property
    def encoder_key(self) -> str:
        return self.manifest.settings.encoder_key

    @property
    def tokens(self) -> int:
        return self.manifest.settings.tokens

    @property
    def width(self) -> int:
        return self.manifest.settings.width

    def __len__(self) -> int:
        return self.manifest.captions

    def of(self, captions: Sequence[str]) -> Tensor:
        """``[captions, tokens, width]``, float32; that of ``""`` is ``empty``.

        Raises:
            ValueError: If a caption is not among them; names it.
        """
        places = [self._place(caption) for caption in captions]
        return torch.stack([self._embeddings[number][row].float() for number, row in places])

    def check_encoder(self, key: str, name: str) -> None:
        """Refuse an encoder, given by its key, that did not make these.

        Raises:
            ValueError: It is another one.
        """
        if key != self.encoder_key:
            raise ValueError(f"{name}: not the text encoder of the prompts in {self.folder}, which is {self.encoder}")

    def _place(self, caption: str) -> tuple[int, int]:
        place = self._places.get(_digest(caption))
        if place is None:
            shown = caption if len(caption) <= NAMED_CHARACTERS else caption[:NAMED_CHARACTERS] + "..."
            raise ValueError(
                f"{self.folder}: has no embedding of the caption {shown!r}; `atdiff prompts` makes one of every "
                "caption of a set"
            )
        return place


def load_prompts(folder: Path) -> Prompts:
    """The prompts in a folder that ``atdiff prompts`` wrote.

    Raises:
        ValueError: If they are missing, unfinished or damaged.
    """
    if not (folder / MANIFEST).is_file():
        hint = "its writing was interrupted, run it again" if (folder / UNFINISHED).is_file() else "write them"
        raise ValueError(f"{folder}: no {MANIFEST}; {hint} with `atdiff prompts`")
    try:
        manifest = PromptManifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError as error:
        raise ValueError(f"{folder / MANIFEST}: not a list of prompts ({error.errors()[0]['msg']})") from error
    return Prompts(folder, manifest)


def _settings_in(file: Path) -> PromptSettings:
    content = read_json(file)
    try:
        return PromptSettings.model_validate(content["settings"] if file.name == MANIFEST else content)
    except (ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged; delete {file.parent} and write the prompts again") from error


def _loaded(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: {MANIFEST} lists this file, but it is missing; write the prompts again") from None
    except Exception as error:  # safetensors has its own kinds.
        raise ValueError(f"{file}: not readable ({error}); write the prompts again") from error


def _write(file: Path, captions: Sequence[str], embeddings: Tensor) -> None:
    digests = torch.frombuffer(bytearray(b"".join(map(_digest, captions))), dtype=torch.uint8).view(-1, 32)
    scratch = file.with_suffix(".tmp")
    save_file({EMBEDDINGS: embeddings.contiguous(), DIGESTS: digests.clone()}, scratch)
    scratch.replace(file)


def _digest(caption: str) -> bytes:
    return hashlib.sha256(caption.encode()).digest()
