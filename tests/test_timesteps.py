"""Timestep samplers: importance weights that undo the preference, and a history that forgets in order."""

import pytest
import torch

from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory, LossSecondMoment, UniformTimesteps

LEVELS = 6
SAMPLER = LossSecondMoment(history_length=3, uniform_share=0.01)


def filled(losses: list[float]) -> LossHistory:
    """A full history in which every level always had the same loss."""
    history = SAMPLER.history(len(losses))
    for _ in range(3):
        history.add(range(len(losses)), losses)
    return history


class TestHistory:
    def test_it_forgets_the_oldest_loss_first(self) -> None:
        history = LossHistory.empty(2, 3)
        history.add([1] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
        assert history.losses.tolist() == [[0, 0, 0], [3, 4, 5]]
        assert history.counts.tolist() == [0, 3]
        assert not history.full

    def test_it_ignores_losses_that_are_not_finite(self) -> None:
        history = LossHistory.empty(1, 2)
        history.add([0, 0, 0], [float("nan"), float("inf"), 2.0])
        assert (history.losses.tolist(), history.counts.tolist()) == ([[2, 0]], [1])

    def test_what_is_remembered_depends_on_the_order_only_within_a_level(self) -> None:
        one, other = LossHistory.empty(2, 2), LossHistory.empty(2, 2)
        one.add([0, 1, 0, 1, 0], [1.0, 2.0, 3.0, 4.0, 5.0])
        other.add([1, 1, 0, 0, 0], [2.0, 4.0, 1.0, 3.0, 5.0])
        assert torch.equal(one.losses, other.losses)


class TestProbabilities:
    def test_until_every_level_has_a_full_history_all_are_equally_likely(self) -> None:
        history = SAMPLER.history(LEVELS)
        history.add([0] * 9, [100.0] * 9)
        assert torch.allclose(SAMPLER.probabilities(history), torch.full((LEVELS,), 1 / LEVELS).double())

    def test_then_they_grow_with_the_root_mean_square_of_the_losses(self) -> None:
        history = LossHistory.empty(2, 2)
        history.add([0, 0, 1, 1], [3.0, 4.0, 0.0, 1.0])
        ratio = SAMPLER.but(uniform_share=1e-12, history_length=2).probabilities(history)
        assert ratio[0] / ratio[1] == pytest.approx((25 / 2) ** 0.5 / (1 / 2) ** 0.5)

    @pytest.mark.parametrize("losses", [[1.0, 5, 0, 2, 0.1, 9], [0.0] * 6])
    def test_the_weights_undo_the_preference_exactly(self, losses: list[float]) -> None:
        history = filled(losses)
        probabilities = SAMPLER.probabilities(history)
        timesteps, weights = SAMPLER.draw(Randomness(0, range(4000)), LEVELS, history)
        assert probabilities.sum() == pytest.approx(1)
        assert torch.allclose(weights.double() * probabilities[timesteps] * LEVELS, torch.ones(4000).double())

    def test_levels_come_as_often_as_their_probability(self) -> None:
        history = filled([1.0, 5, 0, 2, 0.1, 9])
        timesteps, _ = SAMPLER.draw(Randomness(0, range(20_000)), LEVELS, history)
        shares = torch.bincount(timesteps, minlength=LEVELS) / 20_000
        assert torch.allclose(shares.double(), SAMPLER.probabilities(history), atol=0.01)  # Three standard errors.


def test_a_sample_draws_its_level_alone() -> None:
    history = filled([1.0, 5, 0, 2, 0.1, 9])
    for sampler in (SAMPLER, UniformTimesteps()):
        together, _ = sampler.draw(Randomness(0, range(8)), LEVELS, history)
        alone = torch.cat([sampler.draw(Randomness(0, [n]), LEVELS, history)[0] for n in range(8)])
        assert torch.equal(together, alone)


def test_without_its_history_the_sampler_says_where_it_is() -> None:
    with pytest.raises(ValueError, match="draws from a history, got None; TrainState holds it"):
        SAMPLER.draw(Randomness(0, range(2)), LEVELS, None)
