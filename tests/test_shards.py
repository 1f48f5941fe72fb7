"""Sets of shards on disk: writing, resuming, and the index."""

import errno
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from atdiff_core.data.contents import Captions
from atdiff_core.data.encoding import FormatChoice
from atdiff_core.data.index import INDEX_FILE, load_index, set_folder
from atdiff_core.data.sources import ArraySource, Source, SourceSample
from atdiff_core.data.unfinished import BROKEN_FILE, UNFINISHED
from atdiff_core.data.writing import write_shards
from atdiff_core.data.writing_plan import settings_file


def tiny_source(num_samples: int = 23, *, seed: int = 0) -> ArraySource:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num_samples, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 3, num_samples, dtype=np.uint8)
    return ArraySource("tiny", "CC0", ["a", "b", "c"], images, labels)


def write(source: Source, out: Path, *resolutions: int, samples_per_shard: int = 10, seed: int = 0) -> None:
    writing = write_shards(source, out, resolutions, image_channels=1, samples_per_shard=samples_per_shard, seed=seed)
    assert list(writing)[-1].done == len(source)


def hashes(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read_pictures(folder: Path, extension: str) -> dict[str, Image.Image]:
    urls = [str(file) for file in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    return {each["__key__"]: Image.open(io.BytesIO(each[extension])) for each in dataset}


def edit_index(folder: Path, **changes: object) -> None:
    content = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({**content, **changes}))


class TestWriting:
    def test_writing_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            write(tiny_source(), tmp_path / name, 8, 16)
        assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
        assert sorted(hashes(tmp_path / "first"))[:4] == [
            "16px/000000.members.safetensors",
            "16px/000000.tar",
            "16px/000001.members.safetensors",
            "16px/000001.tar",
        ]

    def test_the_webdataset_library_reads_the_shards(self, tmp_path: Path) -> None:
        source = tiny_source()
        write(source, tmp_path, 32)
        urls = [str(file) for file in sorted((tmp_path / "32px").glob("*.tar"))]
        dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("l8").to_tuple("__key__", "png", "cls")
        found = {key: (image, label) for key, image, label in dataset}
        assert len(found) == len(source)
        for image, label, key, _ in source:
            assert np.array_equal(found[key][0], np.asarray(image))
            assert found[key][1] == label

    def test_samples_are_shuffled_once_by_the_seed(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            write(tiny_source(), tmp_path / str(seed), 8, seed=seed)
        assert load_index(tmp_path / "0" / "8px").fingerprint != load_index(tmp_path / "1" / "8px").fingerprint

    @pytest.mark.parametrize("stop_after", [1, 9, 10, 15, 22, 23])
    def test_a_writing_that_was_interrupted_is_finished_by_the_same_call(self, tmp_path: Path, stop_after: int) -> None:
        write(tiny_source(), tmp_path / "straight", 8, 16)
        out = tmp_path / "interrupted"
        writing = write_shards(tiny_source(), out, [8, 16], image_channels=1, samples_per_shard=10)
        for _ in range(stop_after):
            next(writing)
        writing.close()  # type: ignore[attr-defined]
        assert not (out / "8px" / INDEX_FILE).exists()
        assert not list(out.rglob("*.tar.*"))
        write(tiny_source(), out, 8, 16)
        assert hashes(out) == hashes(tmp_path / "straight")

    def test_what_a_killed_writer_leaves_behind_is_written_over(self, tmp_path: Path) -> None:
        """Killed before its tar was whole, between its receipt and its name, and in the middle of a rename."""
        write(tiny_source(), tmp_path / "straight", 8)
        out = tmp_path / "killed"
        writing = write_shards(tiny_source(), out, [8], image_channels=1, samples_per_shard=10)
        for _ in range(21):
            next(writing)
        writing.close()  # type: ignore[attr-defined]
        whole = out / "8px" / "000001.tar"
        whole.rename(out / "8px" / UNFINISHED / "000001.tar.4711")
        (out / "8px" / UNFINISHED / "000002.tar.4711").write_bytes(b"half a t")
        (out / "8px" / ".000002.members.safetensors.4711").write_bytes(b"half a table")
        write(tiny_source(), out, 8)
        (out / "8px" / ".000002.members.safetensors.4711").unlink()
        assert hashes(out) == hashes(tmp_path / "straight")

    def test_a_receipt_that_does_not_fit_its_tar_ends_the_writing(self, tmp_path: Path) -> None:
        writing = write_shards(tiny_source(), tmp_path, [8], image_channels=1, samples_per_shard=10)
        for _ in range(12):
            next(writing)
        writing.close()  # type: ignore[attr-defined]
        tar = tmp_path / "8px" / "000000.tar"
        tar.write_bytes(tar.read_bytes()[:-512])
        with pytest.raises(ValueError, match=r"000000\.tar: has \d+ bytes, \d+ were written; delete it and run again"):
            write(tiny_source(), tmp_path, 8)
        tar.unlink()
        write(tiny_source(), tmp_path, 8)

    def test_shards_that_are_whole_are_not_written_again(self, tmp_path: Path) -> None:
        writing = write_shards(tiny_source(), tmp_path, [8], image_channels=1, samples_per_shard=10)
        for _ in range(15):
            next(writing)
        writing.close()  # type: ignore[attr-defined]
        before = (tmp_path / "8px" / "000000.tar").stat().st_mtime_ns
        write(tiny_source(), tmp_path, 8)
        assert (tmp_path / "8px" / "000000.tar").stat().st_mtime_ns == before

    def test_a_finished_set_is_left_alone_while_a_new_resolution_is_added(self, tmp_path: Path) -> None:
        write(tiny_source(), tmp_path, 8)
        before = (tmp_path / "8px" / INDEX_FILE).stat().st_mtime_ns
        write(tiny_source(), tmp_path, 8)
        write(tiny_source(), tmp_path, 8, 16)
        assert (tmp_path / "8px" / INDEX_FILE).stat().st_mtime_ns == before
        assert load_index(tmp_path / "16px").num_samples == 23

    def test_another_set_in_the_same_place_is_refused_with_both_settings(self, tmp_path: Path) -> None:
        write(tiny_source(), tmp_path, 8)
        with pytest.raises(ValueError, match=r"seed is 0, asked for 5\); choose another --out"):
            write(tiny_source(), tmp_path, 8, seed=5)
        with pytest.raises(ValueError, match=r"source_key is [0-9a-f]{64}, asked for [0-9a-f]{64}"):
            write(tiny_source(seed=1), tmp_path, 8)

    def test_an_unfinished_set_of_other_settings_is_refused(self, tmp_path: Path) -> None:
        next(write_shards(tiny_source(), tmp_path, [8], image_channels=1))
        with pytest.raises(ValueError, match="samples_per_shard is 1000, asked for 7"):
            write(tiny_source(), tmp_path, 8, samples_per_shard=7)
        settings_file(tmp_path / "8px").write_text("{}")
        with pytest.raises(ValueError, match=r"settings\.json: damaged"):
            write(tiny_source(), tmp_path, 8)

    def test_tars_of_someone_else_are_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "8px").mkdir()
        (tmp_path / "8px" / "000000.tar").write_bytes(b"precious")
        with pytest.raises(ValueError, match="tars of unknown origin; choose another --out"):
            write(tiny_source(), tmp_path, 8)
        assert (tmp_path / "8px" / "000000.tar").read_bytes() == b"precious"

    def test_arguments_out_of_range_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        for resolutions in ([], [0], [8, 8]):
            with pytest.raises(ValueError, match="resolutions must be"):
                write_shards(tiny_source(), tmp_path, resolutions, image_channels=1)
        with pytest.raises(ValueError, match="image_channels must be 1"):
            write_shards(tiny_source(), tmp_path, [8], image_channels=2)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="samples_per_shard must be >= 1"):
            write_shards(tiny_source(), tmp_path, [8], image_channels=1, samples_per_shard=0)
        with pytest.raises(ValueError, match="tiny: the source is empty"):
            write_shards(tiny_source(0), tmp_path, [8], image_channels=1)
        assert not list(tmp_path.iterdir())

    def test_a_full_disk_is_an_error_with_the_path_and_leaves_no_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = webdataset.TarWriter.write

        def write_until_full(tar: webdataset.TarWriter, sample: dict[str, str | bytes]) -> int:
            if sample["__key__"] == full_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(written(tar, sample))

        full_at = "00000007"
        monkeypatch.setattr(webdataset.TarWriter, "write", write_until_full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            write(tiny_source(), tmp_path, 8, 16)
        assert "8px" in str(caught.value.filename)
        assert (tmp_path / "8px" / UNFINISHED).is_dir()
        assert not list(tmp_path.rglob("*.tar.*")) + list(tmp_path.rglob(INDEX_FILE))
        monkeypatch.undo()
        write(tiny_source(), tmp_path, 8, 16)
        assert load_index(tmp_path / "16px").num_samples == 23


class TestFormats:
    @pytest.mark.parametrize("choice", ["png", "webp"])
    def test_lossless_formats_keep_every_pixel(self, tmp_path: Path, choice: FormatChoice) -> None:
        source = tiny_source()
        list(write_shards(source, tmp_path, [32], image_channels=1, image_format=choice))
        found = read_pictures(tmp_path / "32px", choice)
        assert all(np.array_equal(found[key].convert("L"), np.asarray(image)) for image, _, key, _ in source)
        assert load_index(tmp_path / "32px").image_formats == (choice,)

    def test_jpg_is_smaller_the_lower_its_quality(self, tmp_path: Path) -> None:
        for quality in (20, 95):
            out = tmp_path / str(quality)
            list(write_shards(tiny_source(), out, [32], image_channels=1, image_format="jpg", jpg_quality=quality))
            assert {image.format for image in read_pictures(out / "32px", "jpg").values()} == {"JPEG"}
        low, high = (load_index(tmp_path / quality / "32px").shards[0].bytes for quality in ("20", "95"))
        assert low < high

    def test_auto_takes_png_for_small_and_jpg_for_large(self, tmp_path: Path) -> None:
        list(write_shards(tiny_source(3), tmp_path, [255, 256], image_channels=1))
        assert load_index(tmp_path / "255px").image_formats == ("png",)
        assert load_index(tmp_path / "256px").image_formats == ("jpg",)

    def test_large_sets_are_cut_into_tars_of_about_the_bytes_asked_for(self, tmp_path: Path) -> None:
        source = tiny_source(60)
        list(write_shards(source, tmp_path, [32, 8], image_channels=1, samples_per_shard=20, shard_bytes=25_000))
        large, small = load_index(tmp_path / "32px"), load_index(tmp_path / "8px")
        assert [shard.samples for shard in large.shards] == [7, 7, 6] * 3
        assert [shard.samples for shard in small.shards] == [10] * 6
        assert all(12_500 < shard.bytes < 50_000 for shard in large.shards)
        alone = tmp_path / "alone"
        list(write_shards(source, alone, [32], image_channels=1, samples_per_shard=20, shard_bytes=25_000))
        assert hashes(alone / "32px") == hashes(tmp_path / "32px")


class Riddled(Source):
    """Every third sample is broken; every second has captions."""

    name, licence, classes, source_key = "riddled", "CC0", [], "0" * 64

    def __init__(self, total: int, *, broken_every: int = 3) -> None:
        self._total, self._broken_every = total, broken_every

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, number: int) -> SourceSample:
        if number % self._broken_every == 0:
            raise ValueError(f"{number}: not a readable image")
        captions = (f"number {number}", "with a\nline break", "  ") if number % 2 else ()
        return SourceSample(Image.new("RGB", (9, 9), (number, 0, 0)), None, f"{number:03d}", captions)


class TestBroken:
    def test_broken_samples_are_skipped_counted_and_listed(self, tmp_path: Path) -> None:
        list(write_shards(Riddled(20), tmp_path, [8, 4], image_channels=3, samples_per_shard=6))
        for side in ("8px", "4px"):
            index = load_index(tmp_path / side)
            assert (index.num_samples, index.broken, index.classes) == (13, 7, ())
            assert index.captions == Captions(layout="lines", samples=7, total=14)
            listed = {each["sample"] for each in json.loads((tmp_path / side / BROKEN_FILE).read_text())}
            assert listed == {f"sample {number}" for number in range(0, 20, 3)}

    def test_captions_are_one_a_line(self, tmp_path: Path) -> None:
        list(write_shards(Riddled(20), tmp_path, [8], image_channels=3))
        urls = [str(tmp_path / "8px" / "000000.tar")]
        texts = {each["__key__"]: each.get("txt") for each in webdataset.WebDataset(urls, shardshuffle=False)}
        assert texts["001"] == b"number 1\nwith a line break"
        assert texts["002"] is None

    def test_a_writing_interrupted_among_broken_samples_ends_the_same(self, tmp_path: Path) -> None:
        list(write_shards(Riddled(20), tmp_path / "straight", [8], image_channels=3, samples_per_shard=6))
        writing = write_shards(Riddled(20), tmp_path / "again", [8], image_channels=3, samples_per_shard=6)
        for _ in range(14):
            next(writing)
        writing.close()  # type: ignore[attr-defined]
        list(write_shards(Riddled(20), tmp_path / "again", [8], image_channels=3, samples_per_shard=6))
        assert hashes(tmp_path / "again") == hashes(tmp_path / "straight")

    def test_a_source_that_is_broken_throughout_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"riddled: all 5 samples are broken; the first: \d: not a readable"):
            list(write_shards(Riddled(5, broken_every=1), tmp_path, [8], image_channels=3))
        assert not (tmp_path / "8px" / INDEX_FILE).exists()


class TestIndex:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write(tiny_source(), tmp_path, 8)
        return set_folder(tmp_path, 8)

    def test_an_index_tells_what_the_set_holds(self, folder: Path) -> None:
        index = load_index(folder)
        assert (index.name, index.licence, index.classes) == ("tiny", "CC0", ("a", "b", "c"))
        assert (index.resolution, index.image_channels, index.num_samples) == (8, 1, 23)
        assert [(shard.file, shard.samples) for shard in index.shards] == [
            ("000000.tar", 10),
            ("000001.tar", 10),
            ("000002.tar", 3),
        ]
        assert len(index.fingerprint) == 64

    def test_a_missing_set_is_told_with_the_way_to_the_right_folder(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="no such folder of shards"):
            load_index(folder / "missing")
        with pytest.raises(ValueError, match=r"no index\.json; did you mean .*8px"):
            load_index(folder.parent)
        (folder / INDEX_FILE).unlink()
        with pytest.raises(ValueError, match=r"no index\.json; was its writing interrupted"):
            load_index(folder)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\x00"])
    def test_an_invalid_index_is_one_line_that_names_the_file(self, folder: Path, content: str) -> None:
        (folder / INDEX_FILE).write_text(content)
        with pytest.raises(ValueError, match=r"index\.json: not an index of shards") as caught:
            load_index(folder)
        assert "\n" not in str(caught.value)

    def test_a_shard_may_not_lie_outside_the_folder(self, folder: Path) -> None:
        edit_index(folder, shards=[{"file": "../000000.tar", "samples": 1, "bytes": 1, "sha256": "0" * 64}])
        with pytest.raises(ValueError, match=r"shards\.0\.file"):
            load_index(folder)

    def test_a_missing_or_shortened_shard_is_named(self, folder: Path) -> None:
        shard = folder / "000001.tar"
        content = shard.read_bytes()
        shard.write_bytes(content[:-1])
        with pytest.raises(
            ValueError, match=rf"000001\.tar: has {len(content) - 1} bytes, the index says {len(content)}"
        ):
            load_index(folder)
        shard.unlink()
        with pytest.raises(ValueError, match=r"000001\.tar: .*missing"):
            load_index(folder)

    def test_an_empty_set_is_refused(self, folder: Path) -> None:
        edit_index(folder, shards=[])
        with pytest.raises(ValueError, match="the set is empty"):
            load_index(folder)
