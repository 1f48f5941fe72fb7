"""A trial in its folder: judged at the rung, resumed from its checkpoint, never run twice."""

from pathlib import Path

import pytest
from sweep_helpers import tiny_space, write_digits

from atdiff_core.balls import L2Ball
from atdiff_core.data.stream import open_shards
from atdiff_core.metrics.robustness import Attack
from atdiff_core.perturbations import Unperturbed
from atdiff_core.snapshots import load_snapshot
from pipeline.places import Places
from pipeline.records import CHECKPOINT, RESULT, SNAPSHOT, Assignment, declare, load_record
from pipeline.trial import run_trial
from pipeline.trial_events import Judged
from search_spaces.space import Space


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8])


@pytest.fixture(scope="module")
def based(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Space, Assignment, Places]:
    """A trained base model, and where a trial that starts from it finds everything."""
    space = tiny_space(shards)
    root = tmp_path_factory.mktemp("trials")
    base = Assignment(space.base_config(8, open_shards(shards / "8px").fingerprint), "base")
    places = Places(shards / "8px", root / "base", root / "base", root / "cache")
    declare(places.folder, base)
    list(run_trial(base, places))
    return space, base, Places(shards / "8px", root / "none", root / "base" / SNAPSHOT, root / "cache")


def trial_of(based: tuple[Space, Assignment, Places], folder: Path) -> tuple[Assignment, Places]:
    space, base, places = based
    assignment = Assignment(space.at(base.config, {"eta": 0.02, "num_replays": 2}), "search")
    declare(folder, assignment)
    return assignment, Places(places.shards, folder, places.start, places.cache)


def judgements(events: object) -> list[Judged]:
    return [event for event in events if isinstance(event, Judged)]  # type: ignore[attr-defined]


def test_a_trial_is_judged_at_its_rung_and_at_its_end(based: tuple[Space, Assignment, Places], tmp_path: Path) -> None:
    judged = judgements(run_trial(*trial_of(based, tmp_path)))
    assert [(each.kpass, each.final) for each in judged] == [(0.064, False), (0.128, True)]
    record = load_record(tmp_path)
    assert record.status == "complete"
    assert record.metric_at() == {each.kpass: each.metric for each in judged}


def test_a_trial_tells_its_loss_under_the_attacks_of_its_evaluation(
    based: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    assignment, places = trial_of(based, tmp_path)
    weak, strong = Attack(ball=L2Ball(radius=0.001)), Attack(ball=L2Ball(radius=0.1))
    evaluation = assignment.config.evaluation.but(attacks=(weak, strong), attacked_images=32)
    list(run_trial(Assignment(assignment.config.but(evaluation=evaluation), "search"), places))
    result = load_record(tmp_path).result
    assert 1 < result["attack_gain/l2_0.001"] < result["attack_gain/l2_0.1"]


def test_a_trial_stopped_at_its_rung_ends_as_if_it_had_not_stopped(
    based: tuple[Space, Assignment, Places], tmp_path: Path
) -> None:
    whole, places = trial_of(based, tmp_path / "whole")
    list(run_trial(whole, places))
    stopped, again = trial_of(based, tmp_path / "stopped")
    for event in run_trial(stopped, again):
        if isinstance(event, Judged):
            break
    assert (again.folder / CHECKPOINT / "checkpoint.json").is_file()
    list(run_trial(stopped, again))
    expected = load_snapshot(places.folder / SNAPSHOT).network.state_dict()
    for name, weights in load_snapshot(again.folder / SNAPSHOT).network.state_dict().items():
        assert weights.equal(expected[name]), name
    one, two = load_record(places.folder), load_record(again.folder)
    assert one.result == two.result
    assert one.metric_at() == two.metric_at()


def test_a_complete_trial_answers_from_its_record(based: tuple[Space, Assignment, Places], tmp_path: Path) -> None:
    assignment, places = trial_of(based, tmp_path)
    list(run_trial(assignment, places))
    (places.folder / CHECKPOINT / "checkpoint.json").unlink()
    before = (tmp_path / RESULT).read_bytes()
    (judged,) = run_trial(assignment, places)
    assert isinstance(judged, Judged)
    assert judged.final
    assert (tmp_path / RESULT).read_bytes() == before


def test_a_trial_refuses_another_base_model(based: tuple[Space, Assignment, Places], tmp_path: Path) -> None:
    space, base, places = based
    other = base.config.but(train=base.config.train.but(seed=5))
    foreign = Assignment(space.trial_config(other, Unperturbed()), "plain")
    with pytest.raises(ValueError, match="was made for snapshot"):
        list(run_trial(foreign, Places(places.shards, tmp_path, places.start, places.cache)))


def test_half_a_line_left_by_a_kill_is_not_a_point(based: tuple[Space, Assignment, Places], tmp_path: Path) -> None:
    list(run_trial(*trial_of(based, tmp_path)))
    whole = load_record(tmp_path).curves
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"kpass": 0.1, "time')
    assert load_record(tmp_path).curves == whole
