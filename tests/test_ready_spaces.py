"""Every file that ships in ``search_spaces`` is what its docstring says, and can be started."""

import runpy
from pathlib import Path

import pytest

from atdiff_core.text_networks import TextUNet
from atdiff_core.train_config import TrainConfig
from search_spaces.comparison import Comparison, load_comparison
from search_spaces.space import Space, TrialConfig, load_space

FOLDER = Path("search_spaces")
DECLARED = {
    file.stem: runpy.run_path(str(file)) for file in sorted(FOLDER.glob("*.py")) if not file.stem.startswith("_")
}
SPACES = [name for name, content in DECLARED.items() if isinstance(content.get("space"), Space)]
COMPARISONS = [name for name, content in DECLARED.items() if isinstance(content.get("comparison"), Comparison)]
RUNS = [name for name, content in DECLARED.items() if isinstance(content.get("config"), dict)]


def test_nothing_ready_is_left_out() -> None:
    assert set(SPACES) == {"demo", "demo_norms", "demo_tiny", "demo_cm", "fashion_sweep"}
    assert set(COMPARISONS) == {
        "cifar10_dpm",
        "imagenet64_dpm",
        "imagenet64_cm",
        "digits_cm",
        "norms",
        "from_scratch_warmup",
        "fashion_arms",
        "stamps_lcm",
        "coco_lcm",
    }
    assert set(RUNS) == {
        "train_digits",
        "train_cifar10_base",
        "train_cifar10_at",
        "train_imagenet64_at",
        "train_digits_edm",
        "train_stamps_teacher",
    }


@pytest.mark.parametrize("name", [*SPACES, *COMPARISONS])
def test_a_declaration_loads_and_survives_json(name: str) -> None:
    load = load_space if name in SPACES else load_comparison
    declared = load(FOLDER / f"{name}.py")
    assert type(declared).model_validate_json(declared.model_dump_json()) == declared


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_complete_but_for_its_data(name: str) -> None:
    written = DECLARED[name]["config"]
    prompts = {"prompts": "0" * 64} if isinstance(written["train"]["network"], TextUNet) else {}
    trial = TrialConfig.model_validate({**written, "train": {**written["train"], "dataset": "0" * 64, **prompts}})
    trial.train.budget_check()


def test_the_cifar10_run_is_the_protocol_of_the_released_script() -> None:
    """Figures of AT_Diff's ``scripts/cifar_adv_train.sh``."""
    train = TrainConfig.model_validate({**DECLARED["train_cifar10_at"]["config"]["train"], "dataset": ""})
    ball, dimension = train.perturbation.ball, train.network.dimension
    assert train.minibatches == 200_000
    assert train.perturbation.num_replays == 3
    assert ball.raw(train.perturbation.step_size, dimension) == pytest.approx(0.1)
    assert ball.raw(ball.radius, dimension) == pytest.approx(5.54, abs=0.01)
    assert train.perturbation.reach < 1  # The projection never acts.
    decay = 0.5 ** (train.kpass_per_step / train.optimization.ema_half_life_kpass)
    assert decay == pytest.approx(0.9999)
    base = TrainConfig.model_validate({**DECLARED["train_cifar10_base"]["config"]["train"], "dataset": ""})
    assert base.minibatches == 250_000


@pytest.mark.parametrize("name", COMPARISONS)
def test_all_arms_of_a_comparison_spend_the_same(name: str) -> None:
    comparison = DECLARED[name]["comparison"]
    base = comparison.base_config("")
    spent = {}
    for arm in comparison.arms:
        train = comparison.trial_config(base, arm, 1).train
        spent[arm.name] = train.minibatches * train.kpass_per_minibatch
    assert max(spent.values()) == pytest.approx(min(spent.values()), rel=0.01)
