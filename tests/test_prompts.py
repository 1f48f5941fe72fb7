"""Captions through a text encoder, once: what is stored is what a stock pipeline would compute."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from text_models import SENTENCES, stamps_folder, text_encoder
from transformers import CLIPTokenizer

from atdiff_core.data.prompts import PromptPlan, load_prompts, plan_prompts, write_prompts
from atdiff_core.data.stamps import stamps
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.text_encoders import load_text_encoder
from pipeline import cli


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stamps_folder(tmp_path_factory.mktemp("stamps"))


@pytest.fixture(scope="module")
def pairs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("pairs")
    list(write_shards(stamps(pictures), out, [16], image_channels=3, samples_per_shard=16))
    return open_shards(out / "16px")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("encoder"))


def planned(pairs: ShardSet, encoder: Path, out: Path, dtype: str = "float32") -> PromptPlan:
    return plan_prompts(pairs, load_text_encoder(str(encoder)), out, dtype=dtype)  # type: ignore[arg-type]


class TestPrompts:
    def test_an_embedding_is_what_a_stock_pipeline_computes(
        self, pairs: ShardSet, encoder: Path, tmp_path: Path
    ) -> None:
        list(write_prompts(planned(pairs, encoder, tmp_path)))
        prompts, loaded = load_prompts(tmp_path), load_text_encoder(str(encoder))
        pipeline = StableDiffusionPipeline(
            None, loaded.network, loaded.tokenizer, None, None, None, None, requires_safety_checker=False
        )
        positive, negative = pipeline.encode_prompt(SENTENCES[:3], "cpu", 1, True)
        torch.testing.assert_close(prompts.of(SENTENCES[:3]), positive, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(prompts.empty, negative[0], atol=1e-6, rtol=1e-5)
        assert prompts.of(SENTENCES[:3]).shape == (3, prompts.tokens, prompts.width) == (3, 16, 16)
        assert torch.equal(prompts.of([""])[0], prompts.empty)
        assert len(prompts) == 1 + len(SENTENCES)
        assert prompts.encoder_key == loaded.key

    def test_an_interrupted_writing_goes_on_and_ends_with_the_same_bytes(
        self, pairs: ShardSet, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("atdiff_core.data.prompts.FILE_BYTES", 4 * 16 * 16 * 4)  # Four captions a file.
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        list(write_prompts(planned(pairs, encoder, whole)))
        steps = write_prompts(planned(pairs, encoder, broken))
        while next(steps) < 6:
            pass
        steps.close()
        with pytest.raises(ValueError, match="interrupted, run it again"):
            load_prompts(broken)
        first = (broken / "prompts-00000.safetensors").stat().st_mtime_ns
        list(write_prompts(planned(pairs, encoder, broken)))
        assert (broken / "prompts-00000.safetensors").stat().st_mtime_ns == first
        files = sorted(file.name for file in whole.iterdir())
        assert files == sorted(file.name for file in broken.iterdir())
        assert len(files) == 4
        assert all((whole / name).read_bytes() == (broken / name).read_bytes() for name in files)
        assert torch.equal(load_prompts(broken).of(SENTENCES), load_prompts(whole).of(SENTENCES))
        assert list(write_prompts(planned(pairs, encoder, whole))) == []

    def test_the_fingerprint_changes_with_the_encoder_the_captions_and_the_precision(
        self, pairs: ShardSet, encoder: Path, pictures: Path, tmp_path: Path
    ) -> None:
        plans = [planned(pairs, encoder, tmp_path), planned(pairs, encoder, tmp_path, "bfloat16")]
        plans.append(planned(pairs, text_encoder(tmp_path / "other", seed=1), tmp_path))
        shutil.copytree(pictures, tmp_path / "changed")
        (tmp_path / "changed" / "other" / "01.txt").write_text("Something else.")
        list(write_shards(stamps(tmp_path / "changed"), tmp_path / "set", [16], image_channels=3, samples_per_shard=16))
        plans.append(planned(open_shards(tmp_path / "set" / "16px"), encoder, tmp_path))
        assert len({plan.settings.fingerprint for plan in plans}) == 4
        assert planned(pairs, encoder, tmp_path / "elsewhere").settings.fingerprint == plans[0].settings.fingerprint

    def test_bfloat16_is_the_same_to_its_precision(self, pairs: ShardSet, encoder: Path, tmp_path: Path) -> None:
        list(write_prompts(planned(pairs, encoder, tmp_path / "half", "bfloat16")))
        list(write_prompts(planned(pairs, encoder, tmp_path / "full")))
        half, full = load_prompts(tmp_path / "half"), load_prompts(tmp_path / "full")
        assert half.of(SENTENCES).dtype == torch.float32
        torch.testing.assert_close(half.of(SENTENCES), full.of(SENTENCES), atol=0.02, rtol=0.01)

    def test_what_cannot_be_is_one_clear_line(
        self, pairs: ShardSet, digits_8px: ShardSet, encoder: Path, tmp_path: Path
    ) -> None:
        list(write_prompts(planned(pairs, encoder, tmp_path / "prompts")))
        with pytest.raises(ValueError, match=r"no embedding of the caption 'A zebra\.'"):
            load_prompts(tmp_path / "prompts").of([SENTENCES[0], "A zebra."])
        with pytest.raises(ValueError, match="no sample has a caption"):
            planned(digits_8px, encoder, tmp_path / "digits")
        with pytest.raises(ValueError, match="of another encoder; choose another --out"):
            planned(pairs, text_encoder(tmp_path / "other", seed=1), tmp_path / "prompts")
        with pytest.raises(ValueError, match=r"no prompts\.json; write them with `atdiff prompts`"):
            load_prompts(tmp_path)
        (tmp_path / "prompts" / "prompts-00000.safetensors").write_bytes(b"broken")
        with pytest.raises(ValueError, match="not readable"):
            load_prompts(tmp_path / "prompts")


class TestEncoders:
    def test_a_tokenizer_with_more_words_than_its_encoder_is_refused(self, tmp_path: Path) -> None:
        folder, larger = text_encoder(tmp_path / "one"), text_encoder(tmp_path / "two")
        tokenizer = CLIPTokenizer.from_pretrained(larger / "tokenizer")
        tokenizer.add_tokens(["<learned>"])
        tokenizer.save_pretrained(folder / "tokenizer")
        with pytest.raises(ValueError, match=r"the tokenizer knows \d+ tokens, its encoder only \d+"):
            load_text_encoder(str(folder))

    def test_a_tokenizer_of_another_length_is_refused(self, tmp_path: Path) -> None:
        folder = text_encoder(tmp_path)
        file = folder / "tokenizer" / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 77}))
        with pytest.raises(ValueError, match="up to 77 tokens of a sentence, its encoder takes 16"):
            load_text_encoder(str(folder))

    def test_both_lie_in_one_folder_or_as_in_a_pipeline(self, encoder: Path, tmp_path: Path) -> None:
        for part in ("text_encoder", "tokenizer"):
            shutil.copytree(encoder / part, tmp_path / "flat", dirs_exist_ok=True)
        assert load_text_encoder(str(tmp_path / "flat")).key == load_text_encoder(str(encoder)).key
        with pytest.raises(ValueError, match="no such folder of a text encoder"):
            load_text_encoder(str(tmp_path / "nowhere"))
        with pytest.raises(ValueError, match="no CLIPTextModel in safetensors"):
            load_text_encoder(str(tmp_path))

    def test_a_long_sentence_is_cut_and_counted(self, encoder: Path) -> None:
        loaded = load_text_encoder(str(encoder))
        long = "A red square and a green disc and a blue star and a red disc and a green square."
        assert loaded.cut([*SENTENCES, long]) == 1
        assert loaded.encode([long]).shape == (1, 16, 16)


class TestStamps:
    def test_only_pictures_with_an_english_sentence_are_kept(self, pictures: Path) -> None:
        source = stamps(pictures)
        assert (len(source), source.without_sentence, source.drawings) == (36, 4, 1)
        assert all(sample.captions in [(sentence,) for sentence in SENTENCES] for sample in source)

    def test_the_parts_are_disjoint_and_together_all(self, pictures: Path) -> None:
        parts = [stamps(pictures, part) for part in ("train", "val", "all")]
        train, val, everything = ({part.origin(number) for number in range(len(part))} for part in parts)
        assert train | val == everything
        assert not train & val
        assert len({part.source_key for part in parts}) == 3

    def test_transparent_parts_become_white(self, pairs: ShardSet) -> None:
        images = torch.cat(list(pairs.images()))
        assert torch.equal(images[:, :, 0, 0], torch.ones(len(images), 3))
        assert (images.amin(dim=(1, 2, 3)) < -0.9).all()

    def test_captions_are_read_without_their_pictures(self, pairs: ShardSet) -> None:
        batch = next(pairs.batches(seed=0, batch_size=pairs.num_samples))
        captions = list(pairs.captions())
        assert [captions[number] for number in batch.numbers] == [(caption,) for caption in batch.captions]


def test_from_pictures_to_prompts_on_the_command_line(
    pictures: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def atdiff(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["atdiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
        return printed.out

    told = atdiff("shards", "stamps", pictures, "--out", tmp_path / "set", "--resolutions", 16)
    assert "4 pictures without a sentence, 1 drawings in SVG" in told
    told = atdiff("prompts", tmp_path / "set" / "16px", "--encoder", encoder, "--out", tmp_path / "prompts")
    assert "10 captions with the empty one, 16 x 16" in told
    assert len(load_prompts(tmp_path / "prompts")) == 10
