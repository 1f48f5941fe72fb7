"""Several ranks as one: sampling and judging shared out, states split between them (FSDP2)."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing

from atdiff_core.balls import L2Ball
from atdiff_core.checkpoints import load_checkpoint, save_checkpoint
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
from atdiff_core.metrics.robustness import Attack
from atdiff_core.noise import NoiseSchedule
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, Unperturbed
from atdiff_core.samplers import Sampler
from atdiff_core.sharding import is_sharded, shard, whole
from atdiff_core.team import Team
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import train

RANKS = 2
EVALUATION = EvaluationConfig(
    samples=13,
    reference=32,
    samplers=(Sampler(kind="ddim", nfe=2),),
    attacks=(Attack(ball=L2Ball(radius=0.05), num_steps=2),),
    attacked_images=9,
)
SCHEMES: dict[str, tuple[Perturbation, int]] = {
    "plain": (Unperturbed(), 0),
    "free": (FreeAT(ball=L2Ball(radius=0.1), num_replays=3, step_size=0.05), 0),
    "climbing, in slices": (PGD(ball=L2Ball(radius=0.1), num_steps=2, step_size=0.05), 3),
}


@given(count=st.integers(1, 200), batch_size=st.integers(1, 70), size=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_every_sample_is_dealt_to_one_rank_and_no_rank_is_idle(count: int, batch_size: int, size: int) -> None:
    if count < size:
        with pytest.raises(ValueError, match="at least as many samples"):
            Team(0, size).deal(count, batch_size)
        return
    hands = [Team(rank, size).deal(count, batch_size).mine for rank in range(size)]
    assert sorted(chain.from_iterable(chain.from_iterable(hands))) == list(range(count))
    assert all(hands)
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    assert max(len(batch) for hand in hands for batch in hand) <= batch_size


def scheme_config(tiny: TrainConfig, perturbation: Perturbation) -> TrainConfig:
    """Four minibatches."""
    config = tiny.but(perturbation=perturbation)
    return config.but(budget_kpass=4 * config.kpass_per_minibatch)


def predicted(network: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    network.eval()
    with torch.no_grad():
        return network(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(0, 960, 60))


def judged(evaluator: Evaluator, network: Any, team: Team) -> dict[str, Any]:
    (evaluated,) = evaluator.evaluate(network, NoiseSchedule(), team=team)
    figures = evaluated.figures | evaluator.attacked(network, NoiseSchedule(), team=team)
    return {"figures": figures, "images": evaluated.images.tolist()}


def _rank(rank: int, configs: list[str], shards: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=RANKS)
    team = Team(rank, RANKS)
    opened = open_shards(shards)
    agreed = team.agreed(3 + rank, rank == 1)
    evaluator = Evaluator(EVALUATION, opened, out / f"cache-{rank}", batch_size=4)
    network = TrainState.fresh(TrainConfig.model_validate_json(configs[0])).network
    (out / f"judged-{rank}.json").write_text(json.dumps(judged(evaluator, network, team) | {"agreed": agreed}))
    for name, text in zip(SCHEMES, configs, strict=True):
        _train_split(name, TrainConfig.model_validate_json(text), opened, team, out)
    dist.destroy_process_group()


def _train_split(name: str, config: TrainConfig, shards: ShardSet, team: Team, out: Path) -> None:
    """Half of the run, a checkpoint, and from it the other half."""
    execution = Execution(slice_size=SCHEMES[name][1], sharded=True)
    state = TrainState.fresh(config)
    shard(state, config, "cpu")
    run = train(
        config, state, shards, report_every_kpass=1e9, stop_at=[2],
        rank=team.rank, world_size=team.size, execution=execution,
    )  # fmt: skip
    next(run)
    save_checkpoint(state, config, out / name if team.leads else None)
    dist.barrier()
    resumed = load_checkpoint(config, out / name)
    shard(resumed, config, "cpu")
    (last,) = train(config, resumed, shards, rank=team.rank, world_size=team.size, execution=execution)
    held = sum(parameter.to_local().numel() for parameter in resumed.network.parameters())
    average = whole(resumed, config).averaged
    assert is_sharded(resumed.network)
    assert not is_sharded(average)
    found = {"network": predicted(resumed.network), "average": predicted(average)}  # Asked by all ranks.
    if team.leads:
        figures = {"loss": torch.tensor(last.loss), "held": torch.tensor(held)}
        save_file(found | figures, out / f"{name}.safetensors")


@pytest.fixture(scope="module")
def configs(tiny_config: TrainConfig) -> list[TrainConfig]:
    return [scheme_config(tiny_config, scheme) for scheme, _ in SCHEMES.values()]


@pytest.fixture(scope="module")
def ranks(configs: list[TrainConfig], digits_8px: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo ranks left behind."""
    out = tmp_path_factory.mktemp("ranks")
    texts = [config.canonical_json() for config in configs]
    multiprocessing.spawn(_rank, (texts, digits_8px.path, out), nprocs=RANKS)
    return out


@pytest.mark.cluster
class TestTwoRanks:
    def test_both_judge_as_one_process_does(
        self, ranks: Path, configs: list[TrainConfig], digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        evaluator = Evaluator(EVALUATION, digits_8px, tmp_path, batch_size=4)
        alone = judged(evaluator, TrainState.fresh(configs[0]).network, Team())
        for rank in range(RANKS):
            told = json.loads((ranks / f"judged-{rank}.json").read_text())
            gain = "attack_gain/l2_0.05"
            assert told["figures"].pop(gain) == pytest.approx(alone["figures"][gain], rel=1e-6)  # Smaller batches.
            others = {name: value for name, value in alone["figures"].items() if name != gain}
            assert told["figures"] == pytest.approx(others, rel=1e-4)
            assert torch.allclose(torch.tensor(told["images"]), torch.tensor(alone["images"]), atol=1e-4)
            assert told["agreed"] == [3, 0]

    @pytest.mark.parametrize("name", SCHEMES)
    def test_a_split_state_trains_stops_and_resumes_like_a_whole_one(
        self, name: str, ranks: Path, configs: list[TrainConfig], digits_8px: ShardSet
    ) -> None:
        config = configs[list(SCHEMES).index(name)]
        alone = TrainState.fresh(config)
        (*_, last) = train(config, alone, digits_8px, stop_at=[2])  # Means over the second half, as there.
        split = load_file(ranks / f"{name}.safetensors")
        assert torch.allclose(split["network"], predicted(alone.network), atol=1e-4)  # Adam blows rounding up.
        assert torch.allclose(split["average"], predicted(alone.averaged), atol=1e-4)
        assert float(split["loss"]) == pytest.approx(last.loss, rel=1e-4)

    def test_each_rank_holds_its_part_only(self, ranks: Path, configs: list[TrainConfig]) -> None:
        parameters = sum(parameter.numel() for parameter in TrainState.fresh(configs[0]).network.parameters())
        held = int(load_file(ranks / "plain.safetensors")["held"])
        assert held == pytest.approx(parameters / RANKS, rel=0.1)

    def test_a_checkpoint_does_not_tell_how_many_ranks_made_it(
        self, ranks: Path, configs: list[TrainConfig], digits_8px: ShardSet, tmp_path: Path
    ) -> None:
        config = configs[1]
        alone = TrainState.fresh(config)
        next(train(config, alone, digits_8px, report_every_kpass=1e9, stop_at=[2]))
        save_checkpoint(alone, config, tmp_path)
        (mine,), (theirs,) = (folder.glob("*.safetensors") for folder in (tmp_path, ranks / "free"))
        one, two = load_file(mine), load_file(theirs)
        assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
        loaded = load_checkpoint(config, ranks / "free")
        assert torch.allclose(predicted(loaded.network), predicted(alone.network), atol=1e-4)
