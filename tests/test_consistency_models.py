"""Consistency models trained and kept: teacher, target, snapshots in stock diffusers, and their declarations."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ConsistencyModelPipeline, DDIMScheduler, DDPMPipeline

from atdiff_core.balls import L2Ball
from atdiff_core.checkpoints import load_checkpoint, save_checkpoint
from atdiff_core.data.stream import ShardSet
from atdiff_core.karras import KarrasNoise, Noise
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.metrics.robustness import Attack
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.discretisation import FixedLevels
from atdiff_core.objectives.edm import EDM
from atdiff_core.objectives.objective import Teacher
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, Unperturbed
from atdiff_core.randomness import Randomness
from atdiff_core.samplers import Sampler, sample
from atdiff_core.snapshots import load_snapshot, save_snapshot
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import train

NOISE = KarrasNoise(num_levels=8)
DISTILLATION = ConsistencyDistillation(noise=NOISE, discretisation=FixedLevels(decay=0.9))
FREE_AT = FreeAT(ball=L2Ball(radius=0.02), num_replays=3, step_size=0.01)


@pytest.fixture
def config(tiny_config: TrainConfig) -> TrainConfig:
    """Four minibatches of plain distillation, with dropout."""
    network = tiny_config.network.but(dropout=0.2)
    made = tiny_config.but(network=network, objective=DISTILLATION, teacher="t")
    return made.but(budget_kpass=4 * made.kpass_per_minibatch)


def teacher_of(config: TrainConfig, noise: Noise | None = None) -> Teacher:
    return Teacher(config.network.build(seed=7), noise or NoiseSchedule())


def trained(config: TrainConfig, shards: ShardSet, teacher: Teacher | None) -> TrainState:
    state = TrainState.fresh(config, teacher=teacher)
    list(train(config, state, shards))
    return state


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


class TestTraining:
    def test_a_resumed_distillation_ends_with_the_weights_of_one_that_never_stopped(
        self, config: TrainConfig, digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        config = config.but(perturbation=FREE_AT, budget_kpass=12 * config.kpass_per_minibatch)
        teacher = teacher_of(config)
        whole = trained(config, digits_8px, teacher)
        stopped = TrainState.fresh(config, teacher=teacher)
        next(train(config, stopped, digits_8px, stop_at={2}))
        save_checkpoint(stopped, config, tmp_path)
        resumed = load_checkpoint(config, tmp_path, teacher=teacher_of(config))
        list(train(config, resumed, digits_8px))
        for name in ("network", "average", "target"):
            assert same(getattr(resumed, name), getattr(whole, name))

    def test_target_follows_with_its_decay_and_the_teacher_stays(
        self, config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config, teacher = config.but(budget_kpass=config.kpass_per_minibatch), teacher_of(config)
        start = TrainState.fresh(config, teacher=teacher)
        after = trained(config, digits_8px, teacher)
        assert same(start.target.module, start.network)
        networks = (each.parameters() for each in (start.network, after.network, after.target))
        for first, now, target in zip(*networks, strict=True):
            assert torch.allclose(target, 0.9 * first + 0.1 * now, atol=1e-7)
        assert same(teacher.network, teacher_of(config).network)

    @pytest.mark.parametrize("perturbed", ["student", "solver"])
    def test_a_ball_of_radius_zero_is_the_replay_control_bit_for_bit(
        self, perturbed: str, config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = config.but(objective=DISTILLATION.but(perturbed=perturbed))
        control = config.but(perturbation=Unperturbed(num_replays=2))
        control = control.but(budget_kpass=2 * control.kpass_per_minibatch)
        attack = config.but(perturbation=FreeAT(ball=L2Ball(radius=0.0), num_replays=2, step_size=0.1))
        attack = attack.but(budget_kpass=2 * attack.kpass_per_minibatch)
        one, other = (trained(each, digits_8px, teacher_of(config)) for each in (control, attack))
        assert same(one.network, other.network)
        assert same(one.target, other.target)

    def test_slices_train_what_the_whole_minibatch_trains(self, config: TrainConfig, digits_8px: ShardSet) -> None:
        config = config.but(network=config.network.but(dropout=0.0), perturbation=FREE_AT)
        config = config.but(budget_kpass=config.kpass_per_minibatch)
        shown, made = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), []
        for execution in (Execution(), Execution(slice_size=3)):
            state = TrainState.fresh(config, teacher=teacher_of(config), execution=execution)
            list(train(config, state, digits_8px, execution=execution))
            made.append(state.network(shown, torch.arange(4)).detach())  # Rounding moves biases that cancel out.
        assert torch.allclose(*made, atol=1e-4)

    def test_teachers_are_given_exactly_where_they_are_needed(self, config: TrainConfig) -> None:
        with pytest.raises(ValueError, match="consistency_distillation needs a teacher, got None"):
            TrainState.fresh(config)
        with pytest.raises(ValueError, match="objective consistency_distillation needs a teacher, got 'none'"):
            config.but(teacher="none")
        with pytest.raises(ValueError, match="objective denoising needs no teacher, got 't'"):
            config.but(objective=Denoising())
        with pytest.raises(ValueError, match="a teacher must predict noise or be an EDM denoiser"):
            TrainState.fresh(config, teacher=teacher_of(config, NOISE))


class TestSnapshots:
    def test_the_stock_pipeline_opens_a_consistency_model_and_makes_our_images(
        self, config: TrainConfig, digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        state = trained(config, digits_8px, teacher_of(config))
        save_snapshot(state, config, tmp_path)
        snapshot = load_snapshot(tmp_path)
        assert (snapshot.noise, snapshot.key) == (NOISE, config.key)
        pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path)
        pipeline.set_progress_bar_config(disable=True)
        generators = Randomness(3, range(4), "latents").generators()
        theirs = pipeline(batch_size=4, num_inference_steps=1, generator=generators, output_type="pt").images
        ours, _ = sample(
            snapshot.network, snapshot.noise, Sampler(kind="cm", nfe=1), shape=(1, 8, 8), indices=range(4), seed=3
        )
        assert torch.allclose(theirs * 2 - 1, ours, atol=1e-5)

    def test_an_edm_denoiser_is_known_again(self, tiny_config: TrainConfig, tmp_path: Path) -> None:
        config = tiny_config.but(objective=EDM())
        save_snapshot(TrainState.fresh(config), config, tmp_path)
        snapshot = load_snapshot(tmp_path)
        assert snapshot.noise == KarrasNoise(kind="edm")
        images, _ = sample(
            snapshot.network, snapshot.noise, Sampler(kind="edm_euler", nfe=3), shape=(1, 8, 8), indices=[0], seed=0
        )
        assert images.isfinite().all()

    def test_a_foreign_consistency_model_is_opened_by_its_scheduler(self, config: TrainConfig, tmp_path: Path) -> None:
        save_snapshot(TrainState.fresh(config, teacher=teacher_of(config)), config, tmp_path)
        (tmp_path / "atdiff.json").unlink()
        assert load_snapshot(tmp_path).noise == NOISE

    def test_a_teacher_may_be_any_diffusers_folder_whose_scheduler_tells_its_noise(
        self, tiny_config: TrainConfig, tmp_path: Path
    ) -> None:
        unet = tiny_config.network.build_unet()
        DDPMPipeline(unet=unet, scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path)
        assert load_snapshot(tmp_path).teacher.noise == NoiseSchedule(kind="cosine")
        shutil.rmtree(tmp_path / "scheduler")
        with pytest.raises(ValueError, match=r"it has no scheduler/scheduler_config.json, so the noise .* is unknown"):
            load_snapshot(tmp_path)


class TestDeclarations:
    def test_each_network_is_judged_by_the_samplers_that_can_step_it(self) -> None:
        samplers = (Sampler(kind="cm", nfe=1), Sampler(kind="edm_euler", nfe=9), Sampler(kind="cm", nfe=2))
        evaluation = EvaluationConfig(samplers=samplers)
        assert evaluation.fitting(NOISE).samplers == (samplers[0], samplers[2])
        assert evaluation.fitting(KarrasNoise(kind="edm")).samplers == (samplers[1],)
        with pytest.raises(
            ValueError, match=r"none of the samplers cm_1, edm_euler_9, cm_2 can step .* predicts noise"
        ):
            evaluation.fitting(NoiseSchedule())
        with pytest.raises(ValueError, match=r"evaluation.attacks are measured on networks that predict noise"):
            EvaluationConfig(samplers=samplers[:1], attacks=(Attack(ball=L2Ball(radius=0.1)),)).check_fits(NOISE)

    def test_training_needs_no_teacher_and_may_start_from_a_denoiser(self, config: TrainConfig) -> None:
        objective = ConsistencyTraining(noise=NOISE)
        assert config.but(objective=objective, teacher="none").objective == objective
        assert objective.check_start(KarrasNoise(kind="edm")) is None
        assert objective.check_start(NoiseSchedule()) is None

    def test_budgets_of_distillation_count_teacher_and_target(self, config: TrainConfig) -> None:
        optimization = Optimization(learning_rate=1e-3)
        plain = config.but(optimization=optimization, batch_size=100, network=UNet(resolution=8))
        assert plain.kpass_per_minibatch == pytest.approx(0.2)
        assert plain.but(perturbation=FREE_AT).kpass_per_minibatch == pytest.approx(0.1 * (2 / 3 + 4))
