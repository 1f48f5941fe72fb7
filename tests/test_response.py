"""The response and its optimum: closed forms, invariances, and how often a verdict is right."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from atdiff_core.response import Observation, fit_response, tame, untame

Array = NDArray[np.float64]
Surface = Callable[[Array], Array]

best = math.log(0.03)
num_studies = 60


def study(
    surface: Surface, rng: np.random.Generator, *, num_trials: int = 12, noise: float = 0.05
) -> list[Observation]:
    """Trials over two decades; every trial and every seed's control has the same noise; three leaders repeated."""
    log_eta = rng.uniform(math.log(0.003), math.log(0.3), num_trials)
    first = surface(log_eta) + noise * (rng.standard_normal() + rng.standard_normal(num_trials))
    leaders = np.argsort(first)[:3]
    second = surface(log_eta[leaders]) + noise * (rng.standard_normal() + rng.standard_normal(3))
    trials = [*zip(log_eta, first, [0] * num_trials, strict=True), *zip(log_eta[leaders], second, [1] * 3, strict=True)]
    return [Observation(float(np.exp(x)), float(effect), seed) for x, effect, seed in trials]


def share_of(verdicts: str, surface: Surface, *, noise: float = 0.05) -> float:
    """Share of 60 simulated studies with one of the verdicts."""
    rng = np.random.default_rng(7)
    counts: Counter[str] = Counter(
        fit_response(study(surface, rng, noise=noise), draws=500).optimum.verdict for _ in range(num_studies)
    )
    return sum(counts[verdict] for verdict in verdicts.split()) / num_studies


def flat(log_eta: Array) -> Array:
    return np.zeros_like(log_eta)


def valley(log_eta: Array) -> Array:
    return -0.25 + 0.15 * (log_eta - best) ** 2


def valley_of_a_blow_up(log_eta: Array) -> Array:
    """Zero at small eta, 26 % better at the best, many times worse at the largest."""
    strength = np.exp(log_eta - best)
    return np.asarray(np.log(1 - 0.6 * strength / (1 + strength**2) + 0.05 * strength**2))


def valley_no_better(log_eta: Array) -> Array:
    return 0.1 + 0.2 * (log_eta - best) ** 2


def fall(log_eta: Array) -> Array:
    return -0.1 * (log_eta - math.log(0.003))


def fall_that_levels_off(log_eta: Array) -> Array:
    squared = np.exp(2 * (log_eta - math.log(0.01)))
    return np.asarray(-0.3 * squared / (1 + squared))


def rise(log_eta: Array) -> Array:
    return -fall(log_eta)


def hockey_stick(log_eta: Array) -> Array:
    return np.maximum(0, 0.8 * (log_eta - best))


def parabola(minimum: float, num_trials: int = 12) -> list[Observation]:
    etas = np.geomspace(0.003, 0.3, num_trials)
    return [Observation(float(eta), float(-0.3 + 0.1 * np.log(eta / minimum) ** 2), seed=0) for eta in etas]


@pytest.mark.parametrize("minimum", [0.02, 0.03, 0.05])
def test_a_parabola_without_noise_gives_its_exact_minimum(minimum: float) -> None:
    optimum = fit_response(parabola(minimum)).optimum
    assert optimum.found
    assert optimum.eta == pytest.approx(minimum, rel=0.01)
    assert optimum.effect == pytest.approx(-0.3, abs=0.005)
    assert optimum.low < minimum < optimum.high


def test_scaling_eta_moves_the_optimum_by_as_much() -> None:
    trials = study(valley, np.random.default_rng(0))
    scaled = [replace(one, eta=10 * one.eta) for one in trials]
    one, ten = fit_response(trials).optimum, fit_response(scaled).optimum
    assert ten.eta == pytest.approx(10 * one.eta)
    assert ten.log_std == pytest.approx(one.log_std)


def test_the_order_of_the_observations_does_not_matter() -> None:
    trials = study(valley, np.random.default_rng(1))
    assert np.array_equal(fit_response(trials).optimum.samples, fit_response(trials[::-1]).optimum.samples)


def test_the_names_of_the_seeds_do_not_matter() -> None:
    trials = study(valley, np.random.default_rng(2))
    renamed = [replace(one, seed=one.seed + 100) for one in trials]
    assert np.array_equal(fit_response(trials).optimum.samples, fit_response(renamed).optimum.samples)


def test_the_same_seed_gives_the_same_draws_and_another_seed_others() -> None:
    trials = study(valley, np.random.default_rng(3))
    first, again, other = (fit_response(trials, seed=seed).optimum.samples for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_lucky_seed_of_the_leaders_does_not_dig_a_dip() -> None:
    etas = np.geomspace(0.003, 0.3, 12)
    trials = [Observation(float(eta), 0.0, seed=0) for eta in etas]
    trials += [Observation(float(eta), -0.3, seed=1) for eta in etas[4:7]]
    assert fit_response(trials).optimum.verdict == "flat"


def test_a_trial_of_little_weight_hardly_moves_the_optimum() -> None:
    trials = parabola(0.03)
    astray = Observation(0.1, -0.6, seed=0)
    light = fit_response([*trials, replace(astray, weight=1e-6)]).optimum
    heavy = fit_response([*trials, astray]).optimum
    assert light.eta == pytest.approx(0.03, rel=0.01)
    assert heavy.eta > 1.1 * light.eta


def test_taming_keeps_small_effects_order_and_slope_and_can_be_undone() -> None:
    effect = np.linspace(-1, 5, 1001)
    tamed = tame(effect, 0.1)
    assert np.array_equal(tamed[effect <= 0.1], effect[effect <= 0.1])
    assert (np.diff(tamed) > 0).all()
    assert tame(np.array([0.1 + 1e-6]), 0.1) - 0.1 == pytest.approx(1e-6, rel=1e-3)
    assert untame(tamed, 0.1) == pytest.approx(effect)


def test_a_blow_up_by_orders_of_magnitude_leaves_the_optimum_in_place() -> None:
    burst = [replace(one, effect=one.effect + 0.0005 * (one.eta / 0.03) ** 4) for one in parabola(0.03)]
    optimum = fit_response(burst).optimum
    assert max(one.effect for one in burst) > 5
    assert optimum.found
    assert optimum.low < 0.03 < optimum.high


def test_a_constant_effect_is_flat() -> None:
    trials = [Observation(float(eta), -0.1, seed=0) for eta in np.geomspace(0.01, 0.1, 6)]
    optimum = fit_response(trials).optimum
    assert optimum.verdict == "flat"
    assert "6 trials at 6 eta" in optimum.reason


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_noise_on_a_flat_response_is_called_flat_nine_times_in_ten(noise: float) -> None:
    assert share_of("flat", flat, noise=noise) >= 0.9
    assert share_of("optimum", flat, noise=noise) <= 0.02


@pytest.mark.parametrize("surface", [valley, valley_of_a_blow_up])
def test_a_valley_is_found_nine_times_in_ten_and_its_place_is_in_the_interval(surface: Surface) -> None:
    rng = np.random.default_rng(11)
    log_eta = np.linspace(math.log(0.003), math.log(0.3), 4001)
    truth = float(np.exp(log_eta[surface(log_eta).argmin()]))
    optima = [fit_response(study(surface, rng), draws=500).optimum for _ in range(num_studies)]
    found = [optimum for optimum in optima if optimum.found]
    assert len(found) >= 0.9 * num_studies
    assert sum(optimum.low <= truth <= optimum.high for optimum in found) >= 0.9 * len(found)


@pytest.mark.parametrize("surface", [fall, fall_that_levels_off])
def test_a_fall_is_called_falling_nine_times_in_ten_even_if_it_levels_off(surface: Surface) -> None:
    assert share_of("falling", surface) >= 0.9


@pytest.mark.parametrize("surface", [rise, hockey_stick])
def test_a_rise_is_called_rising_and_hardly_ever_an_optimum_even_if_it_starts_late(surface: Surface) -> None:
    assert share_of("rising", surface) >= 0.85
    assert share_of("rising flat not_better", surface) >= 0.95


def test_a_valley_above_the_control_is_no_optimum() -> None:
    assert share_of("not_better", valley_no_better) >= 0.9
    assert share_of("optimum", valley_no_better) == 0


def test_four_strengths_never_raise_an_error_and_rarely_an_optimum_from_noise() -> None:
    rng = np.random.default_rng(5)
    optima = [fit_response(study(flat, rng, num_trials=4)[:4], draws=500).optimum for _ in range(num_studies)]
    assert sum(optimum.verdict == "flat" for optimum in optima) >= 0.9 * num_studies


def test_the_reason_gives_the_edge_of_the_search_and_the_share_of_the_posterior() -> None:
    falling = [Observation(float(eta), float(-0.2 * np.log(eta)), seed=0) for eta in np.geomspace(0.001, 0.1, 10)]
    optimum = fit_response(falling).optimum
    assert optimum.verdict == "falling"
    assert "still falling, or level, at the largest eta searched (0.1): 100% of the posterior" in optimum.reason


def test_the_curve_lies_in_its_band_and_the_grid_spans_the_search() -> None:
    response = fit_response(study(valley, np.random.default_rng(4)))
    assert ((response.low < response.mean) & (response.mean < response.high)).all()
    assert response.etas[0] == pytest.approx(response.observations[0].eta)
    assert response.etas[-1] == pytest.approx(response.observations[-1].eta)


def test_three_strengths_are_refused_with_their_counts() -> None:
    trials = [Observation(eta, 0.0, seed) for eta in (0.01, 0.02, 0.04) for seed in (0, 1)]
    with pytest.raises(ValueError, match="4 different eta or more, got 6 trials at 3: search more strengths"):
        fit_response(trials)


def test_impossible_observations_are_refused_with_their_value() -> None:
    with pytest.raises(ValueError, match=r"eta and weight must be > 0 and finite, got 0\.0 and 1\.0"):
        Observation(0.0, 0.1, seed=0)
    with pytest.raises(ValueError, match=r"effect must be finite, got nan at eta = 0\.01"):
        Observation(0.01, float("nan"), seed=0)
    with pytest.raises(ValueError, match="draws must be >= 100 to give quantiles, got 10"):
        fit_response(parabola(0.03), draws=10)
