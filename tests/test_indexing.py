"""Tars that others wrote: indexed as they are, or refused."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from atdiff_core.data.index import INDEX_FILE, ShardIndex, load_index
from atdiff_core.data.indexing import IndexingSettings, examine, renew_tables, tars_in, write_index
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.stream import open_shards
from atdiff_core.data.unfinished import BROKEN_FILE
from atdiff_core.data.verifying import shard_findings

CAPTION = "A photo of\na café, by the sea"


def jpg(number: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, format="JPEG")
    return stream.getvalue()


def img2dataset_sample(number: int, **size: Any) -> dict[str, bytes]:
    """As img2dataset writes it: picture, caption, and a JSON record of where it was found."""
    record = {"url": f"https://a.example/{number}", "key": f"{number:09d}", "status": "success", "caption": CAPTION}
    return {"jpg": jpg(number, **size), "txt": CAPTION.encode(), "json": json.dumps(record).encode()}


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream, webdataset.TarWriter(stream, encoder=False) as tar:
        for key, members in samples.items():
            tar.write({"__key__": key, **members})


def indexed(folder: Path, **settings: Any) -> ShardIndex:
    asked = IndexingSettings(**{"name": "found", **settings})
    write_index(folder, [examine(tar, asked) for tar in tars_in(folder)], asked)
    return load_index(folder)


@pytest.fixture
def img2dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "laion"
    for shard in range(2):
        numbers = range(10_000 * shard, 10_000 * shard + 3)
        write_tar(folder / f"{shard:05d}.tar", {f"{number:09d}": img2dataset_sample(number) for number in numbers})
        (folder / f"{shard:05d}_stats.json").write_text("{}")
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return folder


class TestAsTheyAre:
    def test_img2dataset_tars_are_indexed_without_changing_them(self, img2dataset: Path) -> None:
        before = {tar.name: tar.read_bytes() for tar in tars_in(img2dataset)}
        index = indexed(img2dataset, licence="see each picture")
        assert {tar.name: tar.read_bytes() for tar in tars_in(img2dataset)} == before
        assert (index.num_samples, index.resolution, index.image_channels, index.prepared) == (6, 16, 3, True)
        assert (index.image_formats, index.classes, index.recipe, index.broken) == (("jpg",), (), None, 0)
        assert index.captions is not None
        assert (index.captions.layout, index.captions.samples, index.captions.total) == ("whole", 6, 6)
        table = MemberTable.load(members_file(img2dataset / "00001.tar"), tar_bytes=index.shards[1].bytes)
        place = table.place(table.rows["000010002"], "txt")
        assert place is not None
        assert before["00001.tar"][place.offset : place.offset + place.size].decode() == CAPTION
        assert table.extensions == ("jpg", "txt")
        assert not [line for shard in index.shards for line in shard_findings(img2dataset, shard, hashes=True)]

    def test_pictures_of_many_sizes_need_a_resolution_to_be_read_at(self, img2dataset: Path) -> None:
        write_tar(img2dataset / "00002.tar", {"1": img2dataset_sample(1, size=(40, 20))})
        with pytest.raises(ValueError, match="sides are 16 to 40 pixels; give the --resolution"):
            indexed(img2dataset)
        index = indexed(img2dataset, resolution=16, image_channels=1)
        assert (index.resolution, index.image_channels, index.prepared) == (16, 1, False)

    def test_grey_pictures_make_a_grey_set_and_others_a_coloured_one(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a" / "0.tar", {"1": {"jpg": jpg(1, mode="L")}, "2": {"jpg": jpg(2, mode="L")}})
        index = indexed(tmp_path / "a")
        assert (index.image_channels, index.prepared) == (1, True)
        write_tar(tmp_path / "b" / "0.tar", {"1": {"jpg": jpg(1, mode="L")}, "2": {"jpg": jpg(2, mode="CMYK")}})
        index = indexed(tmp_path / "b")
        assert (index.image_channels, index.prepared) == (3, False)

    def test_labels_are_named_or_numbered(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "0.tar", {str(n): {"jpg": jpg(n), "cls": b"%d" % (n % 2)} for n in range(4)})
        assert indexed(tmp_path).classes == ("0", "1")
        assert indexed(tmp_path, classes=("cat", "dog", "cow")).classes == ("cat", "dog", "cow")
        assert indexed(tmp_path, labels=False).classes == ()
        with pytest.raises(ValueError, match="label 1 is not one of the 1 classes"):
            indexed(tmp_path, classes=("cat",))
        write_tar(tmp_path / "1.tar", {"9": {"jpg": jpg(9)}})
        with pytest.raises(ValueError, match=r"1 of 5 samples have no \.cls; --no-labels"):
            indexed(tmp_path)

    def test_the_fingerprint_tells_how_labels_and_captions_are_read(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "0.tar", {str(n): {"jpg": jpg(n), "cls": b"0", "txt": b"a\nb"} for n in range(2)})
        ways: list[dict[str, Any]] = [{}, {"labels": False}, {"captions": "lines"}, {"captions": "none"}]
        assert len({indexed(tmp_path, **way).fingerprint for way in ways}) == 4
        assert indexed(tmp_path, licence="CC0").fingerprint == indexed(tmp_path).fingerprint

    def test_captions_may_be_one_a_line_or_left_out(self, img2dataset: Path) -> None:
        by_line = indexed(img2dataset, captions="lines").captions
        assert by_line is not None
        assert (by_line.layout, by_line.total) == ("lines", 12)
        assert indexed(img2dataset, captions="none").captions is None

    def test_the_stream_reads_each_sample_once_cropped_and_with_its_caption(self, img2dataset: Path) -> None:
        write_tar(img2dataset / "00002.tar", {"9": img2dataset_sample(9, size=(40, 20)), "cut": {"jpg": b"x"}})
        indexed(img2dataset, resolution=8)
        batch = next(open_shards(img2dataset).batches(seed=0, batch_size=7))
        assert batch.images.shape == (7, 3, 8, 8)
        assert sorted(batch.keys) == [*(f"{number:09d}" for number in (0, 1, 2, 10_000, 10_001, 10_002)), "9"]
        assert set(batch.captions) == {CAPTION}
        assert batch.labels.tolist() == [0] * 7


class TestBroken:
    def test_broken_samples_are_left_out_counted_and_listed(self, img2dataset: Path) -> None:
        whole = jpg(7)
        write_tar(
            img2dataset / "00002.tar",
            {
                "cut": {"jpg": whole[: len(whole) // 2]},
                "good": {"jpg": whole, "txt": b"fine"},
                "lonely": {"txt": b"no picture"},
                "latin": {"jpg": whole, "txt": "café".encode("latin-1")},
                "odd": {"jpg": whole, "cls": b"seven"},
            },
        )
        index = indexed(img2dataset)
        assert (index.num_samples, index.broken, index.shards[2].samples, index.shards[2].skipped) == (7, 4, 1, 3)
        listed = {each["sample"]: each["reason"] for each in json.loads((img2dataset / BROKEN_FILE).read_text())}
        assert set(listed) == {f"00002.tar: {key}" for key in ("cut", "lonely", "latin", "odd")}
        assert "not a readable image" in listed["00002.tar: cut"]
        assert not shard_findings(img2dataset, index.shards[2], hashes=True)

    def test_a_set_without_a_readable_sample_is_refused(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "0.tar", {"1": {"jpg": b"x"}})
        with pytest.raises(ValueError, match=r"no readable sample; the first: .*not a readable image"):
            indexed(tmp_path)
        assert not (tmp_path / INDEX_FILE).exists()

    def test_a_damaged_tar_is_refused(self, img2dataset: Path) -> None:
        tar = img2dataset / "00001.tar"
        tar.write_bytes(tar.read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"00001\.tar.*offset"):
            indexed(img2dataset)

    def test_folders_without_tars_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no such folder of tars"):
            tars_in(tmp_path / "missing")
        with pytest.raises(ValueError, match=r"holds no \*\.tar"):
            tars_in(tmp_path)

    def test_a_zipped_tar_is_no_tar(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "0.tar", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"))
        with pytest.raises(ValueError, match=r"0\.tar"):
            indexed(tmp_path)


class TestRenewing:
    def test_a_lost_or_changed_table_is_written_again_as_it_was(self, img2dataset: Path) -> None:
        indexed(img2dataset)
        first, second = (members_file(tar) for tar in tars_in(img2dataset))
        before = first.read_bytes(), second.read_bytes()
        first.unlink()
        second.write_bytes(b"damaged")
        assert renew_tables(img2dataset) == [first, second]
        assert (first.read_bytes(), second.read_bytes()) == before
        assert renew_tables(img2dataset) == []

    def test_the_table_of_another_tar_is_never_written(self, img2dataset: Path) -> None:
        indexed(img2dataset)
        members_file(img2dataset / "00000.tar").unlink()
        write_tar(img2dataset / "00000.tar", {"1": img2dataset_sample(1)})
        with pytest.raises(ValueError, match=r"00000\.tar: not the tar that was indexed"):
            renew_tables(img2dataset)
