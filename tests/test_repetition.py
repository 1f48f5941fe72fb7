"""Which leaders are run again, seed by seed, over metrics that are known."""

from collections import Counter

import pytest

from atdiff_core.controls import replay_control
from pipeline.records import Assignment
from pipeline.repetition import planned_repetitions, repeated
from search_spaces.demo import space as demo
from search_spaces.space import Replication, TrialConfig

space = demo.but(replication=Replication(leaders=4, seeds=4))
SEEDS = range(4)
ETAS = (0.05, 0.06, 0.07, 0.08)


@pytest.fixture(scope="module")
def base() -> TrialConfig:
    return space.base_config(8, "d" * 64)


@pytest.fixture(scope="module")
def leaders(base: TrialConfig) -> list[Assignment]:
    return [Assignment(space.at(base, {"eta": eta, "reach": 1.0}), "search") for eta in ETAS]


def metrics(base: TrialConfig, leaders: list[Assignment], by_leader: list[list[float]]) -> dict[str, float]:
    """Metric of every leader with every seed, by key; the replay control has 1 everywhere."""
    known = {}
    for leader, values in zip(leaders, by_leader, strict=True):
        perturbation = leader.config.train.perturbation
        for seed, value in zip(SEEDS, values, strict=True):
            known[space.trial_config(base, perturbation, seed).key] = value
            known[space.trial_config(base, replay_control(perturbation.steps_per_minibatch), seed).key] = 1.0
    return known


def runs(assignments: list[Assignment], role: str) -> Counter[str]:
    return Counter(each.of for each in assignments if each.role == role)


def test_the_worst_are_rejected_and_the_last_two_have_every_seed(base: TrialConfig, leaders: list[Assignment]) -> None:
    known = metrics(base, leaders, [[0.9] * 4, [0.8] * 4, [0.7] * 4, [0.6] * 4])
    done = list(repeated(space, base, leaders, SEEDS, known.get))
    assert [runs(done, "random")[leader.key] for leader in leaders] == [2, 3, 4, 4]
    assert [runs(done, "repeat")[leader.key] for leader in leaders] == [1, 2, 3, 3]
    assert len(done) == planned_repetitions(space.replication, 4)
    assert len({each.key for each in done}) == len(done)


def test_a_lucky_seed_does_not_carry_a_leader_past_the_mean(base: TrialConfig, leaders: list[Assignment]) -> None:
    lucky = [[0.1, 3.0, 0.8, 0.8], [0.8] * 4, [0.8] * 4, [0.8] * 4]
    done = list(repeated(space, base, leaders, SEEDS, metrics(base, leaders, lucky).get))
    assert runs(done, "random")[leaders[0].key] == 2


def test_nothing_is_asked_before_what_it_depends_on_is_known(base: TrialConfig, leaders: list[Assignment]) -> None:
    known = metrics(base, leaders, [[0.9] * 4] * 4)
    second = space.trial_config(base, leaders[2].config.train.perturbation, 1).key
    waiting = list(repeated(space, base, leaders, SEEDS, lambda key: None if key == second else known.get(key)))
    assert {each.config.train.seed for each in waiting} == {0, 1}


def test_a_leader_that_failed_again_is_rejected_first(base: TrialConfig, leaders: list[Assignment]) -> None:
    failed = [[0.1, float("inf"), 0.1, 0.1], [0.9] * 4, [0.9] * 4, [0.9] * 4]
    done = list(repeated(space, base, leaders, SEEDS, metrics(base, leaders, failed).get))
    assert runs(done, "random")[leaders[0].key] == 2


def test_two_leaders_are_repeated_with_every_seed() -> None:
    assert planned_repetitions(Replication(leaders=2, seeds=3), 2) == 2 * 5


def test_without_a_leader_nothing_is_repeated(base: TrialConfig) -> None:
    assert list(repeated(space, base, [], SEEDS, {}.get)) == []
