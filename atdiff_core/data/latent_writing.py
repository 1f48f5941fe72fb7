"""Encoding a set of images: a set of latents with the same shards, keys, labels and captions."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from safetensors.torch import save

from atdiff_core.autoencoders import Autoencoder, load_autoencoder
from atdiff_core.config import Config
from atdiff_core.data.batch import scaled
from atdiff_core.data.contents import Contents, Latents
from atdiff_core.data.decoding import LATENT, SampleDecoder
from atdiff_core.data.index import INDEX_FILE, ShardIndex, load_index
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.tar_walk import LATENT_EXTENSION
from atdiff_core.data.unfinished import UNFINISHED, UnfinishedShard, errors_naming, is_whole, receipt_of
from atdiff_core.data.writing_plan import settings_file
from atdiff_core.files import write_json

COPIED = ("cls", "txt")


class LatentSettings(Config):
    """All that decides the bytes of a set of latents.

    Attributes:
        images: Fingerprint of the set that is encoded.
        batch_size: Images encoded together, which rounds the last digits.
    """

    images: str
    latents: Latents
    batch_size: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class LatentPlan:
    """A set of images and where its latents go; shards can be encoded in any order, by any process.

    Attributes:
        device: Of torch, on which to encode.
    """

    images: Path
    out: Path
    settings: LatentSettings
    device: str

    @cached_property
    def index(self) -> ShardIndex:
        """Of the images."""
        return load_index(self.images)


def plan_latents(images: Path, out: Path, autoencoder: Autoencoder, *, batch_size: int, device: str) -> LatentPlan:
    """Decide how a set of images becomes one of latents.

    Raises:
        ValueError: If the set holds latents already, the autoencoder does not take its images, or
            the folder is taken by another set.
    """
    index = load_index(images)
    if index.latents is not None:
        raise ValueError(f"{images}: holds latents already")
    latents = autoencoder.describe(index.resolution, index.image_channels)
    settings = LatentSettings(images=index.fingerprint, latents=latents, batch_size=batch_size)
    plan = LatentPlan(images=images, out=out, settings=settings, device=device)
    _check_place(plan)
    return plan


def is_encoded(plan: LatentPlan) -> bool:
    """Whether the set of latents is there."""
    return (plan.out / INDEX_FILE).exists()


def begin_latents(plan: LatentPlan) -> None:
    """Make the folder, with the settings in it."""
    with errors_naming(settings_file(plan.out)):
        write_json(settings_file(plan.out), plan.settings.model_dump(mode="json"))


def encode_shard(plan: LatentPlan, number: int) -> Iterator[int]:
    """Encode one shard unless it is there; yields how many of its samples are done.

    Raises:
        ValueError: If a sample is damaged; names its shard and offset.
    """
    shard = plan.index.shards[number]
    target = plan.out / shard.file
    if is_whole(target):
        yield shard.samples
        return
    latents = plan.settings.latents
    autoencoder = load_autoencoder(latents.autoencoder, device=plan.device, dtype=latents.dtype)
    tar = plan.images / shard.file
    table = MemberTable.load(members_file(tar), tar_bytes=shard.bytes)
    reader = _Reader(tar, table, SampleDecoder(plan.index))
    with UnfinishedShard(target) as written:
        for start in range(0, len(table), plan.settings.batch_size):
            rows = range(start, min(start + plan.settings.batch_size, len(table)))
            images = scaled(torch.stack([reader.image(row) for row in rows]))
            for row, latent in zip(rows, autoencoder.encode(images), strict=True):
                content = save({LATENT: latent.contiguous()})
                written.write(table.key(row), {LATENT_EXTENSION: content, **reader.copied(row)})
            yield rows.stop
        written.finish()


def finish_latents(plan: LatentPlan) -> ShardIndex:
    """Write the index: from here on the set exists."""
    images = plan.index
    index = ShardIndex(
        **{name: getattr(images, name) for name in Contents.model_fields if name != "source_key"},
        source_key=images.fingerprint,
        image_formats=(),
        prepared=True,
        captions=images.captions,
        latents=plan.settings.latents,
        recipe=None,
        broken=images.broken,
        tool_version=version("atdiff"),
        shards=tuple(receipt_of(plan.out / shard.file).shard for shard in images.shards),
    )
    with errors_naming(plan.out / INDEX_FILE):
        write_json(plan.out / INDEX_FILE, index.model_dump(mode="json"))
    shutil.rmtree(plan.out / UNFINISHED)
    return index


@dataclass(frozen=True)
class _Reader:
    """Samples of one tar of images."""

    tar: Path
    table: MemberTable
    decoder: SampleDecoder

    def image(self, row: int) -> torch.Tensor:
        """``[height, width, channels]``, uint8."""
        extension = self.table.content_extension(row)
        content = self._member(row, extension)
        try:
            return torch.from_numpy(self.decoder.decoded(content, extension).copy())
        except ValueError as error:
            raise ValueError(f"{self.tar}, sample {self.table.key(row)}: {error}") from error

    def copied(self, row: int) -> dict[str, bytes]:
        """Label and captions as they are."""
        return {each: self._member(row, each) for each in COPIED if self.table.place(row, each) is not None}

    def _member(self, row: int, extension: str) -> bytes:
        place = self.table.place(row, extension)
        assert place is not None
        with self.tar.open("rb") as stream:
            stream.seek(place.offset)
            content = stream.read(place.size)
        if not self.table.is_intact(row, extension, content):
            raise ValueError(f"{self.tar}, offset {place.offset}: {self.table.key(row)}.{extension} was changed")
        return content


def _check_place(plan: LatentPlan) -> None:
    """An error if the folder is taken by another set."""
    if (plan.out / INDEX_FILE).exists():
        present = load_index(plan.out)
        same = present.latents == plan.settings.latents and present.source_key == plan.settings.images
    elif settings_file(plan.out).exists():
        try:
            same = LatentSettings.model_validate_json(settings_file(plan.out).read_bytes()) == plan.settings
        except ValidationError:
            same = False
    else:
        same = not any(plan.out.glob("*.tar"))
    if not same:
        raise ValueError(f"{plan.out}: holds another set, or latents of other settings; choose another --out")
