"""A comparison of arms: its declaration, its results with planted effects, and a real run of a tiny one."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from sweep_helpers import tiny_space, write_digits
from synthetic_comparison import write_comparison_folders

from atdiff_core.balls import L2Ball, LInfBall
from atdiff_core.data.stream import ShardSet
from atdiff_core.metrics.robustness import Attack
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import PGD, FreeAT, RandomPerturbation, Unperturbed
from atdiff_core.snapshots import save_snapshot
from atdiff_core.train_config import SCRATCH, StrengthWarmup, TrainConfig
from atdiff_core.train_state import TrainState
from pipeline.cluster import ray_session
from pipeline.comparison import assignments, run_comparison, rung_of
from pipeline.comparison_results import ComparisonResult, by_series, load_comparison_result
from pipeline.finish import finish_comparison
from pipeline.records import CURVES, RESULT
from pipeline.report.comparison_figures import arm_styles, comparison_figures
from pipeline.report.comparison_page import print_comparison, write_comparison
from pipeline.report.comparison_tables import as_csv
from pipeline.workspace import Workspace
from search_spaces.comparison import Arm, Comparison, Pretrained, Scratch, load_comparison
from search_spaces.fashion_arms import comparison as fashion_arms
from search_spaces.norms import comparison as norms
from search_spaces.space import Phase

ROOT = Path(__file__).parent.parent
DENOISING = Denoising()
BALL = LInfBall(radius=0.1)
ARMS = (
    Arm(name="plain", objective=DENOISING, perturbation=Unperturbed()),
    Arm(name="replay", objective=DENOISING, perturbation=Unperturbed(num_replays=2)),
    Arm(
        name="free-at",
        objective=DENOISING,
        perturbation=FreeAT(ball=BALL, num_replays=2, step_size=0.1),
        reference="replay",
    ),
)


def tiny_comparison(shards: Path = Path("nowhere"), **changes: object) -> Comparison:
    """Three arms on real digits at 8 px, in seconds."""
    space = tiny_space(shards)
    comparison = Comparison(
        name="tiny-arms",
        shards=str(shards),
        network=space.network,
        objective=DENOISING,
        pretraining=space.pretraining,
        finetuning=space.finetuning,
        batch_size=16,
        arms=ARMS,
        seeds=2,
        evaluation=space.evaluation,
    )
    return comparison.but(**changes)


def planted(root: Path, effects: dict[str, float], *, seeds: int = 3, **changes: object) -> ComparisonResult:
    comparison = tiny_comparison(seeds=3, **changes)
    return load_comparison_result(write_comparison_folders(root, comparison, effects, seeds=seeds))


# The declaration


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arms": (*ARMS, ARMS[2])}, "different names, got 'free-at' twice"),
        ({"arms": (ARMS[0], ARMS[2])}, "reference of arm 'free-at' must be one of plain, got 'replay'"),
        ({"arms": ARMS[1:]}, "one arm must be called 'plain'"),
        ({"arms": (*ARMS, ARMS[2].but(name="again"))}, "'free-at' and 'again' are the same training"),
        (
            {"arms": (*ARMS, ARMS[0].but(name="other", objective=Denoising(noise=NoiseSchedule(kind="linear"))))},
            "noise",
        ),
        ({"batch_size": 128}, r"base model: budget_kpass must pay for one minibatch"),
        ({"finetuning": Phase(budget_kpass=0.02, optimization=Optimization())}, "arm 'replay': budget_kpass must pay"),
        ({"batch_size": 15, "workers": 2}, "divisible by workers=2"),
        (
            {"network": UNet(resolution=8, channels=(8, 16), learned_variance=True)},
            "base model: network.learned_variance=True does not fit",
        ),
    ],
)
def test_a_comparison_that_cannot_be_run_is_refused_in_one_line(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        tiny_comparison(**changes)


def test_arms_of_one_seed_differ_in_their_scheme_and_share_everything_else() -> None:
    comparison = tiny_comparison()
    base = comparison.base_config("0" * 64)
    one, two = (comparison.trial_config(base, arm, seed=1).train for arm in comparison.arms[1:])
    assert one.but(perturbation=two.perturbation) == two
    assert one.start_from == base.train.key
    assert base.train.seed not in comparison.seed_numbers


@pytest.mark.parametrize("comparison", [fashion_arms, norms], ids=lambda comparison: comparison.name)
def test_the_ready_comparisons_give_every_arm_exactly_the_same_passes(comparison: Comparison) -> None:
    base = comparison.base_config("")
    trains = [comparison.trial_config(base, arm, 1).train for arm in comparison.arms]
    kpass = [train.minibatches * train.kpass_per_minibatch for train in trains]
    assert kpass == pytest.approx([comparison.finetuning.budget_kpass] * len(kpass))


def test_the_norms_are_compared_at_one_amplitude_and_one_reach() -> None:
    attacks = [arm.perturbation for arm in norms.arms if isinstance(arm.perturbation, FreeAT)]
    assert {attack.ball.norm for attack in attacks} == {"l1", "l2", "linf"}
    assert len({(attack.ball.radius, attack.step_size, attack.num_replays) for attack in attacks}) == 1


def test_a_file_without_a_comparison_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "arms.py"
    file.write_text("space = 1\n")
    with pytest.raises(ValueError, match=r"must define `comparison = Comparison"):
        load_comparison(file)
    with pytest.raises(ValueError, match="there is no comparison"):
        load_comparison(tmp_path / "missing.py")
    assert load_comparison(ROOT / "search_spaces" / "fashion_arms.py") == fashion_arms


@pytest.mark.slow
def test_the_command_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "arms.py"
    file.write_text("from search_spaces.fashion_arms import comparison\ncomparison = comparison.but(seeds=0)\n")
    command = [sys.executable, "-m", "pipeline.cli", "compare", str(file), "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "Comparison: seeds" in done.stderr
    assert "got 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_a_sweep_has_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "tiny-arms")
    workspace.claim(tiny_space(tmp_path))
    with pytest.raises(ValueError, match=r"taken in .*sweep\.json.*another name"):
        workspace.claim(tiny_comparison())


# Results with planted effects


def test_a_planted_effect_is_found_and_a_null_one_is_not(tmp_path: Path) -> None:
    result = planted(tmp_path, {"free-at": -0.5})
    cells = {(cell.arm, cell.against): cell for cell in result.overall}
    assert cells["free-at", "replay"].effect.verdict == "better"
    assert cells["free-at", "replay"].verdict_holm == "better"
    assert cells["free-at", "replay"].effect.mean == pytest.approx(-0.5, abs=0.05)
    assert cells["replay", "plain"].effect.verdict == "not told apart"


def test_what_all_arms_of_a_seed_share_cancels(tmp_path: Path) -> None:
    comparison = tiny_comparison(seeds=3)
    quiet, loud = (
        load_comparison_result(
            write_comparison_folders(tmp_path / str(noise), comparison, {"free-at": -0.2}, seeds=3, shared_noise=noise)
        )
        for noise in (0.0, 2.0)
    )
    assert quiet.metrics("plain", quiet.samplers[0]) != pytest.approx(loud.metrics("plain", loud.samplers[0]), rel=0.5)
    for one, two in zip(quiet.cells, loud.cells, strict=True):
        assert one.effect.log_ratios == pytest.approx(two.effect.log_ratios)


def test_every_arm_meets_its_reference_and_plain_once(tmp_path: Path) -> None:
    result = planted(tmp_path, {})
    assert result.pairs == [("replay", "plain"), ("free-at", "replay"), ("free-at", "plain")]
    assert len(result.cells) == 3 * len(result.samplers)


def test_the_average_over_samplers_is_the_mean_of_their_effects(tmp_path: Path) -> None:
    result = planted(tmp_path, {"free-at": 0.1})
    for cell in result.overall:
        each = [
            other.effect.log_ratios for other in result.cells if (other.arm, other.against) == (cell.arm, cell.against)
        ]
        assert cell.effect.log_ratios == pytest.approx(
            [sum(column) / len(column) for column in zip(*each, strict=True)]
        )


def test_a_distance_below_zero_has_no_ratio_and_takes_its_sampler_out_of_the_average(tmp_path: Path) -> None:
    comparison = tiny_comparison(seeds=3)
    workspace = write_comparison_folders(tmp_path, comparison, {}, seeds=3)
    trial = load_comparison_result(workspace).of_arm("free-at")[0]
    content = json.loads((trial.folder / "result.json").read_text())
    bad = comparison.evaluation.samplers[1]
    content["values"][f"{comparison.evaluation.metric_name}/{bad.name}"] = -0.1
    (trial.folder / "result.json").write_text(json.dumps(content))
    result = load_comparison_result(workspace)
    assert result.cell("free-at", "plain", (bad,)).effect.seeds == 2
    averaged = result.cell("free-at", "plain", result.samplers).effect
    assert averaged == result.cell("free-at", "plain", result.samplers[:1]).effect
    assert all(figure is not None for _, figure in comparison_figures(result))


def test_samplers_are_grouped_by_all_but_their_nfe() -> None:
    grouped = by_series(fashion_arms.evaluation.samplers)
    assert set(grouped) == {"iddpm", "iddpm_es1.017", "ddim", "dpmpp_2m_logsnr"}
    assert [sampler.nfe for sampler in grouped["ddim"]] == [5, 8, 10, 20, 50]


# What people see


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_the_outputs_can_be_written_however_far_the_comparison_is(tmp_path: Path, seeds: int) -> None:
    result = planted(tmp_path, {"free-at": -0.5}, seeds=seeds)
    workspace = Workspace(tmp_path, "tiny-arms")
    written = write_comparison(result, workspace, command="atdiff compare tiny.py --root here")
    assert [file.suffix for file in written[:3]] == [".html", ".md", ".csv"]
    assert all(file.stat().st_size > 100 for file in written)
    for text in (written[0].read_text(), written[1].read_text()):
        assert "atdiff compare tiny.py --root here" in text
        assert ("This comparison is not finished" in text) == (seeds < 3)
        assert "nan" not in text.lower().replace("ancestral", "")
    print_comparison(result, Console(quiet=True))


def test_the_csv_gives_every_number_of_every_cell_once(tmp_path: Path) -> None:
    result = planted(tmp_path, {"free-at": -0.5})
    rows = list(csv.DictReader(as_csv(result).splitlines()))
    assert len(rows) == len(result.cells) + len(result.samplers)  # Plain is compared with nothing.
    cell = result.cells[-1]
    (row,) = (
        row
        for row in rows
        if (row["arm"], row["against"], int(row["nfe"])) == (cell.arm, cell.against, cell.samplers[0].nfe)
    )
    assert float(row["effect_log_ratio"]) == cell.effect.mean
    assert float(row["effect_high"]) == cell.effect.interval[1]
    assert float(row["p_holm"]) == cell.p_holm


def test_more_arms_than_colours_are_still_told_apart(tmp_path: Path) -> None:
    extra = tuple(
        Arm(name=f"pgd-{n}", objective=DENOISING, perturbation=PGD(ball=BALL, num_steps=n, step_size=0.05))
        for n in range(1, 6)
    )
    random = Arm(
        name="random",
        objective=DENOISING,
        perturbation=RandomPerturbation(ball=BALL, num_replays=2, step_size=0.1),
        reference="replay",
    )
    result = planted(tmp_path, {}, arms=(*ARMS, *extra, random), seeds=1)
    styles = arm_styles(result)
    assert len(set(styles.values())) == len(styles) == 9


def test_attacked_arms_are_drawn_by_quality_and_robustness(tmp_path: Path) -> None:
    attacks = (Attack(ball=BALL), Attack(ball=L2Ball(radius=0.5)))
    evaluation = tiny_comparison().evaluation.but(attacks=attacks)
    result = planted(tmp_path, {"free-at": -0.5}, evaluation=evaluation)
    figure = dict(comparison_figures(result))["robustness_quality"]
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {"plain", "replay", "free-at"}
    assert "robustness_quality" not in dict(comparison_figures(planted(tmp_path / "without", {})))


# Where arms start


def test_arms_can_start_from_a_base_that_exists(tiny_config: TrainConfig, digits_8px: ShardSet, tmp_path: Path) -> None:
    save_snapshot(TrainState.fresh(tiny_config), tiny_config, tmp_path / "base")
    comparison = tiny_comparison(
        digits_8px.path.parent, network=tiny_config.network, pretraining=Pretrained(snapshot=str(tmp_path / "base"))
    )
    rung = rung_of(comparison)
    assert not comparison.trains_base
    assert rung.start == tmp_path / "base"
    assert {each.config.train.start_from for each in assignments(comparison, rung.base)} == {tiny_config.key}
    other = comparison.but(network=tiny_config.network.but(channels=(16, 16)))
    with pytest.raises(ValueError, match="holds another network than the run: its block_out_channels"):
        rung_of(other)
    with pytest.raises(ValueError, match="there is no diffusers snapshot"):
        rung_of(comparison.but(pretraining=Pretrained(snapshot=str(tmp_path / "nowhere"))))


def test_arms_can_start_from_random_weights(digits_8px: ShardSet) -> None:
    warming = ARMS[2].but(name="warming", strength=StrengthWarmup(kind="linear", kpass=0.05))
    comparison = tiny_comparison(digits_8px.path.parent, pretraining=Scratch(), arms=(*ARMS, warming))
    trains = [each.config.train for each in assignments(comparison, rung_of(comparison).base)]
    assert not comparison.trains_base
    assert {train.start_from for train in trains} == {SCRATCH}
    assert [train.strength.kpass for train in trains if train.seed == 1] == [0, 0, 0, 0.05]


# A real run


@pytest.fixture(scope="module")
def run_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, ComparisonResult]:
    """A comparison that lost its last trial's result, as a kill leaves it, and was run to its end again."""
    shards = write_digits(tmp_path_factory.mktemp("digits"), [8])
    root, quiet = tmp_path_factory.mktemp("runs"), Console(quiet=True)
    comparison = tiny_comparison(shards)
    workspace = Workspace(root, comparison.name)
    with ray_session(1):
        begun = run_comparison(comparison, root, console=quiet)
        (begun.of_arm("free-at")[-1].folder / RESULT).unlink()
        result = run_comparison(comparison, root, console=quiet)
    finish_comparison(result, workspace, "atdiff compare tiny.py", quiet)
    return comparison, root, result


@pytest.mark.slow
@pytest.mark.cluster
class TestRealRun:
    def test_the_base_comes_first_and_every_arm_has_every_seed(
        self, run_twice: tuple[Comparison, Path, ComparisonResult]
    ) -> None:
        _, _, result = run_twice
        assert Counter((trial.assignment.of, trial.seed) for trial in result.trials) == Counter(
            (arm, seed) for arm in ("plain", "replay", "free-at") for seed in (1, 2)
        )
        assert {trial.assignment.config.train.start_from for trial in result.trials} == {
            result.base[0].assignment.config.train.key
        }
        assert {trial.status for trial in (*result.base, *result.trials)} == {"complete"}
        assert all(cell.effect.seeds == 2 for cell in result.cells)

    def test_finished_trials_were_not_run_again(self, run_twice: tuple[Comparison, Path, ComparisonResult]) -> None:
        _, _, result = run_twice
        for trial in (*result.base, *result.trials):
            lines = (trial.folder / CURVES).read_text().splitlines()
            lost = (trial.assignment.of, trial.seed) == ("free-at", 2)
            assert sum('"eval/metric"' in line for line in lines) == (2 if lost else 1)

    def test_mlflow_has_one_parent_and_every_trial_once(
        self, run_twice: tuple[Comparison, Path, ComparisonResult]
    ) -> None:
        comparison, root, result = run_twice
        client = MlflowClient(tracking_uri=Workspace(root, comparison.name).tracking_uri)
        experiment = client.get_experiment_by_name(comparison.name)
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in runs if "atdiff.sweep" in run.data.tags]
        children = [run for run in runs if "atdiff.trial" in run.data.tags]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
        keys = [run.data.tags["atdiff.trial"] for run in children]
        assert sorted(keys) == sorted(trial.key for trial in (*result.base, *result.trials))
        assert sum("free-at-seed2" in run.info.run_name for run in children) == 1
        artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
        assert {"comparison.html", "comparison.md", "comparison.csv", "effects.png"} <= artifacts
        effect = result.overall[-1]
        logged = parent.data.metrics[f"effect/all_samplers/{effect.arm}/against_{effect.against}"]
        assert logged == pytest.approx(effect.effect.mean)

    def test_another_configuration_under_the_same_name_is_refused(
        self, run_twice: tuple[Comparison, Path, ComparisonResult]
    ) -> None:
        comparison, root, _ = run_twice
        with pytest.raises(ValueError, match=r"different: seeds.*another name"):
            run_comparison(comparison.but(seeds=1), root)
