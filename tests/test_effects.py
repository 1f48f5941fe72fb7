"""Paired effects against closed forms, and the price of looking at many."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t

from pipeline.effects import Effect, holm

LOG_RATIOS = st.lists(st.integers(-3000, 3000).map(lambda thousandths: thousandths / 1000), min_size=2, max_size=8)


def test_the_interval_is_the_mean_plus_and_minus_t_standard_errors() -> None:
    ratios = (-0.3, -0.1, -0.25, -0.2)
    half = student_t.ppf(0.975, 3) * np.std(ratios, ddof=1) / math.sqrt(4)
    low, high = Effect(ratios).interval
    assert (low, high) == pytest.approx((np.mean(ratios) - half, np.mean(ratios) + half))


def test_two_seeds_have_an_interval_of_twelve_point_seven_standard_errors() -> None:
    low, high = Effect((0.1, 0.3)).interval
    assert (high - low) / 2 == pytest.approx(12.7062 * 0.1, rel=1e-4)


@given(LOG_RATIOS)
def test_the_p_value_and_the_interval_never_disagree(ratios: list[float]) -> None:
    effect = Effect(tuple(ratios))
    low, high = effect.interval
    if min(abs(low), abs(high)) > 1e-9:
        assert (effect.p_value < 0.05) == (not low < 0 < high)


@given(LOG_RATIOS)
def test_swapping_the_two_sides_turns_the_effect_around(ratios: list[float]) -> None:
    effect, other = Effect(tuple(ratios)), Effect(tuple(-ratio for ratio in ratios))
    turned = {"better": "worse", "worse": "better"}
    assert effect.mean == pytest.approx(-other.mean)
    assert effect.verdict == turned.get(other.verdict, other.verdict)


def test_equal_trainings_are_not_told_apart_and_a_constant_gap_is() -> None:
    assert Effect((0.0, 0.0, 0.0)).verdict == "not told apart"
    assert Effect((-0.1, -0.1, -0.1)).verdict == "better"


def test_one_seed_has_neither_interval_nor_verdict() -> None:
    effect = Effect((-0.5,))
    assert effect.verdict == "one seed"
    assert all(math.isnan(value) for value in (*effect.interval, effect.p_value))
    assert Effect(()).verdict == "no ratio"


def test_holm_gives_the_values_of_a_worked_example() -> None:
    # Four tests: the smallest times 4, the next times 3, then 2, then 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_test_changes_nothing_and_ignores_what_was_not_tested() -> None:
    assert holm([0.04]) == [0.04]
    adjusted = holm([math.nan, 0.04, math.nan])
    assert adjusted[1] == 0.04
    assert math.isnan(adjusted[0])
    assert math.isnan(adjusted[2])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_adjustment_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for before, after in zip(p_values, adjusted, strict=True):
        assert before <= after <= min(1.0, len(p_values) * before) + 1e-12
    assert [adjusted[place] for place in np.argsort(p_values)] == sorted(adjusted)


def test_holm_finds_something_false_in_no_more_than_five_of_a_hundred_null_families() -> None:
    p_values = np.random.default_rng(0).uniform(size=(2000, 20))
    unadjusted = (p_values < 0.05).any(axis=1).mean()
    false_findings = np.mean([min(holm(family)) < 0.05 for family in p_values.tolist()])
    assert unadjusted > 0.6
    assert false_findings == pytest.approx(0.05, abs=0.015)
