"""Small autoencoders and CLIPs of one's own: they learn, go on where they were, and open in stock libraries."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from text_models import SENTENCES, stamps_folder

from atdiff_core.autoencoders import load_autoencoder
from atdiff_core.clip import load_clip
from atdiff_core.data.stamps import stamps
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.pretraining.augmentation import mirrored, shifted
from atdiff_core.pretraining.autoencoder import AutoencoderRun, AutoencoderShape, save_autoencoder
from atdiff_core.pretraining.clip import ClipRun, ClipShape, ClipTask, retrieval, save_clip, tokenizer_for
from atdiff_core.pretraining.loop import PretrainingState, Schedule, pretraining, restore_state, save_state
from atdiff_core.pretraining.words import SMALLEST, trained_tokenizer
from atdiff_core.randomness import Randomness
from atdiff_core.text_encoders import load_text_encoder
from pipeline import cli

CLIP_SHAPE = ClipShape(resolution=16, vocabulary=600, tokens=12, width=16, layers=1, heads=2)
SHAPE = AutoencoderShape(resolution=16, channels=(8, 8))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("pairs")
    source = stamps(stamps_folder(tmp_path_factory.mktemp("stamps")))
    list(write_shards(source, out, [16], image_channels=3, samples_per_shard=64))
    return open_shards(out / "16px")


def schedule(pairs: ShardSet, steps: int) -> Schedule:
    return Schedule(steps=steps, batch_size=12, learning_rate=5e-3, warmup_steps=2, dataset=pairs.fingerprint)


def autoencoder(pairs: ShardSet, steps: int) -> tuple[AutoencoderRun, PretrainingState]:
    run = AutoencoderRun(shape=SHAPE, schedule=schedule(pairs, steps))
    return run, PretrainingState.fresh(SHAPE.build(seed=0), run.schedule)


class TestLoop:
    def test_an_interrupted_training_ends_with_the_same_weights(self, pairs: ShardSet, tmp_path: Path) -> None:
        run, whole = autoencoder(pairs, 6)
        list(pretraining(run, run.schedule, whole, pairs))
        _, first = autoencoder(pairs, 6)
        next(pretraining(run, run.schedule, first, pairs, report_every=2))
        save_state(first, run.key, tmp_path)
        _, second = autoencoder(pairs, 6)
        restore_state(second, run.key, tmp_path)
        assert second.steps == 2
        reports = list(pretraining(run, run.schedule, second, pairs, report_every=2))
        assert [report.step for report in reports] == [4, 6]
        ours, theirs = second.network.state_dict(), whole.network.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_a_state_of_other_settings_or_other_data_is_refused(
        self, pairs: ShardSet, digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        run, state = autoencoder(pairs, 2)
        save_state(state, run.key, tmp_path)
        with pytest.raises(ValueError, match="other settings or on other data"):
            restore_state(state, run.but(posterior_weight=1.0).key, tmp_path)
        with pytest.raises(ValueError, match="made for dataset"):
            next(pretraining(run, run.schedule, state, digits_8px))
        next(tmp_path.glob("*.safetensors")).write_bytes(b"")
        with pytest.raises(ValueError, match="missing or damaged"):
            restore_state(state, run.key, tmp_path)

    def test_the_learning_rate_rises_and_falls_to_zero(self, pairs: ShardSet) -> None:
        plan = schedule(pairs, 100).but(warmup_steps=10)
        rates = [plan.learning_rate_at(step) for step in range(101)]
        assert rates[0] == pytest.approx(5e-4)
        assert max(rates) == rates[9]
        assert rates[50] == pytest.approx(2.5e-3)
        assert rates[100] == 0


class TestAugmentation:
    def test_views_are_of_the_same_picture_and_by_the_seed(self) -> None:
        images = torch.rand(5, 3, 8, 8)
        randomness = Randomness(0, range(5))
        flipped = mirrored(images, randomness)
        for image, view in zip(images, flipped, strict=True):
            assert torch.equal(view, image) or torch.equal(view, image.flip(-1))
        moved = shifted(images, randomness, pixels=2)
        assert torch.equal(moved, shifted(images, randomness, pixels=2))
        assert torch.equal(shifted(images, randomness, pixels=0), images)
        for image, view in zip(images, moved, strict=True):
            assert set(view.flatten().tolist()) <= set(image.flatten().tolist())
            windows = image.unfold(1, 4, 1).unfold(2, 4, 1).permute(1, 2, 0, 3, 4)
            assert (windows == view[:, 2:6, 2:6]).flatten(2).all(2).any()


class TestAutoencoder:
    def test_it_learns_and_its_latents_have_deviation_one(self, pairs: ShardSet, tmp_path: Path) -> None:
        run, state = autoencoder(pairs, 60)
        reports = list(pretraining(run, run.schedule, state, pairs))
        assert reports[-1].losses["absolute_error"] < 0.5 * reports[0].losses["absolute_error"]
        figures = save_autoencoder(state.network, pairs, tmp_path)
        opened = load_autoencoder(str(tmp_path))
        images = torch.cat(list(pairs.images()))
        latents = opened.encode(images)
        assert latents.shape == (len(images), 4, 8, 8)
        assert float(latents.std()) == pytest.approx(1, rel=1e-4)
        error = (opened.decode(latents) - images).abs().mean()
        assert float(error) == pytest.approx(figures["absolute_error"], rel=1e-4)
        assert AutoencoderKL.from_pretrained(tmp_path).config.shift_factor is None

    def test_the_divergence_is_that_of_two_gaussians(self, pairs: ShardSet) -> None:
        run, state = autoencoder(pairs, 1)
        batch = next(pairs.batches(seed=0, batch_size=4))
        randomness = Randomness(0, batch.positions)
        losses = run.losses(state.network, batch, randomness)
        posterior = state.network.encode(mirrored(batch.images, randomness)).latent_dist
        ours = torch.distributions.Normal(posterior.mean, posterior.std)
        expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).mean()
        torch.testing.assert_close(losses["divergence"], expected)
        torch.testing.assert_close(losses["loss"], losses["absolute_error"] + 1e-4 * expected)

    def test_what_cannot_be_built_is_refused(self) -> None:
        with pytest.raises(ValueError, match="multiple of 4, got 18"):
            AutoencoderShape(resolution=18)
        with pytest.raises(ValueError, match="multiples of groups = 8"):
            AutoencoderShape(resolution=16, channels=(12, 16))


class TestWords:
    def test_the_same_captions_give_the_same_tokenizer_and_nothing_is_unknown(self) -> None:
        one, other = (trained_tokenizer(SENTENCES, vocabulary=700, tokens=32) for _ in range(2))
        assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
        text = "a red squirrel, naïve! 日"
        ids = one(text).input_ids
        assert ids[0] == one.bos_token_id
        assert ids[-1] == one.eos_token_id
        assert one.unk_token_id not in ids[1:-1]
        assert one.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
        assert len(one("red square").input_ids) == 4  # Learned words are one token each.
        with pytest.raises(ValueError, match=f"room for {SMALLEST} tokens, got 500"):
            trained_tokenizer(SENTENCES, vocabulary=500, tokens=8)


class TestClip:
    @pytest.fixture(scope="class")
    def trained(self, pairs: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("clip")
        tokenizer = tokenizer_for(pairs, CLIP_SHAPE)
        run = ClipRun(shape=CLIP_SHAPE, shift=0, schedule=schedule(pairs, 80))
        state = PretrainingState.fresh(CLIP_SHAPE.build(tokenizer, seed=0), run.schedule)
        list(pretraining(ClipTask(run, tokenizer), run.schedule, state, pairs))
        save_clip(state.network, tokenizer, CLIP_SHAPE, folder)
        return folder

    def test_it_learns_which_sentence_goes_with_which_picture(self, trained: Path, pairs: ShardSet) -> None:
        clip = load_clip(str(trained))
        found = retrieval(clip.network, clip.processor.tokenizer, pairs)
        assert found["pairs"] == 36
        assert found["top5"] > 0.5  # By chance 5 of 36; colours tell thirds of the pictures apart.

    def test_its_text_tower_is_a_text_encoder(self, trained: Path) -> None:
        encoder, clip = load_text_encoder(str(trained)), load_clip(str(trained))
        words = clip.processor.tokenizer(SENTENCES[:2], padding="max_length", return_tensors="pt")
        hidden = clip.network.text_model(**words).last_hidden_state
        read = words.attention_mask.bool()  # A pipeline lets the padding take part, behind the sentence's end.
        torch.testing.assert_close(encoder.encode(SENTENCES[:2])[read], hidden[read], atol=1e-5, rtol=1e-5)
        assert (encoder.tokens, encoder.width) == (12, 16)

    def test_its_processor_prepares_pictures_as_the_stream_does(self, trained: Path, pairs: ShardSet) -> None:
        batch = next(pairs.batches(seed=0, batch_size=4))
        pixels = (
            load_clip(str(trained))
            .processor(images=[image.permute(2, 0, 1) for image in batch.content], return_tensors="pt")
            .pixel_values
        )
        torch.testing.assert_close(pixels, batch.images, atol=1e-5, rtol=0)

    def test_equal_sentences_are_right_answers_for_each_other(self, pairs: ShardSet) -> None:
        tokenizer = tokenizer_for(pairs, CLIP_SHAPE)
        run = ClipRun(shape=CLIP_SHAPE, shift=0, schedule=schedule(pairs, 1))
        network = CLIP_SHAPE.build(tokenizer, seed=0)
        batch = next(pairs.batches(seed=0, batch_size=6))
        same = type(batch)(batch.content, batch.labels, [SENTENCES[0]] * 6, batch.positions, batch.numbers, batch.keys)
        losses = ClipTask(run, tokenizer).losses(network, same, Randomness(0, batch.positions))
        assert float(losses["found"]) == 1

    def test_too_few_captions_are_refused(self, digits_8px: ShardSet) -> None:
        with pytest.raises(ValueError, match="no sentence can be learned"):
            tokenizer_for(digits_8px, CLIP_SHAPE)


def test_both_are_trained_from_the_command_line_and_left_alone_afterwards(
    pairs: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def atdiff(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["atdiff", "pretrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out + printed.err

    fast = ("--steps", 3, "--batch-size", 8, "--threads", 1)
    vae = ("autoencoder", pairs.path, "--out", tmp_path / "vae", "--channels", "8,8", *fast)
    code, told = atdiff(*vae)
    assert code == 0
    assert "16 px to 4 x 8 x 8; scaling_factor" in told
    written = (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert atdiff(*vae)[0] == 0
    assert (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    code, told = atdiff(*vae, "--seed", 1)
    assert code == 2
    assert "holds a model of other settings" in told.replace("\n", " ")
    small = ("--vocabulary", 600, "--tokens", 12, "--width", 16, "--layers", 1)
    code, told = atdiff("clip", pairs.path, "--out", tmp_path / "clip", "--held-out", pairs.path, *small, *fast)
    assert code == 0
    assert "held_out/top5" in told
    load_text_encoder(str(tmp_path / "clip"))
