"""Latent consistency distillation through the pipeline: teacher, trials, a whole sweep, as for any objective."""

import shutil
from pathlib import Path

import pytest
from latent_sets import STUDENT, World, world
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from atdiff_core.balls import L2Ball
from atdiff_core.data.contents import Latents
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, Unperturbed
from atdiff_core.samplers import Sampler
from atdiff_core.snapshots import load_snapshot
from atdiff_core.text_snapshots import Surroundings, check_belongs
from pipeline.cli import app
from pipeline.comparison import assignments, rung_of
from pipeline.places import Places
from pipeline.records import RESULT, SAMPLES, SNAPSHOT, Assignment, declare
from pipeline.report.page import write_report
from pipeline.sweep import run_sweep
from pipeline.trial import run_trial
from pipeline.trial_events import Judged
from pipeline.workspace import Workspace
from search_spaces.comparison import Arm, Comparison, Pretrained
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.space import Phase, Replication, Space, Stopping, TeacherPhase, TrialConfig

PHASE = Optimization(learning_rate=1e-3, ema_half_life_kpass=0.05)
SCHEDULE = NoiseSchedule(kind="scaled_linear")
DISTILLATION = LatentConsistencyDistillation(noise=LatentConsistencyNoise(num_steps=10), unit="noise")
SAMPLERS = (
    Sampler(kind="lcm", nfe=1, guidance=4.0), Sampler(kind="lcm", nfe=2, guidance=4.0),
    Sampler(kind="ddim", nfe=2, guidance=3.0),
)  # fmt: skip
FREE_AT = FreeAT(ball=L2Ball(radius=0.05), num_replays=2, step_size=0.05)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("world"))


def lcm_space(here: World, **changes: object) -> Space:
    space = Space(
        name="tiny-lcm",
        shards=str(here.latents.parent),
        prompts=str(here.prompts),
        prompt_dropout=0.1,
        ladder=(4,),
        predict_at=8,
        network=STUDENT,
        objective=DISTILLATION,
        pretraining=TeacherPhase(budget_kpass=0.032, optimization=PHASE, objective=Denoising(noise=SCHEDULE)),
        finetuning=Phase(budget_kpass=0.08, optimization=PHASE),
        batch_size=8,
        domains=ReachDomains(eta=log_range(0.003, 0.3), num_replays=choice(2), reach=choice(1.0), norm=choice("l2")),
        evaluation=EvaluationConfig(samples=8, samplers=SAMPLERS, reference=16),
        trials=2,
        stopping=Stopping(rung=0.5, keep=0.75),
        replication=Replication(leaders=1, seeds=1),
    )
    return space.but(**changes)


@pytest.fixture(scope="module")
def taught(here: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Space, Assignment, Places]:
    """A trained teacher, and where a student finds everything."""
    space, root = lcm_space(here), tmp_path_factory.mktemp("trials")
    base = Assignment(space.base_config(4, here.shards.fingerprint, here.texts.fingerprint), "base")
    declare(root / "base", base)
    places = Places(here.latents, root / "base", root / "base", root / "cache", prompts=here.prompts)
    list(run_trial(base, places))
    teacher = root / "base" / SNAPSHOT
    return (
        space,
        base,
        Places(here.latents, root / "none", teacher, root / "cache", teacher=teacher, prompts=here.prompts),
    )


def test_teacher_and_student_differ_in_what_they_are_told(taught: tuple[Space, Assignment, Places]) -> None:
    space, base, _ = taught
    student = space.at(base.config, {"eta": 0.05}).train
    assert (base.config.train.network.guidance_width, student.network.guidance_width) == (0, 8)
    assert (base.config.train.prompt_dropout, student.prompt_dropout) == (0.1, 0)
    assert base.config.evaluation.samplers == SAMPLERS[2:]
    assert space.trial_evaluation.samplers == SAMPLERS[:2]
    ranked = space.but(network=STUDENT.but(lora_rank=2))
    assert ranked.base_config(4, "", "").train.network.lora_rank == 0
    assert ranked.at(base.config, {"eta": 0.05}).train.network.lora_rank == 2


def test_a_student_is_judged_on_decoded_latents_and_sampled_alike_again(
    here: World, taught: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    space, base, places = taught
    student = Assignment(space.at(base.config, {"eta": 0.05}), "search")
    declare(tmp_path, student)
    own = Places(places.shards, tmp_path, places.start, places.cache, teacher=places.teacher, prompts=places.prompts)
    (*_, last) = [event for event in run_trial(student, own) if isinstance(event, Judged)]
    assert last.final
    assert (tmp_path / SAMPLES).is_file()
    assert "kd_efflite0_64/lcm_g4_1" in (tmp_path / RESULT).read_text()
    snapshot = load_snapshot(tmp_path / SNAPSHOT)
    assert isinstance(snapshot.latents, Latents)
    evaluator = Evaluator(student.config.evaluation, here.shards, places.cache, prompts=here.texts)
    (first, *_) = evaluator.evaluate(snapshot.network, snapshot.noise)
    assert first.images.shape == (8, 3, 8, 8)
    assert evaluator.metric(first) == pytest.approx(last.metric, rel=1e-3)


def test_guidance_counts_and_is_told(here: World, taught: tuple[Space, Assignment, Places]) -> None:
    """diffusers' convention: with scale 1 nothing is guided."""
    with pytest.raises(ValueError, match="guidance is for ddim"):
        Sampler(kind="cm", nfe=1, guidance=2.0)
    assert Sampler.named("lcm_g4", nfe=1) == SAMPLERS[0]
    assert Sampler.named("ddim_es1.017_g7.5", nfe=3).name == "ddim_es1.017_g7.5_3"
    assert "guidance" not in Sampler().canonical_json()


@pytest.mark.slow
def test_a_sweep_of_students_runs_to_its_law_with_no_case_of_its_own(here: World, tmp_path: Path) -> None:
    """Teacher, search, controls, MLflow and the report's figures, in this process."""
    space = lcm_space(here)
    result = run_sweep(space, tmp_path, inline=True)
    (study,) = result.studies
    assert {trial.assignment.role for trial in study.trials} == {"search", "plain", "replay", "random"}
    assert {trial.status for trial in study.trials} <= {"complete", "pruned"}
    assert study.evaluation.samplers == SAMPLERS[:2]
    page = write_report(result, Workspace(tmp_path, space.name), command="atdiff sweep").read_text()
    assert "latent_consistency" in page
    assert "lcm_g4 with 1 NFE" in page


def test_a_comparison_takes_a_stable_diffusion_folder_as_its_teacher(
    here: World, taught: tuple[Space, Assignment, Places]
) -> None:
    space, base, places = taught
    folder = Pretrained(snapshot=str(places.teacher))
    arms = (
        Arm(name="plain", objective=DISTILLATION, perturbation=Unperturbed()),
        Arm(name="free-at", objective=DISTILLATION.but(perturbed="solver"), perturbation=FREE_AT),
    )
    comparison = Comparison(
        name="tiny-lcm-arms", shards=space.shards, prompts=space.prompts, network=STUDENT.but(lora_rank=2),
        objective=Denoising(noise=SCHEDULE), pretraining=folder, finetuning=space.finetuning, batch_size=8,
        arms=arms, seeds=1, evaluation=space.evaluation,
    )  # fmt: skip
    rung = rung_of(comparison)
    trials = assignments(comparison, rung.base)
    assert {each.config.train.teacher for each in trials} == {base.config.train.key}
    assert {each.config.train.network for each in trials} == {STUDENT.but(lora_rank=2)}
    assert {each.config.train.prompts for each in trials} == {here.texts.fingerprint}


def test_a_teacher_of_other_latents_or_prompts_is_refused(
    here: World, taught: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    _, _, places = taught
    around = Surroundings(here.shards.index.latents, here.texts)
    check_belongs(places.teacher, around)
    for part, words in (("vae", "not the autoencoder of the latents"), ("text_encoder", "not the text encoder of")):
        other = shutil.copytree(places.teacher, tmp_path / part)
        (weights,) = (other / part).glob("*.safetensors")
        tensors = load_file(weights)
        save_file({name: value + 1 for name, value in tensors.items()}, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=words):
            check_belongs(other, around)


def test_class_conditional_latents_train_with_the_ordinary_network(here: World, tmp_path: Path) -> None:
    network = UNet(resolution=4, image_channels=3, channels=(8, 16), num_classes=2)
    train = {
        "network": network, "objective": Denoising(noise=SCHEDULE), "perturbation": FREE_AT, "batch_size": 8,
        "dataset": here.shards.fingerprint, "budget_kpass": 0.032, "optimization": PHASE,
    }  # fmt: skip
    evaluation = EvaluationConfig(samples=8, samplers=(Sampler(kind="ddim", nfe=2),), reference=16)
    trial = Assignment(TrialConfig.model_validate({"train": train, "evaluation": evaluation}), "base")
    declare(tmp_path / "run", trial)
    (*_, last) = run_trial(trial, Places(here.latents, tmp_path / "run", tmp_path, tmp_path / "cache"))
    assert isinstance(last, Judged)
    snapshot = load_snapshot(tmp_path / "run" / SNAPSHOT)
    assert snapshot.latents == here.shards.index.latents
    assert snapshot.num_classes == 2
    command = ["sample", str(tmp_path / "run" / SNAPSHOT), "--nfe", "2", "--count", "4", "--device", "cpu"]
    drawn = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "drawn.png")])
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "drawn.png") as grid:  # Of pictures, not of latents: 8 pixels, enlarged to 48.
        assert grid.size == (8 * 50, 50)


def test_atdiff_train_takes_prompts_and_says_when_they_are_missing(here: World, tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text(
        "from test_text_pipeline import FREE_AT, SAMPLERS, SCHEDULE\n"
        "from latent_sets import TEACHER\n"
        "from atdiff_core.metrics.evaluation import EvaluationConfig\n"
        "from atdiff_core.objectives.denoising import Denoising\n"
        "config = {'train': {'network': TEACHER, 'objective': Denoising(noise=SCHEDULE), 'perturbation': FREE_AT,\n"
        "    'batch_size': 8, 'budget_kpass': 0.016},\n"
        "    'evaluation': EvaluationConfig(samples=4, samplers=SAMPLERS[2:], reference=16)}\n"
    )
    command = ["train", str(file), "--shards", str(here.latents), "--device", "cpu", "--threads", "1"]
    given = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run"), "--prompts", str(here.prompts)])
    assert given.exit_code == 0, given.output
    assert "kd_efflite0_64/ddim_g3_2" in given.stdout
    for command_on_it in (["sample"], ["evaluate", "--shards", str(here.latents)]):
        drawn = CliRunner().invoke(app, [command_on_it[0], str(tmp_path / "run" / SNAPSHOT), *command_on_it[1:]])
        assert "the network attends to prompts; sample it with diffusers' pipelines" in str(drawn.exception)
    missing = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "other")])
    assert "a network of kind text is told embeddings of prompts, got 'none'" in str(missing.exception)
