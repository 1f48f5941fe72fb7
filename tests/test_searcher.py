"""Who proposes, what is refused, and how trials that fail or fall behind are treated."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from pydantic import ValidationError
from sweep_helpers import tiny_space

from pipeline.halving import goes_on
from pipeline.proposals import spread_points
from pipeline.records import Assignment
from pipeline.study import StudyProgramme
from search_spaces.branches import NormBranches
from search_spaces.domains import RawDomains, ReachDomains, choice, log_range
from search_spaces.operation import Constraints
from search_spaces.space import Space

DATASET = "d" * 64
branches = NormBranches(
    branches=(
        ReachDomains(eta=log_range(0.003, 0.3), num_replays=choice(2, 4), norm=choice("linf")),
        ReachDomains(eta=log_range(0.0003, 0.03), reach=choice(1.0, 2.0), norm=choice("l1")),
    )
)


def opened(space: Space, folder: Path) -> StudyProgramme:
    return StudyProgramme(space, space.base_config(8, DATASET), f"sqlite:///{folder / 'study.db'}")


def run(programme: StudyProgramme) -> list[Assignment]:
    done = []
    while (assignment := programme.ask()) is not None:
        perturbation = assignment.config.train.perturbation
        radius = perturbation.ball.radius if perturbation.kind == "free_at" else 1.0
        programme.tell(assignment.key, "complete", 9.0 + math.log(radius / 0.03) ** 2)
        done.append(assignment)
    return done


@given(
    metric=st.floats(-10, 10),
    earlier=st.lists(st.floats(-10, 10), min_size=1, max_size=30),
    keep=st.floats(0.05, 0.95),
)
@settings(deadline=None, max_examples=50)
def test_a_better_trial_never_stops_where_a_worse_one_goes_on(metric: float, earlier: list[float], keep: float) -> None:
    if goes_on(metric, earlier, keep):
        assert goes_on(metric - 1, earlier, keep)
    assert goes_on(min(earlier), earlier, keep)


def test_the_share_that_goes_on_is_the_share_that_was_asked_for() -> None:
    metrics = np.random.default_rng(0).normal(size=2000)
    stay = [goes_on(float(metric), metrics[:place].tolist(), 0.75) for place, metric in enumerate(metrics)]
    assert np.mean(stay) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("searcher", ["gp", "tpe", "random", "sobol"])
def test_every_searcher_proposes_the_same_again_after_an_interruption(tmp_path: Path, searcher: str) -> None:
    space = tiny_space(tmp_path, trials=12, searcher=searcher, name=searcher)
    (tmp_path / "whole").mkdir()
    whole = run(opened(space, tmp_path / "whole"))
    first = opened(space, tmp_path)
    for assignment in whole[:11]:
        assert first.ask() == assignment
        radius = assignment.config.train.perturbation.ball.radius if assignment.role == "search" else 1.0
        first.tell(assignment.key, "complete", 9.0 + math.log(radius / 0.03) ** 2)
    assert [each.key for each in run(opened(space, tmp_path))] == [each.key for each in whole[11:]]


def test_a_model_finds_the_best_radius_and_random_search_does_not_try_to(tmp_path: Path) -> None:
    found = {}
    for searcher in ("gp", "random"):
        space = tiny_space(tmp_path, trials=15, searcher=searcher, name=searcher)
        late = [each for each in run(opened(space, tmp_path)) if each.role == "search"][10:]
        radii = [each.config.train.perturbation.ball.radius for each in late]
        found[searcher] = float(np.median([abs(math.log(radius / 0.03)) for radius in radii]))
    assert found["gp"] < 0.5 < found["random"]


def test_auto_is_a_process_for_few_trials_and_estimators_for_many_or_branches(tmp_path: Path) -> None:
    assert tiny_space(tmp_path).chosen_searcher == "gp"
    assert tiny_space(tmp_path, trials=101).chosen_searcher == "tpe"
    assert tiny_space(tmp_path, domains=branches).chosen_searcher == "tpe"
    with pytest.raises(ValidationError, match="no branches"):
        tiny_space(tmp_path, domains=branches, searcher="gp")


def test_sobol_points_of_a_longer_search_begin_with_those_of_the_shorter(tmp_path: Path) -> None:
    few, many = (spread_points(tiny_space(tmp_path, trials=n, searcher="sobol"), 8) for n in (6, 40))
    assert many[:6] == few


def test_a_branch_searches_its_own_names_in_its_own_range(tmp_path: Path) -> None:
    space = tiny_space(tmp_path, domains=branches, trials=20)
    searched = [each.config.train.perturbation for each in run(opened(space, tmp_path)) if each.role == "search"]
    assert {each.ball.norm for each in searched} == {"linf", "l1"}
    for each in searched:
        low, high = (0.003, 0.3) if each.ball.norm == "linf" else (0.0003, 0.03)
        assert low <= each.ball.radius <= high
        assert each.num_replays in ((2, 4) if each.ball.norm == "linf" else (3,))
    study = optuna.load_study(study_name="tiny/8px", storage=f"sqlite:///{tmp_path / 'study.db'}")
    names = {frozenset(trial.params) for trial in study.trials}
    assert names == {
        frozenset({"norm", "eta_linf", "num_replays_linf"}),
        frozenset({"norm", "eta_l1", "reach_l1"}),
    }


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (
            lambda: NormBranches(branches=(branches.branches[0], branches.branches[0])),
            "different norms, got linf, linf",
        ),
        (lambda: NormBranches(branches=branches.branches[:1]), "at least 2"),
        (
            lambda: NormBranches(
                branches=(branches.branches[0], RawDomains(alpha=choice(0.1), eta=log_range(0.1, 1.0)))
            ),
            "all be ReachDomains",
        ),
        (
            lambda: NormBranches(
                branches=(branches.branches[0], ReachDomains(eta=log_range(0.1, 1.0), norm=choice("l1", "l2")))
            ),
            "one norm, got l1, l2",
        ),
    ],
)
def test_branches_that_do_not_fit_together_are_refused(domains: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        domains()  # type: ignore[operator]


def test_points_outside_the_constraints_are_drawn_again_and_never_run(tmp_path: Path) -> None:
    domains = RawDomains(alpha=log_range(0.01, 1.0), eta=log_range(0.1, 10.0), norm=choice("l2"))
    space = tiny_space(tmp_path, domains=domains, constraints=Constraints(min_reach=0.5, max_reach=4.0), trials=8)
    done = [each for each in run(opened(space, tmp_path)) if each.role == "search"]
    assert len(done) == 8
    assert all(0.5 <= each.config.train.perturbation.reach <= 4.0 for each in done)
    study = optuna.load_study(study_name="tiny/8px", storage=f"sqlite:///{tmp_path / 'study.db'}")
    outside = [trial for trial in study.trials if "key" not in trial.user_attrs]
    assert outside
    assert {trial.state for trial in outside} == {TrialState.PRUNED}
    assert all(max(trial.constraints.values()) > 0 for trial in outside)


def test_a_space_with_few_points_ends_when_all_are_known(tmp_path: Path) -> None:
    space = tiny_space(tmp_path, domains=ReachDomains(eta=choice(0.01, 0.02, 0.04)), searcher="random", trials=30)
    programme = opened(space, tmp_path)
    done = [each for each in run(programme) if each.role == "search"]
    assert len(done) == 3
    assert programme.finished


def test_a_failed_trial_is_tried_again_across_drivers_and_then_left_out(tmp_path: Path) -> None:
    space = tiny_space(tmp_path, retries=2)
    first = opened(space, tmp_path)
    failing = first.ask()
    assert failing is not None
    first.tell(failing.key, "failed", reason="out of memory")
    assert first.ask() == failing
    first.tell(failing.key, "failed", reason="out of memory")
    second = opened(space, tmp_path)  # The first driver died.
    assert second.ask() == failing
    second.tell(failing.key, "failed", reason="loss is nan")
    assert second.outcomes()[failing.key] == "failed"
    later = second.ask()
    assert later is not None
    assert later.key != failing.key
    study = optuna.load_study(study_name="tiny/8px/controls", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.trials[0].user_attrs["failures"] == ["out of memory", "out of memory", "loss is nan"]


def test_what_was_decided_at_a_rung_outlives_the_driver(tmp_path: Path) -> None:
    space = tiny_space(tmp_path, trials=8, searcher="random")
    first = opened(space, tmp_path)
    asked = [first.ask() for _ in range(3 + 6)][3:]
    decided = {}
    for place, each in enumerate(asked[:5]):
        assert each is not None
        decided[each.key] = first.report(each.key, 0.064, float(place))
    assert list(decided.values()) == [True, False, False, False, False]
    second = opened(space, tmp_path)
    for place, (key, goes) in enumerate(decided.items()):
        assert second.report(key, 0.064, float(place)) is goes
    assert asked[5] is not None
    assert second.report(asked[5].key, 0.064, 3.5) is False  # Behind the five of the driver before.


def test_a_driver_that_lives_keeps_its_study(tmp_path: Path) -> None:
    space = tiny_space(tmp_path)
    opened(space, tmp_path).close()
    study = optuna.load_study(study_name="tiny/8px", storage=f"sqlite:///{tmp_path / 'study.db'}")
    alive = {"host": "elsewhere", "pid": 1, "token": "t", "time": 4e9}
    study.set_user_attr("driver", alive)
    with pytest.raises(ValueError, match="already being driven by process 1 on elsewhere"):
        opened(space, tmp_path)
    study.set_user_attr("driver", alive | {"time": 0.0})
    assert opened(space, tmp_path).ask() is not None
