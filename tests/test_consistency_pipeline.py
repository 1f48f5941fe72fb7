"""Consistency models through the pipeline: teacher, trials, command line and a real sweep, as for any objective."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ConsistencyModelPipeline
from rich.console import Console
from sweep_helpers import tiny_space, write_digits
from synthetic_sweep import Truth, write_sweep
from typer.testing import CliRunner

from atdiff_core.balls import L2Ball
from atdiff_core.data.stream import open_shards
from atdiff_core.karras import KarrasNoise
from atdiff_core.laws import PowerLaw
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.consistency import ConsistencyDistillation
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.edm import EDM
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, Unperturbed
from atdiff_core.samplers import Sampler
from atdiff_core.snapshots import load_snapshot
from pipeline.cli import app
from pipeline.comparison import assignments, rung_of
from pipeline.driver import driving
from pipeline.places import Places
from pipeline.records import SNAPSHOT, Assignment, declare, load_record
from pipeline.report.page import write_report
from pipeline.results import load_result
from pipeline.study import StudyProgramme
from pipeline.trial import run_trial
from pipeline.trial_events import Judged
from pipeline.workspace import Workspace
from search_spaces.comparison import Arm, Comparison, Pretrained, Scratch
from search_spaces.demo_cm import space as demo_cm
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.space import Phase, Replication, Space, StudentPhase, TeacherPhase

PHASE = Optimization(learning_rate=1e-3, ema_half_life_kpass=0.05)
DISTILLATION = ConsistencyDistillation(noise=KarrasNoise(num_levels=6), unit="noise")
STUDENT = StudentPhase(budget_kpass=0.064, optimization=PHASE)
SAMPLERS = (Sampler(kind="cm", nfe=1), Sampler(kind="cm", nfe=2), Sampler(kind="edm_euler", nfe=2))
FREE_AT = FreeAT(ball=L2Ball(radius=0.05), num_replays=2, step_size=0.05)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8])


def cm_space(shards: Path, **changes: object) -> Space:
    """A teacher and a handful of distillations on real digits at 8 px."""
    space = tiny_space(
        shards,
        name="tiny-cm",
        objective=DISTILLATION,
        pretraining=TeacherPhase(budget_kpass=0.064, optimization=PHASE, objective=EDM()),
        finetuning=Phase(budget_kpass=0.24, optimization=PHASE),
        domains=ReachDomains(eta=log_range(0.003, 0.3), num_replays=choice(2)),
        evaluation=EvaluationConfig(samples=8, samplers=SAMPLERS, reference=32),
        trials=3,
        replication=Replication(leaders=1, seeds=1),
    )
    return space.but(**changes)


@pytest.fixture(scope="module")
def taught(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Space, Assignment, Places]:
    """A trained teacher, and where a student finds everything."""
    space, root = cm_space(shards), tmp_path_factory.mktemp("trials")
    base = Assignment(space.base_config(8, open_shards(shards / "8px").fingerprint), "base")
    declare(root / "base", base)
    list(run_trial(base, Places(shards / "8px", root / "base", root / "base", root / "cache")))
    teacher = root / "base" / SNAPSHOT
    return space, base, Places(shards / "8px", root / "none", teacher, root / "cache", teacher=teacher)


def test_a_student_starts_at_its_teacher_and_is_judged_by_samplers_of_its_own(
    taught: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    space, base, places = taught
    student = Assignment(space.at(base.config, {"eta": 0.05}), "search")
    assert student.config.train.teacher == student.config.train.start_from == base.config.train.key
    here = Places(places.shards, tmp_path, places.start, places.cache, teacher=places.teacher)
    declare(tmp_path, student)
    judged = [event for event in run_trial(student, here) if isinstance(event, Judged)]
    assert [each.final for each in judged] == [False, True]
    assert [name for name in load_record(tmp_path).result if name.startswith("kd_efflite0_64/")] == [
        "kd_efflite0_64/cm_1",
        "kd_efflite0_64/cm_2",
    ]
    assert load_snapshot(tmp_path / SNAPSHOT).noise == DISTILLATION.noise
    assert ConsistencyModelPipeline.from_pretrained(tmp_path / SNAPSHOT).scheduler.config.num_train_timesteps == 6


def test_a_trial_refuses_another_teacher_than_its_own(taught: tuple[Space, Assignment, Places], tmp_path: Path) -> None:
    space, base, places = taught
    config = space.at(base.config, {"eta": 0.05})
    other = Assignment(config.but(train=config.train.but(teacher="f" * 64)), "search")
    declare(tmp_path, other)
    with pytest.raises(ValueError, match=f"made for snapshot ffffffffffff, but {places.teacher} holds"):
        next(run_trial(other, Places(places.shards, tmp_path, places.start, places.cache, teacher=places.teacher)))


def test_atdiff_train_distils_a_given_teacher_and_says_when_none_is_given(
    taught: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    _, _, places = taught
    file = tmp_path / "config.py"
    file.write_text(
        "from test_consistency_pipeline import DISTILLATION, FREE_AT, SAMPLERS\n"
        "from atdiff_core.metrics.evaluation import EvaluationConfig\n"
        "from atdiff_core.networks import UNet\n"
        "config = {'train': {'network': UNet(resolution=8, channels=(8, 16)), 'objective': DISTILLATION,\n"
        "    'perturbation': FREE_AT, 'batch_size': 8, 'budget_kpass': 0.06},\n"
        "    'evaluation': EvaluationConfig(samples=8, samplers=SAMPLERS[:2], reference=32)}\n"
    )
    command = ["train", str(file), "--shards", str(places.shards), "--device", "cpu", "--threads", "1"]
    given = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run"), "--teacher", str(places.teacher)])
    assert given.exit_code == 0, given.output
    assert "kd_efflite0_64/cm_1" in given.stdout
    missing = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "other")])
    assert "objective consistency_distillation needs a teacher: give --teacher SNAPSHOT" in str(missing.exception)
    student = str(tmp_path / "run" / SNAPSHOT)
    wrong = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "other"), "--teacher", student])
    assert "this one is a consistency model; give the diffusion model" in str(wrong.exception)
    drawn = CliRunner().invoke(app, ["sample", student, "--sampler", "ddim", "--nfe", "2", "--device", "cpu"])
    assert "ddim cannot step a network that is a consistency model" in str(drawn.exception)


def comparison(shards: Path, **changes: object) -> Comparison:
    space = cm_space(shards)
    arms = (
        Arm(name="plain", objective=DISTILLATION, perturbation=Unperturbed()),
        Arm(name="free-at", objective=DISTILLATION.but(perturbed="solver"), perturbation=FREE_AT),
    )
    declared = Comparison(
        name="tiny-cm-arms", shards=str(shards), network=space.network, objective=EDM(),
        pretraining=Phase(budget_kpass=0.064, optimization=PHASE), finetuning=space.finetuning, batch_size=16,
        arms=arms, seeds=1, evaluation=space.evaluation,
    )  # fmt: skip
    return declared.but(**changes)


def test_arms_are_taught_by_the_base_model_or_by_a_snapshot(
    shards: Path, taught: tuple[Space, Assignment, Places]
) -> None:
    by_base = comparison(shards)
    rung = rung_of(by_base)
    assert {each.config.train.teacher for each in assignments(by_base, rung.base)} == {rung.base.train.key}
    _, base, places = taught
    again = comparison(shards, objective=DISTILLATION, teacher=Pretrained(snapshot=str(places.teacher)))
    rung = rung_of(again)
    key = base.config.train.key
    assert rung.base.train.teacher == key
    trials = assignments(again, rung.base, key)
    assert {each.config.train.teacher for each in trials} == {key}
    assert {each.config.train.start_from for each in trials} == {rung.base.train.key}
    assert again.trial_evaluation.samplers == SAMPLERS[:2]


@pytest.mark.slow
def test_a_base_model_that_is_a_student_begins_at_its_teacher(
    shards: Path, taught: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    _, base, places = taught
    begins = StudentPhase(budget_kpass=0.064, optimization=PHASE.but(learning_rate=1e-9))
    declared = comparison(
        shards, objective=DISTILLATION, teacher=Pretrained(snapshot=str(places.teacher)), pretraining=begins
    )
    assert Comparison.model_validate_json(declared.model_dump_json()) == declared
    rung = rung_of(declared)
    assert rung.base.train.start_from == rung.base.train.teacher == base.config.train.key
    workspace = Workspace(tmp_path, declared.name)
    with driving(declared, [rung], workspace, cpus=1, console=Console(quiet=True), inline=True) as driver:
        driver.run_bases()
    ours, theirs = (
        load_snapshot(folder).network.state_dict()
        for folder in (workspace.trial(rung.base.key) / SNAPSHOT, places.teacher)
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert {each.config.train.start_from for each in assignments(declared, rung.base)} == {rung.base.train.key}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pretraining": STUDENT}, "edm has no teacher to begin at: give pretraining=Phase"),
        ({"objective": DISTILLATION}, "consistency_distillation cannot teach itself: give teacher=Pretrained"),
        ({"pretraining": Scratch()}, "consistency_distillation needs a teacher, there is no base"),
        ({"evaluation": EvaluationConfig(samplers=SAMPLERS[:2])}, "none of the samplers cm_1, cm_2 can step"),
        ({"objective": EDM(noise=KarrasNoise(kind="edm", sigma_data=0.7))}, "sigma_data=0.7, the objective 0.5"),
    ],
)
def test_a_comparison_of_students_that_cannot_be_run_is_refused(
    shards: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        comparison(shards, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pretraining": STUDENT}, "a sweep trains its own teacher"),
        ({"pretraining": Phase(budget_kpass=1, optimization=PHASE)}, "needs a teacher: make it by pretraining=Teacher"),
        ({"objective": Denoising()}, "the weights to start from were trained with the noise"),
        ({"evaluation": EvaluationConfig(samplers=SAMPLERS[2:])}, "none of the samplers edm_euler_2 can step"),
        ({"finetuning": Phase(budget_kpass=0.05, optimization=PHASE)}, "must pay for a minibatch of K = 2 replays"),
    ],
)
def test_a_space_of_students_that_cannot_be_run_is_refused(
    shards: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        cm_space(shards, **changes)


def test_a_teacher_may_predict_noise(shards: Path) -> None:
    teaching = TeacherPhase(
        budget_kpass=0.064, optimization=PHASE, objective=Denoising(noise=NoiseSchedule(kind="linear"))
    )
    samplers = (*SAMPLERS[:2], Sampler(kind="ddim", nfe=2))
    evaluation = EvaluationConfig(samples=8, samplers=samplers, reference=32)
    space = cm_space(shards, pretraining=teaching, evaluation=evaluation)
    assert space.base_config(8, "").evaluation.samplers == samplers[2:]
    assert space.trial_evaluation.samplers == samplers[:2]


def test_the_law_of_students_is_found_as_for_any_objective(tmp_path: Path) -> None:
    truth = Truth(noise=0.0)
    students = {name: getattr(demo_cm, name) for name in ("objective", "pretraining", "finetuning", "evaluation")}
    law = load_result(write_sweep(tmp_path, truth, **students)).law
    assert isinstance(law, PowerLaw)
    assert law.exponent == pytest.approx(truth.exponent, abs=0.1)


@pytest.mark.slow
def test_a_study_of_students_runs_to_its_report_trial_by_trial(
    taught: tuple[Space, Assignment, Places], shards: Path, tmp_path: Path
) -> None:
    """Everything but Ray, which sees no more of a trial than its JSON: teacher, search, controls, law, page."""
    space, base, places = taught
    workspace = Workspace(tmp_path, space.name)
    workspace.claim(space)
    shutil.copytree(places.start.parent, workspace.trial(base.key))
    study = StudyProgramme(space, base.config, workspace.study_uri)
    while (assignment := study.ask()) is not None:
        folder = workspace.trial(assignment.key)
        declare(folder, assignment)
        here = Places(places.shards, folder, places.start, places.cache, teacher=places.teacher)
        (*_, last) = [event for event in run_trial(assignment, here) if isinstance(event, Judged)]
        study.tell(assignment.key, "complete", last.metric)
    assert study.finished
    (found,) = load_result(workspace).studies
    assert {trial.assignment.role for trial in found.trials} == {"search", "plain", "replay", "random"}
    assert {trial.status for trial in found.trials} == {"complete"}
    assert found.evaluation.samplers == SAMPLERS[:2]
    page = write_report(load_result(workspace), workspace, command="atdiff sweep").read_text()
    assert "consistency_distillation" in page
    assert "cm with 1 NFE" in page
