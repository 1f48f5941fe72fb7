"""Sets of latents: encoded by a small, randomly initialised autoencoder of diffusers, streamed, and looked at."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from test_shards import hashes

from atdiff_core.autoencoders import load_autoencoder
from atdiff_core.data.index import load_index
from atdiff_core.data.latent_writing import begin_latents, encode_shard, finish_latents, plan_latents
from atdiff_core.data.overview import overview, pictures_of
from atdiff_core.data.stream import open_shards
from atdiff_core.data.verifying import shard_findings
from atdiff_core.data.writing import write_shards
from pipeline import cli


def tiny_autoencoder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 pictures in two classes with captions, one of them broken, in three shards."""
    source, out = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("set")
    for number in range(21):
        file = source / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.effect_noise((20, 16), 10 + 5 * number).convert("RGB").save(file)
        file.with_suffix(".txt").write_text(f"number {number}\nin other words {number}")
    file.write_bytes(b"broken")
    from atdiff_core.data.image_folder import image_folder

    list(write_shards(image_folder(source), out, [16], image_channels=3, samples_per_shard=8))
    return out / "16px"


def encoded(images: Path, out: Path, vae: Path, **options: object) -> Path:
    autoencoder = load_autoencoder(str(vae), dtype=options.get("dtype", "float32"))  # type: ignore[arg-type]
    plan = plan_latents(images, out, autoencoder, batch_size=4, device="cpu")
    begin_latents(plan)
    for number in range(len(plan.index.shards)):
        assert list(encode_shard(plan, number))[-1] == plan.index.shards[number].samples
    finish_latents(plan)
    return out


@pytest.fixture(scope="module")
def latents(images: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(images, tmp_path_factory.mktemp("latents") / "set", vae)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["atdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


class TestAutoencoder:
    def test_latents_are_shifted_and_scaled_means(self, vae: Path) -> None:
        picture = torch.rand(2, 3, 16, 16) * 2 - 1
        network = AutoencoderKL.from_pretrained(vae)
        with torch.no_grad():
            wanted = (network.encode(picture).latent_dist.mean - 0.25) * 0.5
            rebuilt = network.decode(network.encode(picture).latent_dist.mean).sample.clamp(-1, 1)
        autoencoder = load_autoencoder(str(vae))
        assert torch.allclose(autoencoder.encode(picture), wanted, atol=1e-5)
        assert torch.allclose(autoencoder.decode(wanted), rebuilt, atol=1e-4)

    def test_grey_pictures_are_spread_over_the_colours(self, vae: Path) -> None:
        autoencoder, grey = load_autoencoder(str(vae)), torch.rand(1, 1, 8, 8)
        assert torch.equal(autoencoder.encode(grey), autoencoder.encode(grey.expand(-1, 3, -1, -1)))

    def test_the_key_is_that_of_the_weights_wherever_they_lie(self, vae: Path, tmp_path: Path) -> None:
        key = load_autoencoder(str(vae)).key
        assert load_autoencoder(str(tiny_autoencoder(tmp_path / "pipeline" / "vae").parent)).key == key
        assert load_autoencoder(str(tiny_autoencoder(tmp_path / "other", seed=1))).key != key

    def test_other_folders_and_pickled_weights_are_refused(self, vae: Path, tmp_path: Path) -> None:
        for missing in (str(tmp_path / "missing"), "missing", "../missing/vae", "owner/name/more"):
            with pytest.raises(ValueError, match="no such folder of an autoencoder, and no id of a hub"):
                load_autoencoder(missing)
        (tmp_path / "pickled").mkdir()
        (tmp_path / "pickled" / "config.json").write_text((vae / "config.json").read_text())
        torch.save(
            AutoencoderKL.from_pretrained(vae).state_dict(), tmp_path / "pickled" / "diffusion_pytorch_model.bin"
        )
        with pytest.raises(ValueError, match="no AutoencoderKL in safetensors"):
            load_autoencoder(str(tmp_path / "pickled"))

    def test_pictures_that_do_not_fit_are_refused(self, vae: Path) -> None:
        with pytest.raises(ValueError, match="resolutions must be multiples of 2, got 15"):
            load_autoencoder(str(vae)).describe(15, 3)


class TestLatents:
    def test_every_latent_is_that_of_its_picture_with_label_and_captions(
        self, images: Path, latents: Path, vae: Path
    ) -> None:
        pictures = overview(images, 100)
        found = overview(latents, 100)
        assert (found.shown.keys, found.shown.captions) == (pictures.shown.keys, pictures.shown.captions)
        assert torch.equal(found.shown.labels, pictures.shown.labels)
        wanted = load_autoencoder(str(vae)).encode(pictures.content)
        assert torch.allclose(found.content, wanted, atol=1e-5)

    def test_the_index_tells_what_the_latents_are(self, images: Path, latents: Path, vae: Path) -> None:
        of_images, index = load_index(images), load_index(latents)
        assert index.latents == load_autoencoder(str(vae)).describe(16, 3)
        assert (index.kind, index.sample_channels, index.sample_side, index.resolution) == ("latents", 3, 8, 16)
        assert (index.captions, index.classes, index.broken) == (of_images.captions, of_images.classes, 1)
        assert index.source_key == of_images.fingerprint
        assert [shard.samples for shard in index.shards] == [shard.samples for shard in of_images.shards]
        assert not [line for shard in index.shards for line in shard_findings(latents, shard, hashes=True)]

    def test_the_stream_gives_latents_in_place_of_images(self, latents: Path) -> None:
        batch = next(open_shards(latents).batches(seed=0, batch_size=8))
        assert (batch.images.shape, batch.images.dtype) == ((8, 3, 8, 8), torch.float32)
        assert all("number" in caption or "in other words" in caption for caption in batch.captions)

    def test_the_same_pictures_give_the_same_bytes_also_after_an_interruption(
        self, images: Path, latents: Path, vae: Path, tmp_path: Path
    ) -> None:
        plan = plan_latents(images, tmp_path / "again", load_autoencoder(str(vae)), batch_size=4, device="cpu")
        begin_latents(plan)
        list(encode_shard(plan, 1))
        half = encode_shard(plan, 0)
        next(half)
        half.close()  # type: ignore[attr-defined]
        assert hashes(encoded(images, tmp_path / "again", vae)) == hashes(latents)

    def test_half_precision_takes_half_the_bytes_and_stays_close(
        self, images: Path, latents: Path, vae: Path, tmp_path: Path
    ) -> None:
        half = encoded(images, tmp_path / "half", vae, dtype="bfloat16")
        exact, rounded = overview(latents, 20).content, overview(half, 20).content
        assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()

    def test_another_set_in_the_same_place_is_refused(
        self, images: Path, latents: Path, vae: Path, tmp_path: Path
    ) -> None:
        other = load_autoencoder(str(tiny_autoencoder(tmp_path / "other", seed=1)))
        with pytest.raises(ValueError, match="choose another --out"):
            plan_latents(images, latents, other, batch_size=4, device="cpu")
        with pytest.raises(ValueError, match="choose another --out"):
            plan_latents(images, images, other, batch_size=4, device="cpu")
        with pytest.raises(ValueError, match="holds latents already"):
            plan_latents(latents, tmp_path / "new", other, batch_size=4, device="cpu")

    def test_a_damaged_picture_is_named_with_its_offset(self, images: Path, vae: Path, tmp_path: Path) -> None:
        import shutil

        copy = tmp_path / "copy"
        shutil.copytree(images, copy)
        content = bytearray((copy / "000001.tar").read_bytes())
        content[1600] ^= 1
        (copy / "000001.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"000001\.tar, offset \d+: \d+\.\w+ was changed"):
            encoded(copy, tmp_path / "out", vae)


class TestLooking:
    def test_latents_decode_to_pictures_or_stand_for_colours(self, latents: Path, vae: Path) -> None:
        seen = overview(latents, 5)
        assert pictures_of(seen.content, seen.index, load_autoencoder(str(vae))).shape == (5, 3, 16, 16)
        assert pictures_of(seen.content, seen.index, None).shape == (5, 3, 8, 8)

    def test_figures_are_those_of_the_samples(self, images: Path) -> None:
        seen = overview(images, 20)
        assert np.allclose(seen.channel_means, seen.content.mean(dim=(0, 2, 3)))
        assert seen.labels == {0: 10, 1: 10}
        with pytest.raises(ValueError, match="must be >= 1, got 0"):
            overview(images, 0)

    def test_show_draws_pictures_and_reconstructions(
        self, images: Path, latents: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        sheet = tmp_path / "sheet.png"
        assert run(monkeypatch, "shards", "show", images, "--out", sheet, "--number", 6, "--columns", 3) == 0
        assert Image.open(sheet).size == (3 * 50, 2 * 50)
        told = capsys.readouterr().out
        assert "40 of 20 samples, 2.00 each" in told
        assert "| in other words" in told
        both = ("shards", "show", latents, "--out", sheet, "--number", 6, "--columns", 3, "--images", images)
        assert run(monkeypatch, *both) == 0
        assert Image.open(sheet).size == (3 * 50, 4 * 50)
        assert "6 samples, decoded" in capsys.readouterr().out

    def test_the_wrong_autoencoder_or_images_are_refused(
        self, latents: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        other = tiny_autoencoder(tmp_path / "other", seed=1)
        sheet = tmp_path / "sheet.png"
        assert run(monkeypatch, "shards", "show", latents, "--out", sheet, "--autoencoder", other) == 2
        assert "its weights differ" in capsys.readouterr().err
        assert run(monkeypatch, "shards", "show", images, "--out", sheet, "--autoencoder", other) == 2
        assert run(monkeypatch, "shards", "show", latents, "--out", sheet, "--images", latents) == 2


def test_the_command_encodes_and_leaves_a_finished_set_alone(
    images: Path, latents: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    asked = ("latents", images, "--autoencoder", vae, "--out", out, "--batch-size", 4, "--workers", 1)
    assert run(monkeypatch, *asked) == 0
    assert "20 latents, 2 classes, 40 captions, 3 shards" in capsys.readouterr().out
    assert load_index(out).fingerprint == load_index(latents).fingerprint
    before = (out / "000000.tar").stat().st_mtime_ns
    assert run(monkeypatch, *asked) == 0
    assert (out / "000000.tar").stat().st_mtime_ns == before
    assert run(monkeypatch, *asked[:-2], "--dtype", "float16") == 2
