"""What finished rungs teach: closed forms without noise, invariances, and that it helps in simulation."""

import math
from functools import partial

import numpy as np
import pytest

from atdiff_core.response import Observation, fit_response
from atdiff_core.shared_valley import PlacePrior, Rehearsal, Valley, learn_valley, locate
from atdiff_core.transfer import FinishedRung, TransferredSearch, expect, flank

LOW, HIGH = math.log(0.003), math.log(0.6)
CANDIDATES = np.linspace(LOW, HIGH, 81)


def trials(best: float, log_etas: np.ndarray, noise: float = 0.0, seed: int = 0) -> tuple[Observation, ...]:
    """A lopsided valley of depth 0.2, lowest at ``best``; all trials share one control."""
    rng = np.random.default_rng(seed)
    z = log_etas - best
    effects = 0.2 * (0.8 * z**2 + 0.15 * z**3 - 1) + noise * rng.standard_normal(len(z))
    return tuple(Observation(math.exp(x), float(y), 0) for x, y in zip(log_etas, effects, strict=True))


def rung(side: int, best: float, *, noise: float = 0.02, count: int = 14) -> FinishedRung:
    places = np.random.default_rng(side).uniform(best - 1.6, best + 1.6, count)
    observations = trials(best, places, noise, seed=side)
    return FinishedRung(side**2, observations, fit_response(observations, draws=400).optimum)


@pytest.fixture(scope="module")
def ladder() -> tuple[FinishedRung, ...]:
    """eta* = 0.06 at 8 px, falling with D^-0.25."""
    return tuple(rung(side, math.log(0.06) - 0.25 * math.log(side**2 / 64)) for side in (8, 16, 32))


@pytest.fixture(scope="module")
def valley(ladder: tuple[FinishedRung, ...]) -> Valley:
    return learn_valley([Rehearsal(each.observations, math.log(each.optimum.eta)) for each in ladder], reach=HIGH - LOW)


def anywhere() -> PlacePrior:
    return PlacePrior(CANDIDATES, np.full(len(CANDIDATES), 1 / len(CANDIDATES)))


def test_the_valley_is_seen_from_its_lowest_point_with_the_noise_it_was_made_with(valley: Valley) -> None:
    assert valley.offsets[valley.mean.argmin()] == pytest.approx(0, abs=1e-9)
    assert valley.noise == pytest.approx(0.02, rel=0.5)
    near = np.abs(valley.offsets) < 1
    truth = 0.2 * (0.8 * valley.offsets**2 + 0.15 * valley.offsets**3 - 1)
    assert valley.mean[near] - valley.mean.min() == pytest.approx(truth[near] + 0.2, abs=0.05)


def test_without_trials_the_place_is_the_prior(valley: Valley) -> None:
    weights = np.exp(-(((CANDIDATES + 3.5) / 0.4) ** 2) / 2)
    place = locate(valley, (), PlacePrior(CANDIDATES, weights / weights.sum()), CANDIDATES)
    assert place.quantile(0.5) == pytest.approx(-3.5, abs=0.1)
    assert (place.quantile(0.84) - place.quantile(0.16)) / 2 == pytest.approx(0.4, rel=0.35)


@pytest.mark.parametrize("best", [-4.4, -3.3, -2.2])
def test_a_few_trials_on_both_sides_give_the_place(valley: Valley, best: float) -> None:
    place = locate(valley, trials(best, best + np.array([-1.2, -1.0, -0.6, 0.6, 1.0, 1.2])), anywhere(), CANDIDATES)
    assert place.quantile(0.5) == pytest.approx(best, abs=0.1)
    assert place.quantile(0.025) < best < place.quantile(0.975)


def test_scaling_every_eta_moves_the_place_by_as_much(valley: Valley) -> None:
    seen = trials(-3.5, np.array([-4.5, -3.0, -2.6]))
    step = CANDIDATES[1] - CANDIDATES[0]
    moved = tuple(Observation(one.eta * math.exp(5 * step), one.effect, one.seed) for one in seen)
    here = locate(valley, seen, anywhere(), CANDIDATES)
    prior = PlacePrior(CANDIDATES + 5 * step, anywhere().weights)
    there = locate(valley, moved, prior, CANDIDATES + 5 * step)
    assert there.quantile(0.5) - here.quantile(0.5) == pytest.approx(5 * step, abs=1e-6)


def test_a_trial_tells_most_where_the_sides_are_steep(valley: Valley) -> None:
    weights = np.exp(-(((CANDIDATES + 3.5) / 0.3) ** 2) / 2)
    seen = trials(-3.5, np.array([-3.5]))  # The rung's own level is known.
    information = locate(valley, seen, PlacePrior(CANDIDATES, weights / weights.sum()), CANDIDATES).information
    at = partial(np.interp, xp=CANDIDATES, fp=information)
    assert (information >= 0).all()
    assert min(at(-4.5), at(-2.5)) > 2 * at(-3.5)


def test_an_exact_law_is_expected_to_go_on(ladder: tuple[FinishedRung, ...]) -> None:
    expected = expect(ladder, 64**2)
    truth = math.log(0.06) - 0.25 * math.log(64)
    assert expected.mean == pytest.approx(truth, abs=0.2)
    assert expected.interval[0] < truth < expected.interval[1]
    assert expect(ladder, 512**2).std > expected.std


def test_one_rung_expects_the_next_between_the_usual_exponents(ladder: tuple[FinishedRung, ...]) -> None:
    first = ladder[0]
    expected = expect([first], 16**2)
    assert expected.mean - math.log(first.optimum.eta) == pytest.approx(-0.25 * math.log(4), abs=1e-9)
    assert expected.std > 0.3 * math.log(4)
    with pytest.raises(ValueError, match="before one has shown an optimum"):
        expect([], 64)


def test_the_next_trials_lie_about_the_interval_and_not_where_one_already_runs(
    ladder: tuple[FinishedRung, ...],
) -> None:
    search = TransferredSearch(ladder, 64**2, LOW, HIGH)
    low, high = search.interval
    asked: list[float] = []
    for _ in range(4):
        asked.append(search.next((), asked))
    assert all(low - flank - 1e-9 <= place <= high + flank + 1e-9 for place in asked)
    assert len(set(asked)) > 1
    assert asked == [search.next((), asked[:number]) for number in range(4)]


def test_eight_guided_trials_bring_the_optimum_within_fifteen_per_cent(ladder: tuple[FinishedRung, ...]) -> None:
    search = TransferredSearch(ladder, 64**2, LOW, HIGH)
    errors = []
    for seed in range(6):
        best = math.log(0.06) - 0.25 * math.log(64) + 0.15 * np.random.default_rng(seed).standard_normal()
        seen: tuple[Observation, ...] = ()
        for number in range(8):
            seen += trials(best, np.array([search.next(seen)]), 0.02, 50 * seed + number)
        errors.append(search.place(seen).quantile(0.5) - best)
    assert np.sqrt(np.mean(np.square(errors))) < 0.15


def test_a_range_without_extent_is_refused(ladder: tuple[FinishedRung, ...]) -> None:
    with pytest.raises(ValueError, match="a range needs low < high, got -1 and -1"):
        TransferredSearch(ladder, 64**2, -1.0, -1.0)
