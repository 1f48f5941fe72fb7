"""What smaller resolutions teach a study, read from a sweep on disk whose law is known."""

import math
from pathlib import Path

import pytest
from synthetic_sweep import Truth, write_sweep

from atdiff_core.balls import Norm
from atdiff_core.transfer import FinishedRung, flank
from pipeline.guide import OUTSIDE_EVERY, Guide, Lessons, taught_by
from pipeline.records import Assignment, rung_kpass
from pipeline.results import SweepResult, load_result
from pipeline.side_by_side import SideBySide
from pipeline.study import StudyProgramme
from search_spaces.demo import space as demo
from search_spaces.demo_norms import space as demo_norms
from search_spaces.domains import RawDomains, log_range
from search_spaces.space import Replication

TRUTH = Truth(noise=0.003)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return load_result(write_sweep(tmp_path_factory.mktemp("sweep"), TRUTH))


@pytest.fixture(scope="module")
def guide(result: SweepResult) -> Guide:
    """Of the largest resolution, by the smaller two."""
    return Guide(
        result.space, result.studies[-1].dimension, taught_by(result.studies[:-1], result.space.domains.norms())
    )


def test_only_norms_in_which_an_optimum_was_seen_are_guided(result: SweepResult) -> None:
    taught = taught_by(result.studies, result.space.domains.norms())
    assert set(taught) == {"linf"}  # The other norms have two trials each.
    assert [rung.scale for rung in taught["linf"]] == [study.dimension for study in result.studies]


def test_every_fourth_trial_of_a_guided_norm_is_left_to_the_whole_range(guide: Guide, result: SweepResult) -> None:
    norms = result.space.domains.norms()
    chosen = [guide.norm_of(number) for number in range(OUTSIDE_EVERY * len(norms))]
    assert chosen.count("linf") == OUTSIDE_EVERY - 1
    assert chosen.count(None) == len(chosen) - chosen.count("linf")


def test_a_guided_point_names_strength_and_norm_near_the_law(guide: Guide, result: SweepResult) -> None:
    dimension = result.studies[-1].dimension
    point = guide.point("linf", 0, [], [])
    assert set(point) == {"eta", "norm"}
    assert abs(math.log(float(point["eta"]) / TRUTH.best_eta(dimension))) < 2.5
    assert guide.point("linf", 0, [], []) == point
    assert guide.point("linf", 0, [], [float(point["eta"])]) != point
    told = guide.declaration()["linf"]
    assert told["eta_low"] < TRUTH.best_eta(dimension) < told["eta_high"]


def test_raw_radii_and_untaught_studies_are_not_guided(result: SweepResult) -> None:
    taught = taught_by(result.studies, result.space.domains.norms())
    raw = demo_norms.but(domains=RawDomains(alpha=log_range(0.01, 1.0), eta=log_range(0.01, 1.0)))
    assert not Guide(raw, 256, taught).guides
    assert not Guide(result.space, 256, {}).guides


def test_what_the_sweep_says_in_the_light_of_smaller_resolutions_holds_the_truth(result: SweepResult) -> None:
    lessons = Lessons(result).by_resolution
    assert set(lessons) == {study.resolution for study in result.studies[1:]}
    for study in result.studies[1:]:
        told = lessons[study.resolution]
        truth = TRUTH.best_eta(study.dimension)
        assert told.expected_low < truth < told.expected_high
        assert told.low < told.eta < told.high
        assert abs(math.log(told.eta / truth)) < 0.15


def test_a_sweep_without_optima_teaches_nothing(tmp_path: Path) -> None:
    flat = load_result(write_sweep(tmp_path, Truth(depth=0.0, noise=0.02)))
    assert taught_by(flat.studies, flat.space.domains.norms()) == {}
    assert Lessons(flat).by_resolution == {}


def metric_of(assignment: Assignment) -> float:
    perturbation = assignment.config.train.perturbation
    if perturbation.kind != "free_at":
        return 10.0
    return 9.0 + math.log(perturbation.ball.radius / 0.03) ** 2


def finish(programme: StudyProgramme | SideBySide) -> list[Assignment]:
    done = []
    while (assignment := programme.ask()) is not None:
        programme.tell(assignment.key, "complete", metric_of(assignment))
        done.append(assignment)
    return done


SMALL = demo.but(trials=9, replication=Replication(leaders=1, seeds=1))


@pytest.fixture
def taught(result: SweepResult) -> dict[Norm, tuple[FinishedRung, ...]]:
    return taught_by(result.studies[:-1], ["linf"])


def search_etas(done: list[Assignment]) -> list[float]:
    schemes = [each.config.train.perturbation for each in done if each.role == "search"]
    return [scheme.ball.radius for scheme in schemes if scheme.kind == "free_at"]


def test_a_taught_study_asks_near_the_prediction_and_every_fourth_time_anywhere(
    tmp_path: Path, taught: dict[Norm, tuple[FinishedRung, ...]]
) -> None:
    base = SMALL.base_config(16, "d" * 64)
    programme = StudyProgramme(SMALL, base, f"sqlite:///{tmp_path / 'study.db'}", taught)
    etas = search_etas(finish(programme))
    assert programme.finished
    assert len(etas) == SMALL.trials
    told = Guide(SMALL, 256, taught).declaration()["linf"]
    edges = told["eta_low"] / math.exp(flank + 0.05), told["eta_high"] * math.exp(flank + 0.05)
    guided = [eta for number, eta in enumerate(etas) if number % OUTSIDE_EVERY != OUTSIDE_EVERY - 1]
    assert all(edges[0] <= eta <= edges[1] for eta in guided)


def test_a_taught_study_that_is_opened_again_and_again_asks_for_the_same_trials(
    tmp_path: Path, taught: dict[Norm, tuple[FinishedRung, ...]]
) -> None:
    base = SMALL.base_config(16, "d" * 64)
    whole = finish(StudyProgramme(SMALL, base, f"sqlite:///{tmp_path / 'whole.db'}", taught))
    keys = []
    while True:
        programme = StudyProgramme(SMALL, base, f"sqlite:///{tmp_path / 'broken.db'}", taught)
        assignment = programme.ask()
        if assignment is not None:
            keys.append(assignment.key)
            programme.tell(assignment.key, "complete", metric_of(assignment))
        programme.close()
        if assignment is None:
            break
    assert keys == [each.key for each in whole]


def test_a_guided_trial_is_never_stopped_early(tmp_path: Path, taught: dict[Norm, tuple[FinishedRung, ...]]) -> None:
    base = SMALL.base_config(16, "d" * 64)
    programme = StudyProgramme(SMALL, base, f"sqlite:///{tmp_path / 'study.db'}", taught)
    stays = []
    while (assignment := programme.ask()) is not None:
        rung = rung_kpass(assignment.config)
        assert rung is not None
        goes_on = programme.report(assignment.key, rung, 100.0 + len(stays))  # Each worse than all before.
        if assignment.role == "search":
            stays.append(goes_on)
        programme.tell(assignment.key, "complete" if goes_on else "pruned", metric_of(assignment))
    assert [stayed for number, stayed in enumerate(stays) if number % OUTSIDE_EVERY != OUTSIDE_EVERY - 1] == [True] * 7
    assert not all(stays)


def test_a_space_that_does_not_transfer_is_searched_for_itself(
    tmp_path: Path, taught: dict[Norm, tuple[FinishedRung, ...]]
) -> None:
    unbiased = SMALL.but(transfer=False)
    base = unbiased.base_config(16, "d" * 64)
    with_lessons = finish(StudyProgramme(unbiased, base, f"sqlite:///{tmp_path / 'a.db'}", taught))
    without = finish(StudyProgramme(unbiased, base, f"sqlite:///{tmp_path / 'b.db'}"))
    assert [each.key for each in with_lessons] == [each.key for each in without]
    assert not SMALL.but(searcher="random").transfers
    assert not SMALL.but(searcher="sobol").transfers


def test_side_by_side_all_resolutions_advance_together(tmp_path: Path) -> None:
    space = SMALL.but(transfer=False, side_by_side=True, trials=4)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    studies = [StudyProgramme(space, space.base_config(side, "d" * 64), storage) for side in (8, 12)]
    together = SideBySide(studies)
    done = finish(together)
    assert together.finished
    assert len(done) == together.planned_trials()
    sides = [each.config.train.network.resolution for each in done]
    assert sides[:6] == [8, 12] * 3
    with pytest.raises(ValueError, match="side by side teach each other nothing; set transfer=False"):
        SMALL.but(side_by_side=True)
