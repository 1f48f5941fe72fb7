"""Components of the noise: a balanced table by hand, recovery in simulation; successive rejection."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdiff_core.rejection import repetitions, survivors
from atdiff_core.variance import noise_budget


def simulated(
    rng: np.random.Generator, *, arms: int, seeds: int, seed_std: float, std: float
) -> dict[str, dict[int, float]]:
    shared = seed_std * rng.standard_normal(seeds)
    return {
        f"arm {arm}": {seed: arm + float(shared[seed]) + std * float(rng.standard_normal()) for seed in range(seeds)}
        for arm in range(arms)
    }


def test_a_table_of_two_by_two_is_its_closed_form() -> None:
    budget = noise_budget({"a": {0: 1.0, 1: 2.0}, "b": {0: 3.0, 1: 3.5}}, {})
    # Differences between the seeds: 1 and 0.5. Residual variance is half the squared half-difference's double.
    assert budget.residual == pytest.approx(abs(1.0 - 0.5) / 2)
    between = 2 * 2 * ((0.75 / 2) ** 2)
    assert budget.seed == pytest.approx(math.sqrt((between - budget.residual**2) / 2))
    assert math.isnan(budget.training)


def test_what_only_the_seeds_make_is_all_theirs_and_what_only_the_arms_make_is_nobodys() -> None:
    seeds = noise_budget({arm: {0: 1.0, 1: 2.0, 2: 4.0} for arm in "abc"}, {})
    assert seeds.residual == pytest.approx(0, abs=1e-12)
    assert seeds.seed == pytest.approx(np.std([1, 2, 4], ddof=1))
    arms = noise_budget({arm: dict.fromkeys(range(3), float(n)) for n, arm in enumerate("abc")}, {})
    assert (arms.residual, arms.seed) == (0, 0)


def test_components_are_recovered_and_the_interval_covers_them_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    budgets = [
        noise_budget(simulated(rng, arms=4, seeds=5, seed_std=0.3, std=0.1), {"a": 0.06, "b": 0.06}) for _ in range(400)
    ]
    assert np.mean([b.residual**2 for b in budgets]) == pytest.approx(0.01, rel=0.1)
    assert np.mean([b.seed**2 for b in budgets]) == pytest.approx(0.09, rel=0.15)
    assert np.mean([b.residual_low <= 0.1 <= b.residual_high for b in budgets]) == pytest.approx(0.95, abs=0.03)
    assert budgets[0].evaluation == pytest.approx(0.06)
    assert np.mean([b.training for b in budgets]) == pytest.approx(0.08, rel=0.1)


def test_arms_are_compared_on_the_seeds_that_all_of_them_have() -> None:
    full = {"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {0: 3.0, 1: 3.5}}
    assert noise_budget(full, {}).seeds == 2
    with pytest.raises(ValueError, match="2 arms or more on 2 shared seeds or more, got 2 and 1"):
        noise_budget({"a": {0: 1.0}, "b": {0: 1.0, 1: 2.0}}, {})
    with pytest.raises(ValueError, match="got 0 and 0"):
        noise_budget({}, {})


def test_the_seeds_asked_for_show_the_difference_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    budget = noise_budget(simulated(rng, arms=40, seeds=40, seed_std=1.0, std=0.1), {})
    seeds = budget.seeds_for(0.05)
    differences = 0.05 + 0.1 * math.sqrt(2 / seeds) * rng.standard_normal(4000)
    shown = np.abs(differences) > 1.96 * budget.paired_error(seeds)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.05)
    assert budget.unpaired_error(seeds) > 5 * budget.paired_error(seeds)


def test_two_leaders_are_repeated_equally_and_of_four_the_worst_go_first() -> None:
    assert repetitions(1, 5) == (5,)
    assert repetitions(2, 3) == (3, 3)
    assert repetitions(4, 4) == (2, 3, 4, 4)
    assert [survivors(4, 4, run) for run in (1, 2, 3, 4, 5)] == [4, 4, 3, 2, 0]


@given(st.integers(1, 12), st.integers(1, 12))
def test_no_leader_is_repeated_more_than_a_better_one(arms: int, most: int) -> None:
    runs = repetitions(arms, most)
    assert len(runs) == arms
    assert list(runs) == sorted(runs)
    assert runs[0] >= 1
    assert runs[-1] == most


def test_rejection_finds_the_best_more_often_than_equal_shares_of_the_same_runs() -> None:
    rng = np.random.default_rng(2)
    means = np.array([0.0, 0.5, 0.6, 0.8, 1.0, 1.2, 1.3, 1.4])
    schedule = repetitions(8, 12)
    equal = sum(schedule) // 8
    rejected = uniform = 0
    for _ in range(2000):
        draws = means[:, None] + 1.5 * rng.standard_normal((8, 12))
        alive = list(range(8))
        for runs in schedule[:-1]:
            alive.remove(max(alive, key=lambda arm: draws[arm, :runs].mean()))
        rejected += alive == [0]
        uniform += int(draws[:, :equal].mean(axis=1).argmin() == 0)
    assert rejected > uniform


def test_impossible_rejections_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 leader and 1 run of it, got 0 and 3"):
        repetitions(0, 3)
