"""How many levels, and how often each pair: the formulas of the two papers, written out again."""

import math

import pytest
import torch

from atdiff_core.karras import KarrasNoise
from atdiff_core.objectives.discretisation import (
    DoublingLevels,
    FixedLevels,
    LognormalPairs,
    ProgressiveLevels,
    UniformPairs,
)
from atdiff_core.randomness import Randomness

NOISE = KarrasNoise(num_levels=18)


def test_fixed_levels_are_those_of_the_noise() -> None:
    levels = FixedLevels(decay=0.95)
    assert {levels.count(NOISE, share) for share in (0.0, 0.5, 1.0)} == {18}
    assert levels.target_decay(NOISE, 0.7) == 0.95


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.99, 1.0])
def test_progressive_levels_and_their_target(share: float) -> None:
    levels = ProgressiveLevels(first=2, last=150, first_decay=0.9)
    expected = math.ceil(math.sqrt(share * (151**2 - 2**2) + 2**2) - 1) + 1
    assert levels.count(NOISE, share) == expected
    assert levels.target_decay(NOISE, share) == pytest.approx(0.9 ** (2 / expected))


def test_doubling_levels_spend_equal_stretches_and_have_no_average() -> None:
    levels = DoublingLevels(first=10, last=1280)
    counts = [levels.count(NOISE, (number + 0.5) / 8) for number in range(8)]
    assert counts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert levels.count(NOISE, 1.0) == 1281
    assert levels.target_decay(NOISE, 0.3) == 0


def test_levels_do_not_become_fewer() -> None:
    for kind in (ProgressiveLevels, DoublingLevels):
        with pytest.raises(ValueError, match="must grow, got first=20 and last=10"):
            kind(first=20, last=10)


def test_lognormal_pairs_come_as_often_as_a_lognormal_level_falls_between_them() -> None:
    levels, pairs = NOISE.levels(), LognormalPairs()
    probabilities = pairs.probabilities(levels)
    normal = torch.distributions.Normal(-1.1, 2.0).cdf(levels.log())
    assert torch.allclose(probabilities, normal.diff() / (normal[-1] - normal[0]))
    drawn = pairs.draw(Randomness(0, range(20_000)), levels)
    seen = torch.bincount(drawn, minlength=17) / 20_000
    assert (seen - probabilities).abs().max() < 0.015


def test_uniform_pairs_reach_both_ends() -> None:
    drawn = UniformPairs().draw(Randomness(0, range(500)), NOISE.levels())
    assert (drawn.min().item(), drawn.max().item()) == (0, 16)
