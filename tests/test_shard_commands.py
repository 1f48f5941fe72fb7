"""``atdiff shards …`` from the command line, and the same bytes from Ray's workers as from one process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_imagenet import official_tar
from test_indexing import img2dataset
from test_latents import tiny_autoencoder
from test_shards import hashes

from atdiff_core.autoencoders import load_autoencoder
from atdiff_core.data.index import load_index
from atdiff_core.data.latent_writing import plan_latents
from atdiff_core.data.members import MemberTable
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.data.writing_plan import planned
from pipeline import cli, shard_writing
from pipeline.cluster import ray_session
from pipeline.latent_writing import write_latents
from pipeline.parallel import chosen_workers, in_parts
from pipeline.shard_writing import write_plan

__all__ = ["img2dataset", "official_tar"]  # Fixtures.


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["atdiff", "shards", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Pictures with sentences in several languages, as Tux Paint's stamps have them."""
    for number, name in enumerate(["cat", "dog", "hen"]):
        (tmp_path / "stamps" / "animals").mkdir(parents=True, exist_ok=True)
        file = tmp_path / "stamps" / "animals" / f"{name}.png"
        Image.fromarray(np.full((20, 30, 4), 80 * number, dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(f"A {name}.\nde.utf8=Ein Tier.\n")
    (tmp_path / "stamps" / "animals" / "cut.png").write_bytes(file.read_bytes()[:40])
    return tmp_path / "stamps"


class TestCommands:
    def test_a_folder_with_captions_and_a_broken_picture(
        self, stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert run(monkeypatch, "folder", stamps, "--out", out, "--resolutions", "8,16", "--captions", "first") == 0
        told = capsys.readouterr().out
        assert "3 images, 1 classes, 3 captions, 1 shards" in told
        assert "1 broken left out, see broken.json" in told
        assert run(monkeypatch, "verify", out, "--decode") == 0
        assert capsys.readouterr().out.count("sound") == 2

    def test_imagenet_from_its_tar(self, official_tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "out"
        asked = ("imagenet", official_tar, "--out", out, "--resolutions", "8,16", "--format", "webp")
        assert run(monkeypatch, *asked) == 0
        index = load_index(out / "16px")
        assert (index.num_samples, len(index.classes), index.image_formats) == (6, 3, ("webp",))
        assert "non-commercial" in index.licence

    def test_img2dataset_tars_are_indexed_and_verified(
        self, img2dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, "index", img2dataset, "--licence", "various") == 0
        assert "6 images, 6 captions, 2 shards" in capsys.readouterr().out
        assert run(monkeypatch, "verify", img2dataset) == 0

    def test_damage_is_told_and_ends_with_one(
        self, img2dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(monkeypatch, "index", img2dataset)
        content = bytearray((img2dataset / "00001.tar").read_bytes())
        place = MemberTable.of_tar(img2dataset / "00001.tar").place(2, "jpg")
        assert place is not None
        content[place.offset + 300] ^= 1
        (img2dataset / "00001.tar").write_bytes(content)
        assert run(monkeypatch, "verify", img2dataset, "--no-hashes") == 0
        capsys.readouterr()
        assert run(monkeypatch, "verify", img2dataset) == 1
        assert "damaged" in (told := capsys.readouterr().out)
        assert f"00001.tar, offset {place.offset}: the {place.size} bytes" in told

    @pytest.mark.parametrize(
        "arguments",
        [
            ("verify", "nowhere"),
            ("index", "nowhere"),
            ("folder", "nowhere", "--out", "o", "--resolutions", "8"),
            ("folder", ".", "--out", "o", "--resolutions", "8", "--captions", "some"),
            ("coco", "nowhere", "--captions", "x.json", "--out", "o"),
            ("imagenet", "nowhere", "--out", "o", "--split", "test"),
            ("imagenet", "nowhere", "--out", "o"),
        ],
    )
    def test_bad_input_is_one_line_and_ends_with_two(
        self, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, *arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestWorkers:
    def test_few_samples_stay_in_one_process(self) -> None:
        assert chosen_workers(0, samples=19_999) == 1
        assert chosen_workers(0, samples=20_000) >= 1
        assert chosen_workers(3, samples=1) == 3
        with pytest.raises(ValueError, match="workers must be >= 0"):
            chosen_workers(-1, samples=1)

    def test_without_ray_there_is_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.parallel.find_spec", lambda name: None)
        assert chosen_workers(0, samples=10**9) == 1
        with pytest.raises(ValueError, match="2 workers need Ray"):
            chosen_workers(2, samples=1)


@pytest.mark.cluster
def test_rays_workers_write_the_same_bytes_and_their_errors_are_plain(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (230, 20, 20), dtype=np.uint8)
    source = ArraySource("noise", "CC0", ["a", "b"], images, (np.arange(230) % 2).astype(np.uint8))
    list(write_shards(source, tmp_path / "alone", [16, 8], image_channels=1, samples_per_shard=25))
    plan = planned(source, tmp_path / "shared", [16, 8], image_channels=1, samples_per_unit=25)

    vae = tiny_autoencoder(tmp_path / "vae")

    def broken_part(shared: str, part: int) -> Iterator[int]:  # Inside, so that it travels to the workers whole.
        yield part
        if part == 1:
            raise ValueError(f"{shared} is broken")

    with ray_session(2):
        write_plan(plan, workers=2)
        assert hashes(tmp_path / "shared") == hashes(tmp_path / "alone")
        index = load_index(tmp_path / "shared" / "16px")
        assert (
            shard_writing.verify_folder(tmp_path / "shared" / "16px", index, hashes=True, decode=True, workers=2) == []
        )
        encode(tmp_path / "shared" / "16px", tmp_path / "latents", vae, workers=2)
        with pytest.raises(ValueError, match=r"^it is broken$"):
            list(in_parts(broken_part, "it", 3, workers=2))
    encode(tmp_path / "alone" / "16px", tmp_path / "latents alone", vae, workers=1)
    shared, alone = open_shards(tmp_path / "latents"), open_shards(tmp_path / "latents alone")
    ours, theirs = torch.cat(list(shared.images())), torch.cat(list(alone.images()))
    assert torch.allclose(ours, theirs, atol=1e-5)  # To rounding: workers may convolve with another number of threads.
    one, other = (next(each.batches(seed=0, batch_size=230)) for each in (shared, alone))
    assert one.keys == other.keys
    assert torch.equal(one.labels, other.labels)


def encode(images: Path, out: Path, vae: Path, *, workers: int) -> None:
    plan = plan_latents(images, out, load_autoencoder(str(vae)), batch_size=8, device="cpu")
    write_latents(plan, workers=workers)
