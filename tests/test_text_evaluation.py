"""Text-to-image models judged through stock pipelines of diffusers, at tiny size."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from text_models import SENTENCES, clip_folder, pipeline_folder, stamps_folder, text_encoder
from torchmetrics.functional.multimodal import clip_score

from atdiff_core.clip import load_clip
from atdiff_core.data.prompts import load_prompts, plan_prompts, write_prompts
from atdiff_core.data.stamps import stamps
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.metrics.features import as_uint8
from atdiff_core.metrics.text_match import TextMatch
from atdiff_core.text_encoders import load_text_encoder
from atdiff_core.text_sampling import TextSampler, chosen_pairs, open_pipeline, pipeline_key
from pipeline import cli
from pipeline.evaluations import Cell, Sampled
from pipeline.text_evaluations import TextEvaluationConfig, TextEvaluator, by_arm, named_models

SAMPLERS = (TextSampler(nfe=1, guidance=3), TextSampler(nfe=2, guidance=3))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("pairs")
    source = stamps(stamps_folder(tmp_path_factory.mktemp("stamps")))
    list(write_shards(source, out, [16], image_channels=3, samples_per_shard=64))
    return open_shards(out / "16px")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def guided(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline_folder(tmp_path_factory.mktemp("guided"), encoder, distilled=False)


@pytest.fixture(scope="module")
def students(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("students")
    return [pipeline_folder(root / str(seed), encoder, distilled=True, seed=seed) for seed in (1, 2)]


def evaluator(pairs: ShardSet, clip: Path, cache: Path, *, count: int = 6, batch_size: int = 4) -> TextEvaluator:
    config = TextEvaluationConfig(count=count, samplers=SAMPLERS)
    return TextEvaluator(config, pairs, load_clip(str(clip)), cache, batch_size=batch_size)


def finished(events: Iterator[Cell | Sampled]) -> tuple[list[Cell], int]:
    """Cells, and the images that were made for them."""
    seen = list(events)
    cells = [event for event in seen if isinstance(event, Cell)]
    return cells, sum(event.images for event in seen if isinstance(event, Sampled))


class TestSampling:
    @pytest.mark.parametrize("kind", ["guided", "distilled"])
    def test_an_image_depends_on_its_own_index_and_caption_only(
        self, kind: str, guided: Path, students: list[Path]
    ) -> None:
        opened = open_pipeline(guided if kind == "guided" else students[0])
        sampler = TextSampler(nfe=2, guidance=3)
        together, _ = opened.images(SENTENCES[:5], range(5), sampler, seed=7)
        alone, _ = opened.images([SENTENCES[3]], [3], sampler, seed=7)
        torch.testing.assert_close(together[3:4], alone, atol=1e-4, rtol=0)
        assert together.shape == (5, 3, 16, 16)
        assert (opened.resolution, opened.latent_shape) == (16, (4, 8, 8))
        other, _ = opened.images([SENTENCES[0]], [3], sampler, seed=7)
        assert not torch.allclose(other, alone, atol=1e-3)

    def test_it_is_the_stock_pipelines_own_image(self, guided: Path) -> None:
        from diffusers import StableDiffusionPipeline

        opened = open_pipeline(guided)
        ours, _ = opened.images(SENTENCES[:1], [0], TextSampler(nfe=3, guidance=4), seed=0)
        latents = []
        hook = opened.pipeline.unet.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0][:1]))
        opened.images(SENTENCES[:1], [0], TextSampler(nfe=1, guidance=4), seed=0)
        hook.remove()
        stock = StableDiffusionPipeline.from_pretrained(guided)
        stock.set_progress_bar_config(disable=True)
        theirs = stock(SENTENCES[0], latents=latents[0], num_inference_steps=3, guidance_scale=4, output_type="pt")
        torch.testing.assert_close(ours, theirs.images * 2 - 1, atol=1e-4, rtol=0)

    def test_guidance_asks_twice_and_a_distilled_model_once(self, guided: Path, students: list[Path]) -> None:
        teacher, student = open_pipeline(guided), open_pipeline(students[0])
        assert teacher.images(SENTENCES[:2], range(2), TextSampler(nfe=4, guidance=3), seed=0)[1] == 8
        assert teacher.images(SENTENCES[:2], range(2), TextSampler(nfe=4, guidance=1), seed=0)[1] == 4
        assert student.images(SENTENCES[:2], range(2), TextSampler(nfe=4, guidance=3), seed=0)[1] == 4

    def test_stored_prompts_give_the_same_images(
        self, pairs: ShardSet, encoder: Path, guided: Path, tmp_path: Path
    ) -> None:
        list(write_prompts(plan_prompts(pairs, load_text_encoder(str(encoder)), tmp_path)))
        arguments = (SENTENCES[:2], range(2), TextSampler(nfe=2, guidance=3))
        ours, _ = open_pipeline(guided, prompts=load_prompts(tmp_path)).images(*arguments, seed=0)
        theirs, _ = open_pipeline(guided).images(*arguments, seed=0)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    def test_the_key_follows_the_weights(self, guided: Path, students: list[Path]) -> None:
        keys = {pipeline_key(folder) for folder in (guided, *students)}
        assert len(keys) == 3
        assert pipeline_key(guided) in keys

    def test_what_is_no_pipeline_is_refused(self, encoder: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no model_index\.json"):
            open_pipeline(encoder)
        (tmp_path / "model_index.json").write_text('{"_class_name": "Anything"}')
        with pytest.raises(ValueError, match=r"must be a StableDiffusionPipeline or a .*, got 'Anything'"):
            pipeline_key(tmp_path)


class TestPairs:
    def test_captioned_samples_come_in_their_order_again_and_again(self, pairs: ShardSet) -> None:
        captions = list(pairs.captions())
        chosen = chosen_pairs(pairs, 40, seed=0)
        assert chosen.samples == [*range(36), 0, 1, 2, 3]
        assert all(caption in captions[sample] for caption, sample in zip(chosen.captions, chosen.samples, strict=True))

    def test_a_set_without_captions_is_refused(self, digits_8px: ShardSet) -> None:
        with pytest.raises(ValueError, match="no sample has a caption"):
            chosen_pairs(digits_8px, 4, seed=0)


class TestMatch:
    def test_the_score_is_the_mean_cosine_however_it_is_gathered(self, pairs: ShardSet, clip: Path) -> None:
        loaded = load_clip(str(clip))
        images, captions = pairs.samples_at(list(range(6))), chosen_pairs(pairs, 6, seed=0).captions
        whole, parts = TextMatch(loaded), TextMatch(loaded)
        whole.add(images, captions)
        parts.add(images[:2], captions[:2])
        parts.add(images[2:], captions[2:])
        words = loaded.processor.tokenizer(captions, padding=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = loaded.network(pixel_values=images, **words)
        cosines = (outputs.image_embeds * outputs.text_embeds).sum(dim=1)
        assert whole.clip_score == pytest.approx(max(100 * float(cosines.mean()), 0), abs=0.05)  # A byte's last digit.
        assert parts.clip_score == pytest.approx(whole.clip_score, abs=1e-3)

    def test_it_is_torchmetrics_own(self, pairs: ShardSet, clip: Path) -> None:
        from atdiff_core.metrics.text_match import _Adapter

        loaded = load_clip(str(clip))
        images, captions = pairs.samples_at([0, 1, 2]), chosen_pairs(pairs, 3, seed=0).captions
        match = TextMatch(loaded)
        match.add(images, captions)
        theirs = clip_score(
            as_uint8(images), captions, model_name_or_path=lambda: (_Adapter(loaded.network), loaded.processor)
        )
        assert match.clip_score == pytest.approx(float(theirs), abs=1e-4)


class TestEvaluator:
    def test_figures_do_not_depend_on_the_batch_size(
        self, pairs: ShardSet, clip: Path, students: list[Path], tmp_path: Path
    ) -> None:
        models = named_models([str(students[0])])
        cells, images = finished(evaluator(pairs, clip, tmp_path / "a", batch_size=4).judged(models))
        others, _ = finished(evaluator(pairs, clip, tmp_path / "b", batch_size=5).judged(models))
        assert images == 12
        for cell, other in zip(cells, others, strict=True):
            assert cell.figures == pytest.approx(other.figures, rel=1e-2, abs=1e-4)
            assert {"fd_efflite0_64", "kd_efflite0_64", "clip_score", "unet_evaluations"} <= set(cell.figures)

    def test_interrupted_it_goes_on_with_the_first_cell_that_is_missing(
        self, pairs: ShardSet, clip: Path, students: list[Path], tmp_path: Path
    ) -> None:
        models = named_models([f"at={folder}" for folder in students])
        events = evaluator(pairs, clip, tmp_path).judged(models)
        for event in events:
            if isinstance(event, Cell):
                break
        events.close()
        cells, images = finished(evaluator(pairs, clip, tmp_path).judged(models))
        assert (len(cells), images) == (4, 18)
        again, none = finished(evaluator(pairs, clip, tmp_path).judged(models))
        assert (again, none) == (cells, 0)
        series = by_arm(models, cells, "clip_score")
        assert {arm: {nfe: len(values) for nfe, values in points.items()} for arm, points in series.items()} == {
            "at": {1: 2, 2: 2}
        }
        assert [model.name for model in models] == ["at-0", "at-1"]

    def test_images_of_another_size_are_refused(
        self,
        pairs: ShardSet,
        clip: Path,
        students: list[Path],
        tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        source = stamps(stamps_folder(tmp_path_factory.mktemp("larger")))
        list(write_shards(source, tmp_path, [32], image_channels=3, samples_per_shard=64))
        larger = evaluator(open_shards(tmp_path / "32px"), clip, tmp_path / "cache")
        with pytest.raises(ValueError, match=r"makes images of 16 px, .* holds 32 px"):
            next(larger.judged(named_models([str(students[0])])))
        with pytest.raises(ValueError, match="given once"):
            named_models([f"one={students[0]}", f"other={students[0]}"])


def test_arms_are_judged_from_the_command_line(
    pairs: ShardSet,
    clip: Path,
    guided: Path,
    students: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [
        "evaluate-text", f"teacher={guided}", *(f"at={folder}" for folder in students),
        "--shards", pairs.path, "--clip", clip, "--nfe", "1,2", "--count", 4, "--guidance", 3,
        "--csv", "cells.csv", "--json", "cells.json", "--figure", "nfe.png", "--grid", "grids", "--track",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["atdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    assert "clip_score (higher is better)" in printed.out
    assert "the set's own images" in printed.out
    rows = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert [(row["model"], row["nfe"]) for row in rows] == [
        (model, nfe) for model in ("teacher", "at-0", "at-1") for nfe in ("1", "2")
    ]
    assert [row["unet_evaluations"] for row in rows[:4]] == ["2.0", "4.0", "1.0", "2.0"]
    record = json.loads((tmp_path / "cells.json").read_text())
    assert record["models"]["at-1"]["arm"] == "at"
    assert float(rows[0]["clip_score"]) == record["models"]["teacher"]["figures"]["clip_score/w3_1"]
    for picture in ("nfe.png", "grids/prompts_teacher.png", "grids/prompts_at-1.png"):
        assert Image.open(tmp_path / picture).width > 400
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = {run.info.run_name: run for run in client.search_runs(experiments)}
    assert set(runs) == {"teacher", "at-0", "at-1"}
    curve = client.get_metric_history(runs["teacher"].info.run_id, "nfe/clip_score/w3")
    assert sorted(point.step for point in curve) == [1, 2]
    assert [file.path for file in client.list_artifacts(runs["at-0"].info.run_id)] == ["prompts_at-0.png"]
