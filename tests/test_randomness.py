"""Random numbers as a function of (seed, purpose, sample)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atdiff_core.randomness import Randomness, derived_seed


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=8), st.data())
def test_numbers_do_not_depend_on_how_the_samples_are_split(positions: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(positions) - 1))
    parts = [Randomness(5, part, "train") for part in (positions[:cut], positions[cut:])]
    whole = Randomness(5, positions, "train")
    assert torch.equal(whole.normal((2, 3)), torch.cat([part.normal((2, 3)) for part in parts]))
    assert torch.equal(whole.integers(1000), torch.cat([part.integers(1000) for part in parts]))


def test_asking_again_gives_the_same_numbers_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    randomness = Randomness(0, range(4))
    assert torch.equal(randomness.normal((5,)), randomness.normal((5,)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "other",
    [Randomness(0, range(64), "b"), Randomness(0, range(64), "a").for_("b"), Randomness(1, range(64), "a")],
    ids=["another purpose", "a purpose within the purpose", "another seed"],
)
def test_purposes_and_seeds_are_independent(other: Randomness) -> None:
    one, two = Randomness(0, range(64), "a").normal((64,)).flatten(), other.normal((64,)).flatten()
    correlation = torch.corrcoef(torch.stack([one, two]))[0, 1]
    assert abs(correlation) < 4 / 64  # Four standard errors of 64² pairs.


def test_samples_are_independent_of_each_other() -> None:
    numbers = Randomness(0, range(256)).normal((256,))
    correlations = torch.corrcoef(numbers).triu(diagonal=1)
    assert correlations.abs().max() < 6 / 16


def test_normal_numbers_have_the_moments_of_a_standard_normal() -> None:
    numbers = Randomness(1, range(256)).normal((256,)).double()
    standard_error = 1 / 256
    moments = [(numbers**power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=4 * standard_error * 96**0.5)
    assert moments[0] == pytest.approx(0, abs=4 * standard_error)
    assert moments[1] == pytest.approx(1, abs=4 * standard_error * 2**0.5)


def test_integers_are_uniform_below_their_bound() -> None:
    counts = Randomness(2, range(5000)).integers(10).bincount(minlength=10)
    assert len(counts) == 10
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 33.7  # One in ten thousand for nine degrees of freedom.


@given(st.lists(st.integers(0, 99), min_size=2, max_size=4, unique=True))
def test_a_derived_seed_depends_on_every_part_and_their_order(parts: list[int]) -> None:
    seed = derived_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derived_seed(*parts)
    assert seed != derived_seed(*reversed(parts))
    assert seed != derived_seed(*parts[1:])


def test_the_shared_seed_belongs_to_the_first_sample_of_the_minibatch() -> None:
    assert Randomness(0, [7, 8], "train").shared_seed == Randomness(0, [7], "train").shared_seed
    assert Randomness(0, [7, 8], "train").shared_seed != Randomness(0, [8, 7], "train").shared_seed
