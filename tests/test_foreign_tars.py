"""Tars of other tools, read as they are: webdataset's own, and img2dataset's layout; captions."""

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from atdiff_core.data.contents import Captions
from atdiff_core.data.index import INDEX_FILE, Shard, ShardIndex
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.resize import resized
from atdiff_core.data.stream import ShardSet, open_shards

Sample = dict[str, bytes | str]


def indexed(folder: Path, tars: list[list[Sample]], **changes: object) -> ShardSet:
    """Tars by webdataset's writer, with the index and the tables that make them a set."""
    shards = []
    for number, samples in enumerate(tars):
        tar = folder / f"{number:05d}.tar"
        with webdataset.TarWriter(str(tar), encoder=False) as writer:
            for sample in samples:
                writer.write(sample)
        table = MemberTable.of_tar(tar)
        members_file(tar).write_bytes(table.to_bytes())
        shards.append(Shard.of(tar, samples=len(table)))
    settings: dict[str, object] = {
        "name": "foreign", "licence": "", "classes": (), "source_key": "", "resolution": 8, "image_channels": 3,
        "image_formats": ("png",), "prepared": True, "captions": None, "latents": None, "recipe": None, "broken": 0,
        "tool_version": "", "shards": tuple(shards),
    }  # fmt: skip
    (folder / INDEX_FILE).write_text(ShardIndex.model_validate(settings | changes).model_dump_json())
    return open_shards(folder)


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind)
    return out.getvalue()


def pixels_by_key(shards: ShardSet) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    batch = next(shards.batches(seed=0, batch_size=shards.num_samples))
    return dict(zip(batch.keys, batch.content.numpy(), strict=True))


def test_tars_of_webdatasets_writer_are_read(tmp_path: Path) -> None:
    images = [picture(number) for number in range(10)]
    samples: list[Sample] = [
        {"__key__": f"folder/sample{number}", "png": encoded(image), "cls": str(number % 2).encode(), "note.pyd": b"x"}
        for number, image in enumerate(images)
    ]
    shards = indexed(tmp_path, [samples[:6], samples[6:]], classes=("a", "b"))
    found = pixels_by_key(shards)
    assert len(found) == 10
    for number, image in enumerate(images):
        assert np.array_equal(found[f"folder/sample{number}"], np.asarray(image))
    batch = next(shards.batches(seed=0, batch_size=10))
    assert [int(key[-1]) % 2 for key in batch.keys] == batch.labels.tolist()


def test_tars_of_img2datasets_layout_are_read(tmp_path: Path) -> None:
    """jpg, txt and json by nine digits; pictures of any size and mode become the set's."""
    sizes = [((8, 8), "RGB"), ((16, 16), "RGB"), ((30, 19), "RGB"), ((40, 40), "L"), ((5, 9), "RGB")]
    contents = [encoded(picture(number, *size), "JPEG") for number, size in enumerate(sizes)]
    samples: list[Sample] = [
        {
            "__key__": f"{number:09d}",
            "jpg": content,
            "txt": f"picture {number}, two\nlines".encode(),
            "json": json.dumps({"url": "https://example.org", "status": "success"}).encode(),
        }
        for number, content in enumerate(contents)
    ]
    shards = indexed(
        tmp_path,
        [samples],
        image_formats=("jpg",),
        prepared=False,
        captions=Captions(layout="whole", samples=len(samples), total=len(samples)),
    )
    found = pixels_by_key(shards)
    for number, content in enumerate(contents):
        with Image.open(io.BytesIO(content)) as image:
            wanted = np.asarray(resized(image, 8, image_channels=3))
        assert np.array_equal(found[f"{number:09d}"], wanted)
    batch = next(shards.batches(seed=0, batch_size=5))
    assert batch.captions == [f"picture {int(key)}, two\nlines" for key in batch.keys]
    assert batch.labels.tolist() == [0] * 5


class TestCaptions:
    @pytest.fixture
    def shards(self, tmp_path: Path) -> ShardSet:
        """Eight pictures, of which number n has n captions."""
        samples: list[Sample] = []
        for number in range(8):
            lines = [f"{number}: caption {line}" for line in range(number)]
            text: Sample = {"txt": "\n".join(lines).encode()} if number != 1 else {"txt": b"1: caption 0\n\n"}
            samples.append({"__key__": str(number), "png": encoded(picture(number))} | (text if number else {}))
        return indexed(tmp_path, [samples], captions=Captions(layout="lines", samples=7, total=28))

    def test_every_caption_of_a_sample_comes_in_some_epoch(self, shards: ShardSet) -> None:
        seen: dict[str, set[str]] = {}
        for batch in islice(shards.batches(seed=0, batch_size=8), 80):
            for key, caption in zip(batch.keys, batch.captions, strict=True):
                seen.setdefault(key, set()).add(caption)
        assert seen.pop("0") == {""}
        assert seen == {str(n): {f"{n}: caption {line}" for line in range(n)} for n in range(1, 8)}

    def test_the_choice_is_the_same_for_everybody_and_another_for_another_seed(self, shards: ShardSet) -> None:
        def captions(seed: int, world_size: int = 1) -> list[str]:
            ranks = [
                shards.batches(seed=seed, batch_size=8, rank=rank, world_size=world_size) for rank in range(world_size)
            ]
            steps = [[next(rank).captions for rank in ranks] for _ in range(5)]
            return [caption for step in steps for row in zip(*step, strict=True) for caption in row]

        assert captions(0) == captions(0, 4) != captions(1)
