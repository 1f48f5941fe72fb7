"""Effects and comparisons read back from a sweep's folders."""

import math
from pathlib import Path

import pytest
from synthetic_sweep import Truth, write_sweep

from pipeline.results import StudyResult, compared, load_result

NOISELESS = Truth(noise=0.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return load_result(write_sweep(tmp_path_factory.mktemp("sweep"), NOISELESS)).studies[0]


def test_an_effect_is_the_log_ratio_to_the_replay_control_of_the_same_replays_and_seed(study: StudyResult) -> None:
    for trial in study.of_role("search", "repeat"):
        expected = NOISELESS.effect(trial.assignment.config.train.perturbation, study.dimension)
        assert study.effect(trial) == pytest.approx(expected)


def test_a_stopped_trial_is_compared_where_it_stopped(study: StudyResult) -> None:
    stopped = [trial for trial in study.of_role("search") if trial.status == "pruned"]
    assert stopped
    for trial in stopped:
        control = study.control(trial, "replay")
        assert control is not None
        assert len(trial.metric_at()) < len(control.metric_at())
        assert study.effect(trial) is not None


def test_a_control_shares_seed_and_replays(study: StudyResult) -> None:
    for trial in study.of_role("search", "repeat"):
        control = study.control(trial, "replay")
        assert control is not None
        assert control.seed == trial.seed
        ours, theirs = (each.assignment.config.train.perturbation for each in (trial, control))
        assert ours.steps_per_minibatch == theirs.steps_per_minibatch


def test_norms_are_not_pooled(study: StudyResult) -> None:
    searched = [trial.assignment.config.train.perturbation for trial in study.of_role("search", "repeat")]
    here = [each for each in searched if each.kind == "free_at" and each.ball.norm == study.norm]
    assert len(study.observations) == len(here) < len(searched)


def test_the_norm_is_the_same_at_every_resolution(tmp_path: Path) -> None:
    assert len({each.norm for each in load_result(write_sweep(tmp_path, NOISELESS)).studies}) == 1


def test_a_leader_is_compared_over_all_its_seeds(study: StudyResult) -> None:
    assert study.leader is not None
    comparison = study.against(study.leader, "plain")
    assert comparison is not None
    assert comparison.seeds == 2


def test_a_comparison_is_the_mean_log_ratio_with_its_standard_error() -> None:
    comparison = compared([(1.0, math.e), (1.0, 1.0)])
    assert comparison is not None
    assert comparison.effect == pytest.approx(-0.5)
    assert comparison.std_error == pytest.approx(0.5)


def test_one_seed_has_no_standard_error_and_none_no_comparison() -> None:
    single = compared([(1.0, 2.0)])
    assert single is not None
    assert math.isnan(single.std_error)
    assert compared([]) is None


def test_a_distance_that_is_not_positive_has_no_ratio() -> None:
    assert compared([(-0.1, 1.0)]) is None
