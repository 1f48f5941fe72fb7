"""Text-conditional training end to end: snapshots open in stock pipelines, and such folders teach."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
from latent_sets import STUDENT, TEACHER, World, world

from atdiff_core.balls import L2Ball
from atdiff_core.checkpoints import load_checkpoint, save_checkpoint
from atdiff_core.data.stream import ShardSet
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, Unperturbed
from atdiff_core.snapshots import Snapshot, load_snapshot, save_snapshot
from atdiff_core.text_snapshots import Surroundings
from atdiff_core.train_config import SCRATCH, TrainConfig
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import train

SCHEDULE = NoiseSchedule(kind="scaled_linear")
SCHEDULER = "scheduler/scheduler_config.json"
FREE_AT = FreeAT(ball=L2Ball(radius=0.02), num_replays=2, step_size=0.02)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("world"))


def teacher_config(here: World, **changes: Any) -> TrainConfig:
    fields = {
        "network": TEACHER, "objective": Denoising(noise=SCHEDULE), "perturbation": Unperturbed(),
        "optimization": Optimization(learning_rate=1e-3, ema_half_life_kpass=0.01), "dataset": here.shards.fingerprint,
        "prompts": here.texts.fingerprint, "prompt_dropout": 0.25, "batch_size": 8, "budget_kpass": 0.032,
    }  # fmt: skip
    return TrainConfig.model_validate(fields | changes)


def student_config(here: World, key: str, **changes: Any) -> TrainConfig:
    fields = {
        "network": STUDENT, "objective": LatentConsistencyDistillation(), "perturbation": FREE_AT, "teacher": key,
        "start_from": key, "prompt_dropout": 0.0, "budget_kpass": 0.08,
    }  # fmt: skip
    return teacher_config(here, **(fields | changes))


def trained(
    here: World, config: TrainConfig, taught: Snapshot | None = None, execution: Execution | None = None
) -> TrainState:
    start = None if config.start_from == SCRATCH or taught is None else taught.network
    teacher = taught.teacher if taught and config.objective.needs_teacher else None
    state = TrainState.fresh(config, start, execution, teacher)
    for _ in train(config, state, here.shards, prompts=here.texts, execution=execution):
        pass
    return state


def around(here: World) -> Surroundings:
    return Surroundings(here.shards.index.latents, here.texts)


@pytest.fixture(scope="module")
def teacher(here: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, config = tmp_path_factory.mktemp("teacher") / "sd", teacher_config(here)
    save_snapshot(trained(here, config), config, folder, around(here))
    return folder


def changed(folder: Path, out: Path, file: str, **changes: object) -> Path:
    """A copy with other entries in one of its JSON files."""
    shutil.copytree(folder, out)
    (out / file).write_text(json.dumps(json.loads((out / file).read_text()) | changes))
    return out


class TestTeacher:
    def test_it_samples_in_the_stock_pipeline_as_its_network_predicts(self, here: World, teacher: Path) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(teacher)
        pipeline.set_progress_bar_config(disable=True)
        pictures = pipeline(["A red square.", ""], num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
        assert pictures.shape == (2, 3, 8, 8)
        assert pictures.isfinite().all()
        snapshot = load_snapshot(teacher)
        noisy, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 700])
        prompt = here.texts.of(["A red square.", ""])
        theirs = pipeline.unet(noisy, t, prompt).sample
        assert torch.equal(snapshot.network(noisy, t, prompt=prompt), theirs)
        assert snapshot.noise == SCHEDULE
        assert snapshot.latents == here.shards.index.latents

    def test_a_folder_of_somebody_elses_is_read_by_its_scheduler(self, teacher: Path, tmp_path: Path) -> None:
        plain = shutil.copytree(teacher, tmp_path / "plain")
        (plain / "atdiff.json").unlink()
        assert load_snapshot(plain).noise == SCHEDULE
        file = "scheduler/scheduler_config.json"
        velocity = changed(plain, tmp_path / "velocity", file, prediction_type="v_prediction")
        assert load_snapshot(velocity).noise == SCHEDULE.but(predicts="velocity")
        older = changed(plain, tmp_path / "older", file, _class_name="PNDMScheduler", skip_prk_steps=True)
        assert load_snapshot(older).noise == SCHEDULE

    @pytest.mark.parametrize(
        ("file", "changes", "words"),
        [
            (
                "scheduler/scheduler_config.json",
                {"prediction_type": "flow"},
                "must predict one of epsilon, v_prediction",
            ),
            ("scheduler/scheduler_config.json", {"beta_end": 0.5}, "scaled_linear .*, got 'scaled_linear' from"),
            ("vae/config.json", {"latent_channels": 4}, "latents of 3 channels, its autoencoder makes 4"),
            ("text_encoder/config.json", {"hidden_size": 32}, "prompts 16 numbers wide, its text encoder makes 32"),
            ("text_encoder/config.json", {"vocab_size": 7}, "its encoder only 7; they do not belong together"),
            ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "up to 77 tokens .*, its encoder takes 16"),
            ("unet/config.json", {"addition_embed_type": "text_time"}, "a prompt and nothing else"),
        ],
    )
    def test_parts_that_do_not_belong_together_are_one_clear_line(
        self, teacher: Path, tmp_path: Path, file: str, changes: dict[str, object], words: str
    ) -> None:
        broken = changed(teacher, tmp_path / "broken", file, **changes)
        (broken / "atdiff.json").unlink()
        with pytest.raises(ValueError, match=words) as refused:
            load_snapshot(broken)
        assert "\n" not in str(refused.value)

    def test_without_a_scheduler_or_a_tokenizer_it_is_refused(self, teacher: Path, tmp_path: Path) -> None:
        for part, words in (("scheduler", "the noise it was trained on is unknown"), ("tokenizer", "but no tokenizer")):
            broken = shutil.copytree(teacher, tmp_path / part)
            (broken / "atdiff.json").unlink()
            shutil.rmtree(broken / part)
            with pytest.raises(ValueError, match=words):
                load_snapshot(broken)


class TestStudent:
    @pytest.mark.parametrize("rank", [0, 2])
    def test_it_samples_in_the_stock_pipeline(self, here: World, teacher: Path, tmp_path: Path, rank: int) -> None:
        taught = load_snapshot(teacher)
        config = student_config(here, taught.key, network=STUDENT.but(lora_rank=rank))
        state = trained(here, config, taught)
        save_snapshot(state, config, tmp_path / "lcm", around(here))
        pipeline = LatentConsistencyModelPipeline.from_pretrained(tmp_path / "lcm")
        pipeline.set_progress_bar_config(disable=True)
        for steps in (1, 2):
            pictures = pipeline("A red square.", num_inference_steps=steps, guidance_scale=4.0, output_type="pt").images
            assert pictures.shape == (1, 3, 8, 8)
            assert pictures.isfinite().all()
        opened = load_snapshot(tmp_path / "lcm")
        given = {"prompt": here.texts.of(["A blue disc."]), "guidance": torch.tensor([6.0])}
        noisy, t = torch.randn(1, 3, 4, 4), torch.tensor([499])
        with torch.no_grad():
            ours = state.averaged.eval()(noisy, t, **given)
            assert torch.allclose(opened.network(noisy, t, **given), ours, atol=1e-5)
            moved = taught.network(noisy, t, prompt=given["prompt"])
        assert not torch.allclose(ours, moved, atol=1e-6)
        assert opened.noise == config.objective.noise
        (tmp_path / "lcm" / "atdiff.json").unlink()
        assert load_snapshot(tmp_path / "lcm").noise == LatentConsistencyNoise()

    @pytest.mark.parametrize("rank", [0, 2])
    def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
        self, here: World, teacher: Path, tmp_path: Path, rank: int
    ) -> None:
        taught = load_snapshot(teacher)
        config = student_config(here, taught.key, network=STUDENT.but(lora_rank=rank))
        whole = trained(here, config, taught)
        state = TrainState.fresh(config, taught.network, None, taught.teacher)
        next(train(config, state, here.shards, prompts=here.texts, stop_at=(1,)))
        save_checkpoint(state, config, tmp_path)
        again = load_checkpoint(config, tmp_path, None, taught.teacher)
        assert again.minibatches == 1
        for _ in train(config, again, here.shards, prompts=here.texts):
            pass
        for one, other in zip(whole.averaged.parameters(), again.averaged.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_recomputed_activations_change_nothing(self, here: World, teacher: Path) -> None:
        taught = load_snapshot(teacher)
        config = student_config(here, taught.key, network=STUDENT.but(dropout=0.1))
        plain = trained(here, config, taught)
        saving = trained(here, config, taught, Execution(gradient_checkpointing=True))
        for one, other in zip(plain.averaged.parameters(), saving.averaged.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_a_teacher_of_other_channels_or_prompts_is_refused(self, here: World, teacher: Path) -> None:
        taught = load_snapshot(teacher)
        for changes, words in (({"image_channels": 4}, "same image_channels, got 3 and 4"),
                               ({"prompt_width": 8}, "same prompt_width, got 16 and 8")):  # fmt: skip
            config = student_config(here, taught.key, network=STUDENT.but(**changes), start_from=SCRATCH)
            with pytest.raises(ValueError, match=words):
                TrainState.fresh(config, None, None, taught.teacher)

    def test_bf16_and_slices_train(self, here: World, teacher: Path) -> None:
        taught = load_snapshot(teacher)
        config = student_config(here, taught.key, precision="bf16")
        state = trained(here, config, taught, Execution(slice_size=3))
        assert all(weight.isfinite().all() for weight in state.averaged.parameters())


class TestTraining:
    def test_another_prompt_dropout_is_another_training(self, here: World) -> None:
        always, never = (trained(here, teacher_config(here, prompt_dropout=share)) for share in (1.0, 0.0))
        weights = [next(state.averaged.unet.down_blocks.parameters()) for state in (always, never)]
        assert not torch.equal(*weights)

    def test_shards_without_captions_are_refused(self, here: World, digits_8px: ShardSet) -> None:
        network = TEACHER.but(image_channels=1, resolution=8, attention_at=(8,))
        config = teacher_config(here, network=network, dataset=digits_8px.fingerprint)
        with pytest.raises(ValueError, match="the samples have no captions"):
            next(train(config, TrainState.fresh(config), digits_8px, prompts=here.texts))

    def test_prompts_that_are_not_the_configs_are_refused(self, here: World) -> None:
        config = teacher_config(here)
        with pytest.raises(ValueError, match=r"made for prompts .*, got none"):
            next(train(config, TrainState.fresh(config), here.shards))
        other = config.but(network=TEACHER.but(prompt_width=8))
        with pytest.raises(ValueError, match="attends to prompts 8 numbers wide, the embeddings have 16"):
            next(train(other, TrainState.fresh(other), here.shards, prompts=here.texts))
