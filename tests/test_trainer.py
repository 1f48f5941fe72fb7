"""The training loop: exact resuming, budgets, reports, and several ranks as one."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from atdiff_core.balls import L2Ball, LInfBall
from atdiff_core.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.consistency import ConsistencyTraining
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.discretisation import DoublingLevels
from atdiff_core.objectives.edm import EDM
from atdiff_core.objectives.equivariant import Equivariant
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import PGD, FreeAT, GaussianPerturbation, Perturbation, RandomPerturbation, Unperturbed
from atdiff_core.timesteps import LossSecondMoment
from atdiff_core.train_config import StrengthWarmup, TrainConfig
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import Progress, train

BALL = L2Ball(radius=0.02)
SCHEMES: dict[str, Perturbation] = {
    "plain": Unperturbed(),
    "replays": Unperturbed(num_replays=2),
    "FreeAT": FreeAT(ball=BALL, step_size=0.01, num_replays=3),
    "PGD": PGD(ball=BALL, step_size=0.01, num_steps=2),
    "random": RandomPerturbation(ball=BALL, step_size=0.01, num_replays=2),
    "gaussian": GaussianPerturbation(std=0.1),
}
PASSES_PER_IMAGE = {"plain": 1, "replays": 2, "FreeAT": 3, "PGD": 7 / 3, "random": 2, "gaussian": 1}
EVERY_SCHEME = pytest.mark.parametrize("scheme", list(SCHEMES.values()), ids=list(SCHEMES))

ONE_SIGN_STEP = PGD(ball=LInfBall(radius=1), step_size=1, num_steps=1, start="random")
FEW_LEVELS = NoiseSchedule(num_timesteps=2)
METHODS: dict[str, dict[str, Any]] = {name: {"perturbation": scheme} for name, scheme in SCHEMES.items()} | {
    "random start": {"perturbation": FreeAT(ball=BALL, step_size=0.01, num_replays=2, start="random")},
    "equivariant": {"perturbation": ONE_SIGN_STEP, "objective": Equivariant()},
    "hybrid": {
        "perturbation": SCHEMES["FreeAT"],
        "objective": Denoising(
            variance="learned", noise=FEW_LEVELS, timesteps=LossSecondMoment(history_length=2), attack_sees_target=False
        ),
    },
    "edm": {"perturbation": SCHEMES["PGD"], "objective": EDM()},
    "consistency training": {
        "perturbation": SCHEMES["FreeAT"],
        "objective": ConsistencyTraining(perturbed="solver", discretisation=DoublingLevels(first=4, last=8)),
    },
    "bf16": {"perturbation": SCHEMES["FreeAT"], "precision": "bf16"},
    "fp16": {"perturbation": SCHEMES["PGD"], "precision": "fp16"},
    "warm-up": {"perturbation": SCHEMES["FreeAT"], "strength": StrengthWarmup(kind="cosine", kpass=0.1), "flip": True},
}
EVERY_METHOD = pytest.mark.parametrize("changes", list(METHODS.values()), ids=list(METHODS))


def with_method(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """The config with a method's changes, and a network that fits them."""
    objective = changes.get("objective", config.objective)
    network = config.network.but(learned_variance=objective.learns_variance)
    return config.but(network=network, **changes)


def paying_for(minibatches: int, config: TrainConfig) -> TrainConfig:
    return config.but(budget_kpass=minibatches * config.kpass_per_minibatch)


def weights(state: TrainState) -> list[Tensor]:
    return [*state.network.state_dict().values(), *state.average.state_dict().values()]


def same(one: TrainState, other: TrainState) -> bool:
    return all(torch.equal(left, right) for left, right in zip(weights(one), weights(other), strict=True))


def trained(config: TrainConfig, shards: ShardSet) -> tuple[TrainState, list[Progress]]:
    state = TrainState.fresh(config)
    return state, list(train(config, state, shards))


def in_float64(state: TrainState) -> TrainState:
    """The state with networks that compute in float64: signs of gradients and Adam blow a float32's rounding up."""
    for module in (state.network, state.average.module, *([state.target.module] if state.target else [])):
        module.double()
        module.register_forward_pre_hook(lambda _, inputs: tuple(_doubled(given) for given in inputs))
    return state


def _doubled(given: Tensor) -> Tensor:
    return given.double() if given.is_floating_point() else given


class TestDeterminism:
    @EVERY_METHOD
    def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
        self, changes: dict[str, Any], tiny_config: TrainConfig, digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        optimization = tiny_config.optimization.but(decay="linear", warmup_kpass=0.01)
        network = tiny_config.network.but(dropout=0.2)
        config = with_method(tiny_config.but(optimization=optimization, network=network), changes)
        config = paying_for(4, config)
        whole, _ = trained(config, digits_8px)
        stopped = TrainState.fresh(config)
        assert not next(train(config, stopped, digits_8px, stop_at={2})).done
        save_checkpoint(stopped, config, tmp_path)
        torch.manual_seed(99)
        resumed = load_checkpoint(config, tmp_path)
        assert resumed.minibatches == 2
        (*_, last) = train(config, resumed, digits_8px)
        assert last.done
        assert same(resumed, whole)

    def test_the_same_config_gives_the_same_weights_and_another_seed_others(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(2, tiny_config)
        one, reports = trained(config, digits_8px)
        again, reports_again = trained(config, digits_8px)
        assert same(one, again)
        assert reports == reports_again
        assert not same(one, trained(config.but(seed=4), digits_8px)[0])

    def test_evaluating_the_network_between_reports_changes_nothing(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(3, tiny_config.but(network=tiny_config.network.but(dropout=0.5)))
        state = TrainState.fresh(config)
        for _ in train(config, state, digits_8px, stop_at={1, 2}):
            state.network.eval()
        assert same(state, trained(config, digits_8px)[0])

    def test_fine_tuning_starts_network_and_average_at_the_given_weights(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        start = trained(paying_for(2, tiny_config), digits_8px)[0].average.module
        state = TrainState.fresh(tiny_config.but(start_from="abc"), start=start)
        for module in (state.network, state.average.module):
            pairs = zip(module.state_dict().values(), start.state_dict().values(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        with pytest.raises(ValueError, match="the config starts from 'abc'"):
            TrainState.fresh(tiny_config.but(start_from="abc"))


class TestBudget:
    @EVERY_SCHEME
    def test_a_budget_counts_passes_and_not_images(
        self, scheme: Perturbation, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = tiny_config.but(perturbation=scheme, budget_kpass=8 * 21 / 1000)
        _, reports = trained(config, digits_8px)
        assert reports[-1].done
        assert reports[-1].kpass == pytest.approx(8 * 21 / 1000, rel=0.06)
        images = reports[-1].images
        assert images / 8 == round(21 / PASSES_PER_IMAGE[next(name for name in SCHEMES if SCHEMES[name] == scheme)])

    def test_the_equivariant_objective_pays_for_two_descents_and_for_the_clean_prediction_of_its_attack(
        self, tiny_config: TrainConfig
    ) -> None:
        config = tiny_config.but(objective=Equivariant(), perturbation=ONE_SIGN_STEP)
        assert config.passes_per_step == 3
        random = config.but(perturbation=ONE_SIGN_STEP.but(num_steps=0))
        assert random.passes_per_step == 2

    @EVERY_SCHEME
    def test_optimizer_and_average_step_once_per_yield(
        self, scheme: Perturbation, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(2, tiny_config.but(perturbation=scheme))
        state, _ = trained(config, digits_8px)
        steps = {int(slots["step"]) for slots in state.optimizer.state_dict()["state"].values()}
        assert steps == {2 * scheme.steps_per_minibatch} == {int(state.average.n_averaged)}

    def test_a_budget_below_one_minibatch_is_refused_with_the_way_out(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = tiny_config.but(perturbation=SCHEMES["FreeAT"], budget_kpass=0.02)
        message = r"one minibatch of 0\.024 kpass, got 0\.02; raise the budget or lower batch_size"
        with pytest.raises(ValueError, match=message):
            trained(config, digits_8px)

    def test_the_learning_rate_warms_up_and_decays_over_the_passes(self) -> None:
        schedule = Optimization(learning_rate=1.0, decay="linear", warmup_kpass=2)
        rates = [schedule.learning_rate_at(kpass, budget_kpass=8) for kpass in (0, 1, 2, 6, 8)]
        assert rates == [0, 0.5 * 7 / 8, 6 / 8, 2 / 8, 0]
        assert Optimization(learning_rate=1.0).learning_rate_at(5, budget_kpass=8) == 1

    def test_the_average_halves_a_jump_of_the_weights_over_its_half_life(self) -> None:
        network = torch.nn.Linear(1, 1)
        average = Optimization(ema_half_life_kpass=0.01).averaged(network, kpass_per_step=0.001)
        with torch.no_grad():
            network.weight.fill_(0.0)
            average.update_parameters(network)
            network.weight.fill_(1.0)
            for _ in range(10):
                average.update_parameters(network)
        assert average.module.weight.item() == pytest.approx(0.5, rel=1e-5)


class TestReports:
    def test_reports_come_every_so_many_passes_where_asked_and_at_the_end(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(7, tiny_config)
        reports = train(config, TrainState.fresh(config), digits_8px, report_every_kpass=0.016, stop_at={3})
        assert [round(report.kpass / 0.008) for report in reports] == [2, 3, 4, 6, 7]

    def test_a_report_is_whole(self, tiny_config: TrainConfig, digits_8px: ShardSet) -> None:
        config = paying_for(2, tiny_config.but(perturbation=SCHEMES["PGD"]))
        (report,) = train(config, TrainState.fresh(config), digits_8px)
        assert (report.images, report.done, report.learning_rate) == (16, True, 1e-3)
        assert report.attack_gain > 1
        assert report.boundary_fraction > 0
        assert set(report.metrics) == {
            "train/loss", "train/attack_gain", "train/boundary_fraction", "train/learning_rate", "train/strength",
            "train/kimg",
        }  # fmt: skip

    def test_plain_training_reports_no_attack(self, tiny_config: TrainConfig, digits_8px: ShardSet) -> None:
        _, reports = trained(paying_for(2, tiny_config), digits_8px)
        assert (reports[-1].attack_gain, reports[-1].boundary_fraction) == (1, 0)

    def test_a_hundred_steps_on_digits_lower_the_loss(self, tiny_config: TrainConfig, digits_8px: ShardSet) -> None:
        config = paying_for(100, tiny_config.but(batch_size=16))
        reports = list(train(config, TrainState.fresh(config), digits_8px, report_every_kpass=0.32))
        losses = [report.loss for report in reports]
        assert len(losses) == 5
        assert losses[-1] < 0.7 * losses[0]


class TestRefusal:
    def test_shards_of_another_set_or_shape_are_refused(self, tiny_config: TrainConfig, digits_8px: ShardSet) -> None:
        with pytest.raises(ValueError, match="the config was made for dataset abc"):
            trained(tiny_config.but(dataset="abc"), digits_8px)
        colour = tiny_config.but(network=tiny_config.network.but(image_channels=3))
        with pytest.raises(ValueError, match="the network takes 3 channels at 8 px, the shards hold 1 at 8 px"):
            trained(colour, digits_8px)

    def test_a_damaged_checkpoint_is_refused_with_its_file(self, tiny_config: TrainConfig, tmp_path: Path) -> None:
        save_checkpoint(TrainState.fresh(tiny_config), tiny_config, tmp_path)
        assert has_checkpoint(tmp_path)
        (file,) = tmp_path.glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file.name} is missing or damaged"):
            load_checkpoint(tiny_config, tmp_path)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file.name} is missing or damaged"):
            load_checkpoint(tiny_config, tmp_path)
        (tmp_path / "checkpoint.json").write_text("{")
        with pytest.raises(ValueError, match=r"checkpoint\.json is not valid JSON"):
            load_checkpoint(tiny_config, tmp_path)

    def test_a_checkpoint_of_another_run_is_refused_with_its_folder(
        self, tiny_config: TrainConfig, tmp_path: Path
    ) -> None:
        save_checkpoint(TrainState.fresh(tiny_config), tiny_config, tmp_path)
        with pytest.raises(ValueError, match=rf"{tmp_path} belongs to trial {tiny_config.key[:12]}"):
            load_checkpoint(tiny_config.but(seed=8), tmp_path)
        assert not has_checkpoint(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=r"there is no checkpoint\.json"):
            load_checkpoint(tiny_config, tmp_path / "elsewhere")

    def test_only_the_newest_state_is_kept(
        self, tiny_config: TrainConfig, digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        state = TrainState.fresh(tiny_config)
        for _ in islice(train(tiny_config, state, digits_8px, stop_at={1, 2}), 2):
            save_checkpoint(state, tiny_config, tmp_path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.json", "state-000000002.safetensors"]


class TestMethods:
    @pytest.mark.parametrize("name", [name for name in METHODS if name not in ("bf16", "fp16")])
    def test_slices_train_what_whole_minibatches_train_to_rounding(
        self, name: str, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(3, with_method(tiny_config, METHODS[name]))
        whole, sliced = (in_float64(TrainState.fresh(config)) for _ in range(2))
        list(train(config, whole, digits_8px))
        list(train(config, sliced, digits_8px, execution=Execution(slice_size=3)))
        assert torch.allclose(predicted(sliced), predicted(whole), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_half_precision_trains_nearly_the_same_network(
        self, precision: str, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(3, tiny_config.but(perturbation=SCHEMES["FreeAT"]))
        full, half = trained(config, digits_8px)[0], trained(config.but(precision=precision), digits_8px)[0]
        assert not same(full, half)
        assert (predicted(half) - predicted(full)).abs().max() < 0.05

    def test_a_perturbation_warms_up_over_its_passes(self, tiny_config: TrainConfig, digits_8px: ShardSet) -> None:
        for kind, halfway in (("linear", 0.25), ("cosine", (1 - 2**-0.5) / 2)):
            warmup = StrengthWarmup(kind=kind, kpass=8)
            assert [warmup.factor(kpass) for kpass in (0, 2, 8, 9)] == pytest.approx([0, halfway, 1, 1])
        assert StrengthWarmup().factor(0) == 1
        config = paying_for(2, tiny_config.but(perturbation=SCHEMES["FreeAT"]))
        frozen = config.but(strength=StrengthWarmup(kind="linear", kpass=1e12))
        state, reports = trained(frozen, digits_8px)
        replayed = trained(config.but(perturbation=Unperturbed(num_replays=3)), digits_8px)[0]
        assert torch.allclose(predicted(state), predicted(replayed), atol=1e-5)
        assert reports[-1].strength < 1e-9

    def test_flipping_mirrors_about_half_of_the_samples_and_always_the_same(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        config = paying_for(2, tiny_config)
        flipped = config.but(flip=True)
        assert not same(trained(config, digits_8px)[0], trained(flipped, digits_8px)[0])
        assert same(trained(flipped, digits_8px)[0], trained(flipped, digits_8px)[0])

    def test_the_attack_gain_of_a_random_start_is_measured_where_it_is_reported(
        self, tiny_config: TrainConfig, digits_8px: ShardSet
    ) -> None:
        scheme = PGD(ball=L2Ball(radius=0.3), step_size=0.1, num_steps=2, start="random")
        _, reports = trained(paying_for(2, tiny_config.but(perturbation=scheme)), digits_8px)
        assert reports[-1].attack_gain > 1

    def test_what_does_not_fit_together_is_refused_with_the_way_out(self, tiny_config: TrainConfig) -> None:
        with pytest.raises(ValueError, match=r"free_at climbs what it descends.*equivariant.*choose PGD"):
            tiny_config.but(perturbation=SCHEMES["FreeAT"], objective=Equivariant())
        with pytest.raises(ValueError, match=r"learned_variance=False does not fit objective.variance='learned'"):
            tiny_config.but(objective=Denoising(variance="learned"))
        with pytest.raises(ValueError, match="slice_size must be >= 0"):
            Execution(slice_size=-1)

    def test_a_start_of_another_shape_is_refused_with_the_first_name_that_differs(
        self, tiny_config: TrainConfig
    ) -> None:
        other = TrainState.fresh(tiny_config.but(network=tiny_config.network.but(channels=(16,)))).network
        with pytest.raises(ValueError, match=r"another shape than the config's: unet\.\S+ is .* choose the preset"):
            TrainState.fresh(tiny_config.but(start_from="abc"), start=other)


RANKED = [name for name in METHODS if name not in ("bf16", "fp16")]


def predicted(state: TrainState) -> Tensor:
    """What the network makes of one input: rounding moves biases that a normalisation then removes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return state.network(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(0, 960, 60))


def _rank(rank: int, configs: list[str], shards: Path, out: Path) -> None:
    """One of two ranks, in a process of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    for number, text in enumerate(configs):
        config = TrainConfig.model_validate_json(text)
        state = in_float64(TrainState.fresh(config))
        execution = Execution(slice_size=3 * (number % 2))  # Every other method also accumulates its gradients.
        (*_, last) = train(config, state, open_shards(shards), rank=rank, world_size=2, execution=execution)
        if rank == 0:
            torch.save({"predicted": predicted(state), "loss": last.loss}, out / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.cluster
def test_two_ranks_train_what_one_process_trains_to_rounding(
    tiny_config: TrainConfig, digits_8px: ShardSet, tmp_path: Path
) -> None:
    configs = [paying_for(3, with_method(tiny_config, METHODS[name])) for name in RANKED]
    texts = [config.canonical_json() for config in configs]
    multiprocessing.spawn(_rank, (texts, digits_8px.path, tmp_path), nprocs=2)
    for number, config in enumerate(configs):
        alone = in_float64(TrainState.fresh(config))
        (*_, last) = train(config, alone, digits_8px)
        together = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert together["loss"] == pytest.approx(last.loss, rel=1e-9)
        assert torch.allclose(together["predicted"], predicted(alone), rtol=0, atol=1e-9)
