"""The power law: closed forms, invariances, coverage in simulation, and refusals."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from atdiff_core.laws import LawRefused, PowerLaw, Rung, fit_power_law
from atdiff_core.response import Observation, Optimum, Verdict, fit_response


def optimum_at(eta: float, *, log_std: float = 0.1, verdict: Verdict = "optimum") -> Optimum:
    """An optimum whose posterior of log eta* is normal, symmetric sample by sample."""
    normal = np.random.default_rng(0).standard_normal(1000)
    return Optimum(
        verdict=verdict,
        reason="made for a test",
        eta=eta,
        low=eta * math.exp(-1.96 * log_std),
        high=eta * math.exp(1.96 * log_std),
        log_std=log_std,
        samples=math.log(eta) + log_std * np.concatenate([normal, -normal]),
        effect=-0.1,
        effect_low=-0.2,
        effect_high=-0.05,
    )


def ladder(
    exponent: float, *, resolutions: Sequence[int] = (8, 16, 32), log_std: float = 0.1, factor: float = 1.0
) -> list[Rung]:
    """Rungs exactly on eta* = factor * D^exponent."""
    dimensions = [3 * resolution**2 for resolution in resolutions]
    return [
        Rung(f"{resolution} px", dimension, optimum_at(factor * dimension**exponent, log_std=log_std))
        for resolution, dimension in zip(resolutions, dimensions, strict=True)
    ]


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.25])
@pytest.mark.parametrize("log_std", [1e-9, 0.1])
def test_an_exact_power_law_gives_its_exact_exponent(exponent: float, log_std: float) -> None:
    law = fit_power_law(ladder(exponent, log_std=log_std))
    assert law.exponent == pytest.approx(exponent, abs=1e-9)
    assert law.exponent_low < exponent < law.exponent_high
    assert law.predict(3 * 64**2).value == pytest.approx((3 * 64**2) ** exponent)


def test_scaling_every_eta_leaves_the_exponent_and_scales_the_prediction() -> None:
    law, scaled = fit_power_law(ladder(-0.3)), fit_power_law(ladder(-0.3, factor=7.0))
    assert scaled.exponent == pytest.approx(law.exponent)
    assert scaled.exponent_low == pytest.approx(law.exponent_low)
    assert scaled.predict(10_000).high == pytest.approx(7 * law.predict(10_000).high)


def test_the_order_of_the_rungs_does_not_matter() -> None:
    rungs = ladder(-0.3, resolutions=(8, 16, 32, 64))
    law, backwards = fit_power_law(rungs), fit_power_law(rungs[::-1])
    assert (law.exponent_low, law.exponent_high) == (backwards.exponent_low, backwards.exponent_high)
    assert law.leave_one_out == backwards.leave_one_out


def test_the_raw_exponent_adds_the_exponent_of_the_norm() -> None:
    law = fit_power_law(ladder(-0.2))
    assert law.raw_exponent("l2") == pytest.approx(0.3)
    assert law.raw_exponent("l1") == pytest.approx(0.8)
    assert law.raw_exponent("linf") == pytest.approx(-0.2)


def test_one_hypothesis_is_rejected_alike_in_amplitude_and_in_raw_norm() -> None:
    law = fit_power_law(ladder(-0.5, resolutions=(8, 16, 32, 64), log_std=0.05))
    assert law.rejects(0.0)
    assert law.rejects(0.5, norm="l2")
    assert not law.rejects(-0.5)
    assert not law.rejects(0.0, norm="l2")


def test_a_prediction_is_wider_the_farther_it_reaches() -> None:
    law = fit_power_law(ladder(-0.3))
    near, far = law.predict(3 * 64**2), law.predict(3 * 512**2)
    assert near.low < near.value < near.high
    assert far.high / far.low > near.high / near.low > 1


def test_an_uncertain_rung_weighs_less() -> None:
    exact = ladder(0.0, resolutions=(8, 16, 32, 64))
    last = exact[-1]
    sure, unsure = (
        fit_power_law([*exact[:-1], Rung(last.name, last.scale, optimum_at(2.0, log_std=log_std))])
        for log_std in (0.05, 1.0)
    )
    assert 0 < unsure.exponent < sure.exponent / 2


def test_rungs_off_the_line_widen_the_interval() -> None:
    on_line = ladder(0.0, resolutions=(8, 16, 32, 64))
    zigzag = [
        Rung(rung.name, rung.scale, optimum_at(math.exp(0.6 * (-1) ** index))) for index, rung in enumerate(on_line)
    ]
    straight, crooked = fit_power_law(on_line), fit_power_law(zigzag)
    assert crooked.scatter > 2 * straight.scatter
    assert crooked.exponent_high - crooked.exponent_low > 2 * (straight.exponent_high - straight.exponent_low)


def test_each_rung_left_out_of_an_exact_law_is_predicted_exactly() -> None:
    law = fit_power_law(ladder(-0.4))
    assert [left_out.name for left_out in law.leave_one_out] == ["8 px", "16 px", "32 px"]
    for left_out in law.leave_one_out:
        assert left_out.predicted == pytest.approx(left_out.actual)
        assert left_out.inside


def test_a_rung_far_off_the_law_of_the_others_falls_outside() -> None:
    rungs = ladder(0.0, resolutions=(8, 16, 32, 64))
    rungs[2] = Rung("32 px", rungs[2].scale, optimum_at(8.0))
    outside = {left_out.name for left_out in fit_power_law(rungs).leave_one_out if not left_out.inside}
    assert "32 px" in outside


def test_fewer_than_three_optima_are_refused_with_the_reasons_and_a_way_out() -> None:
    rungs = ladder(-0.3)
    rungs[1] = Rung("16 px", rungs[1].scale, optimum_at(1.0, verdict="falling"))
    with pytest.raises(
        LawRefused, match="at 3 rungs of the ladder or more, found at: 8 px, 32 px; no optimum at 16 px: falling"
    ) as error:
        fit_power_law(rungs)
    assert "way out: widen the range searched" in str(error.value)
    with pytest.raises(LawRefused, match="found at: none"):
        fit_power_law([])


def test_rungs_without_an_optimum_are_named_beside_the_law() -> None:
    rungs = ladder(-0.3, resolutions=(8, 16, 32, 64))
    rungs[0] = Rung("8 px", rungs[0].scale, optimum_at(1.0, verdict="flat"))
    law = fit_power_law(rungs)
    assert [rung.name for rung in law.rungs] == ["16 px", "32 px", "64 px"]
    assert law.without_optimum == ("8 px: flat, made for a test",)


def test_two_rungs_of_one_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each scale may appear once, got 192, 192, 768, 3072"):
        fit_power_law([*ladder(0.0), ladder(0.0)[0]])


def test_impossible_dimensions_and_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="a scale must be > 0 and finite, got 0 at 8 px"):
        Rung("8 px", 0, optimum_at(1.0))
    law = fit_power_law(ladder(0.0))
    with pytest.raises(ValueError, match="a prediction needs a scale > 0, got 0"):
        law.predict(0)
    with pytest.raises(ValueError, match="norm must be one of l1, l2, linf, got 'l3'"):
        law.raw_exponent("l3")  # type: ignore[arg-type]


def simulated_ladder(rng: np.random.Generator, *, num_rungs: int, exponent: float, scatter: float) -> list[Rung]:
    """Searches of 12 trials and 3 repeated leaders over two decades; optima scatter about the law."""
    noise = 0.05
    rungs = []
    for step in range(num_rungs):
        resolution = 8 * 2**step
        from_middle = 2 * (step - (num_rungs - 1) / 2) * math.log(2)
        best = math.log(0.03) + exponent * from_middle + scatter * rng.standard_normal()
        log_eta = rng.uniform(math.log(0.003), math.log(0.3), 12)
        clean = -0.25 + 0.15 * (log_eta - best) ** 2
        first = clean + noise * (rng.standard_normal() + rng.standard_normal(12))
        leaders = np.argsort(first)[:3]
        second = clean[leaders] + noise * (rng.standard_normal() + rng.standard_normal(3))
        trials = [Observation(float(np.exp(x)), float(effect), 0) for x, effect in zip(log_eta, first, strict=True)]
        trials += [
            Observation(float(np.exp(x)), float(effect), 1) for x, effect in zip(log_eta[leaders], second, strict=True)
        ]
        rungs.append(Rung(f"{resolution} px", 3 * resolution**2, fit_response(trials, draws=500).optimum))
    return rungs


@pytest.fixture(scope="module")
def simulated() -> list[tuple[float, PowerLaw]]:
    """The laws given in 200 simulated ladders, each with its true exponent."""
    rng = np.random.default_rng(3)
    laws = []
    for index in range(200):
        exponent = (0.0, -0.25, -0.5)[index % 3]
        try:
            rungs = simulated_ladder(rng, num_rungs=3 + index % 2, exponent=exponent, scatter=0.2)
            laws.append((exponent, fit_power_law(rungs)))
        except LawRefused:
            continue
    return laws


def test_the_interval_of_the_exponent_covers_the_truth_nine_times_in_ten(
    simulated: list[tuple[float, PowerLaw]],
) -> None:
    assert len(simulated) >= 150
    covered = [law.exponent_low <= exponent <= law.exponent_high for exponent, law in simulated]
    assert np.mean(covered) >= 0.9


def test_a_rung_left_out_falls_inside_its_interval_nine_times_in_ten(
    simulated: list[tuple[float, PowerLaw]],
) -> None:
    assert np.mean([left_out.inside for _, law in simulated for left_out in law.leave_one_out]) >= 0.9


def test_the_interval_is_narrow_enough_to_tell_the_papers_exponents_apart(
    simulated: list[tuple[float, PowerLaw]],
) -> None:
    """Raw l2 exponents 0 and 1/2 are half an exponent apart."""
    assert np.median([law.exponent_high - law.exponent_low for _, law in simulated]) < 1.0
