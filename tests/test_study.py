"""The programme of a study over a real Optuna storage: order, idempotence, resumption."""

import math
from pathlib import Path

import optuna
import pytest
from sweep_helpers import tiny_space

from pipeline.records import Assignment
from pipeline.study import StudyProgramme
from search_spaces.space import Space, TrialConfig

DATASET = "d" * 64


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return tiny_space(tmp_path)


@pytest.fixture
def base(space: Space) -> TrialConfig:
    return space.base_config(8, DATASET)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def metric_of(assignment: Assignment) -> float:
    """A response with its best radius at 0.03."""
    perturbation = assignment.config.train.perturbation
    if perturbation.kind != "free_at":
        return 10.0
    return 9.0 + math.log(perturbation.ball.radius / 0.03) ** 2


def run_to_end(programme: StudyProgramme) -> list[Assignment]:
    done = []
    while (assignment := programme.ask()) is not None:
        programme.report(assignment.key, 0.064, 12.0)
        programme.tell(assignment.key, "complete", metric_of(assignment))
        done.append(assignment)
    return done


def test_controls_come_first_then_the_search_then_the_leaders_again(
    space: Space, base: TrialConfig, storage: str
) -> None:
    programme = StudyProgramme(space, base, storage)
    roles = [assignment.role for assignment in run_to_end(programme)]
    assert roles[:3] == ["plain", "replay", "replay"]
    assert roles[3:8] == ["search"] * 5
    assert roles[8:11] == ["plain", "replay", "replay"]
    assert sorted(roles[11:]) == ["random", "random", "repeat"]
    assert programme.finished
    assert len(roles) == programme.planned_trials()


def test_every_leader_has_its_controls_with_every_seed(space: Space, base: TrialConfig, storage: str) -> None:
    done = run_to_end(StudyProgramme(space, base, storage))
    best = min((each for each in done if each.role == "search"), key=metric_of)
    replays = best.config.train.perturbation.steps_per_minibatch
    for seed in range(space.replication.seeds):
        arms = {
            (each.role, each.config.train.perturbation.steps_per_minibatch)
            for each in done
            if each.config.train.seed == seed and each.of in ("", best.key)
        }
        assert {("plain", 1), ("replay", replays), ("random", replays)} <= arms


def test_a_leader_is_not_known_before_the_search_has_ended(space: Space, base: TrialConfig, storage: str) -> None:
    programme = StudyProgramme(space, base, storage)
    asked = []
    while (assignment := programme.ask()) is not None:
        asked.append(assignment)
    assert {each.role for each in asked} == {"plain", "replay", "search"}
    assert not programme.finished
    for each in asked:
        programme.tell(each.key, "complete", metric_of(each))
    assert programme.ask() is not None


@pytest.mark.parametrize("killed_after", [0, 1, 4, 9, 12])
def test_a_programme_killed_anywhere_ends_with_every_trial_told_once(
    space: Space, base: TrialConfig, storage: str, killed_after: int
) -> None:
    first = StudyProgramme(space, base, storage)
    for _ in range(killed_after):
        assignment = first.ask()
        assert assignment is not None
        first.tell(assignment.key, "complete", metric_of(assignment))
    lost = first.ask()  # Asked for, never told: the driver died.
    second = StudyProgramme(space, base, storage)
    resumed = run_to_end(second)
    assert lost is not None
    assert resumed[0].key == lost.key
    assert second.finished
    assert len(second.outcomes()) == second.planned_trials()
    assert set(second.outcomes().values()) == {"complete"}


def test_a_resumed_search_does_not_draw_its_first_points_again(space: Space, base: TrialConfig, storage: str) -> None:
    keys = set()
    for _ in range(5):
        programme = StudyProgramme(space, base, storage)
        for _ in range(20):
            assignment = programme.ask()
            assert assignment is not None
            programme.tell(assignment.key, "complete", metric_of(assignment))
            if assignment.role == "search":
                keys.add(assignment.key)
                break
    assert len(keys) == 5


def test_the_first_points_are_spread_over_the_whole_range(space: Space, base: TrialConfig, storage: str) -> None:
    space = space.but(trials=12)
    done = run_to_end(StudyProgramme(space, base, storage))
    searched = [each.config.train.perturbation for each in done if each.role == "search"][:8]
    places = [math.log(each.ball.radius / 0.003) / math.log(0.3 / 0.003) for each in searched]
    assert sorted(int(place * 8) for place in places) == list(range(8))
    replays = [each.steps_per_minibatch for each in searched]
    assert replays.count(2) == replays.count(4) == 4


def test_telling_twice_changes_nothing(space: Space, base: TrialConfig, storage: str) -> None:
    programme = StudyProgramme(space, base, storage)
    assignment = programme.ask()
    assert assignment is not None
    programme.tell(assignment.key, "complete", 3.0)
    programme.tell(assignment.key, "failed")
    assert programme.outcomes()[assignment.key] == "complete"


def test_a_stopped_trial_is_pruned_with_its_values_and_nan_is_a_failure(
    space: Space, base: TrialConfig, storage: str
) -> None:
    programme = StudyProgramme(space, base, storage)
    for _ in range(3):
        control = programme.ask()
        assert control is not None
        programme.tell(control.key, "complete", 10.0)
    stopped, broken = programme.ask(), programme.ask()
    assert stopped is not None
    assert broken is not None
    programme.report(stopped.key, 0.064, 5.0)
    programme.report(stopped.key, 0.064, 6.0)
    programme.tell(stopped.key, "pruned")
    programme.tell(broken.key, "complete", math.nan)
    assert programme.ask() == broken  # Once more.
    programme.tell(broken.key, "complete", math.nan)
    assert programme.outcomes()[stopped.key] == "pruned"
    assert programme.outcomes()[broken.key] == "failed"
    study = optuna.load_study(study_name="tiny/8px", storage=storage)
    assert study.trials[0].intermediate_values == {64: 5.0}


def test_a_study_of_another_configuration_is_refused(space: Space, base: TrialConfig, storage: str) -> None:
    StudyProgramme(space, base, storage)
    with pytest.raises(ValueError, match=r"another configuration \(different: batch_size\)"):
        StudyProgramme(space.but(batch_size=8), base, storage)


def test_trials_share_everything_but_the_perturbation(space: Space, base: TrialConfig, storage: str) -> None:
    done = run_to_end(StudyProgramme(space, base, storage))
    for each in done:
        train = each.config.train
        assert train.budget_kpass == space.finetuning.budget_kpass
        assert train.start_from == base.train.key
        assert train.but(perturbation=done[0].config.train.perturbation, seed=0) == done[0].config.train
