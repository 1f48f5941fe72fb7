"""AT-DM's objective: what it is on networks whose answer to a shift is known."""

import pytest
import torch
from torch import Tensor, nn

from atdiff_core.balls import LInfBall
from atdiff_core.minibatch import Minibatch
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.drawing import Draw
from atdiff_core.objectives.equivariant import Equivariant, RadiusSchedule
from atdiff_core.perturbations import PGD
from atdiff_core.randomness import Randomness

SPREAD = 0.5
BATCH = 12
RANDOMNESS = Randomness(1, range(BATCH))
OBJECTIVE = Equivariant(weighting="constant", strength=0.7)


@pytest.fixture
def draw() -> Draw:
    generator = torch.Generator().manual_seed(0)
    return OBJECTIVE.draw(SPREAD * torch.randn(BATCH, 1, 4, 4, generator=generator, dtype=torch.float64), RANDOMNESS)


@pytest.fixture
def delta(draw: Draw) -> Tensor:
    return LInfBall(radius=1).uniform((1, 4, 4), RANDOMNESS).double()


class Linear(nn.Module):
    """Predicts ``slope(t)`` times the noised image."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.slope = slope

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.factor * self.slope * noisy


def bayes_optimal(draw: Draw) -> Linear:
    abar = 1 - draw.sigma**2
    return Linear(draw.sigma / (abar * SPREAD**2 + draw.sigma**2))


def mean_square(values: Tensor) -> Tensor:
    return values.square().flatten(1).mean(dim=1)


class TestLoss:
    def test_without_a_shift_it_is_noise_prediction_bit_for_bit(self, draw: Draw) -> None:
        network = UNet(resolution=4, channels=(8,), dropout=0.3).build(seed=0).double().train()
        still = torch.zeros_like(draw.noisy)
        assert torch.equal(OBJECTIVE.loss(network, draw, still), Denoising().loss(network, draw, still))

    def test_a_prediction_that_moves_with_its_state_pays_no_more(self, draw: Draw, delta: Tensor) -> None:
        network = Linear(1 / draw.sigma)  # sigma de/dx is the identity.
        plain = Denoising().loss(network, draw, torch.zeros_like(delta))
        assert torch.allclose(OBJECTIVE.loss(network, draw, delta), plain, rtol=1e-12)

    def test_the_optimal_denoiser_of_gaussian_data_contracts_by_its_closed_form(
        self, draw: Draw, delta: Tensor
    ) -> None:
        network, abar = bayes_optimal(draw), 1 - draw.sigma**2
        omega = draw.reach * delta
        residual = -abar * SPREAD**2 / (abar * SPREAD**2 + draw.sigma**2) * omega
        plain = Denoising().loss(network, draw, torch.zeros_like(delta))
        assert torch.allclose(OBJECTIVE.loss(network, draw, delta), plain + 0.7 * mean_square(residual), rtol=1e-9)

    def test_the_invariant_baseline_wants_a_prediction_that_stays(self, draw: Draw, delta: Tensor) -> None:
        invariant, network = OBJECTIVE.but(wants="invariant"), bayes_optimal(draw)
        moved = network.slope * draw.sigma * draw.reach * delta
        plain = Denoising().loss(network, draw, torch.zeros_like(delta))
        assert torch.allclose(invariant.loss(network, draw, delta), plain + 0.7 * mean_square(moved), rtol=1e-9)

    def test_detaching_changes_the_gradient_and_not_the_loss(self, draw: Draw, delta: Tensor) -> None:
        results = []
        for objective in (OBJECTIVE, OBJECTIVE.but(detach_prediction=False)):
            network = bayes_optimal(draw)
            losses = objective.loss(network, draw, delta)
            losses.mean().backward()
            results.append((losses.detach(), network.factor.grad))
        (fixed, its_gradient), (free, other_gradient) = results
        assert torch.equal(fixed, free)
        assert not torch.isclose(its_gradient, other_gradient)

    def test_the_regulariser_is_weighted_by_the_inverse_deviation_of_uniform_noise(
        self, draw: Draw, delta: Tensor
    ) -> None:
        network = bayes_optimal(draw)
        plain = Denoising().loss(network, draw, torch.zeros_like(delta))
        constant = OBJECTIVE.loss(network, draw, delta) - plain
        weighted = OBJECTIVE.but(weighting="inverse_std").loss(network, draw, delta) - plain
        assert torch.allclose(weighted, constant * 3**0.5 / draw.reach.flatten(), rtol=1e-9)

    def test_variance_channels_are_not_asked_to_move(self, draw: Draw, delta: Tensor) -> None:
        learned = OBJECTIVE.but(variance="learned")
        noise_channels, still = bayes_optimal(draw), torch.zeros_like(delta)

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return torch.cat([noise_channels(noisy, timesteps), torch.tanh(noisy)], dim=1)

        regulariser = learned.loss(network, draw, delta) - learned.loss(network, draw, still)
        without = OBJECTIVE.loss(noise_channels, draw, delta) - OBJECTIVE.loss(noise_channels, draw, still)
        assert torch.allclose(regulariser, without, rtol=1e-6)


class TestAttack:
    def test_it_is_the_squared_difference_of_the_two_predictions(self, draw: Draw, delta: Tensor) -> None:
        network = bayes_optimal(draw)
        moved = network.slope * draw.sigma * draw.reach * delta
        assert torch.allclose(OBJECTIVE.attack(network, draw, delta), mean_square(moved), rtol=1e-9)

    def test_one_sign_step_from_a_random_start_reaches_a_corner_that_is_worse_than_the_start(self, draw: Draw) -> None:
        network = UNet(resolution=4, channels=(8,)).build(seed=0).double().eval()
        minibatch = Minibatch.whole(
            lambda delta: OBJECTIVE.loss(network, draw, delta),
            BATCH,
            attack=lambda delta: OBJECTIVE.attack(network, draw, delta),
        )
        random = PGD(ball=LInfBall(radius=1), step_size=2, num_steps=0, start="random")
        (start,) = random.replays(minibatch, draw.noisy, RANDOMNESS)
        (end,) = random.but(num_steps=1).replays(minibatch, draw.noisy, RANDOMNESS)
        assert (end.delta.abs() == 1).all()
        attacked = [OBJECTIVE.attack(network, draw, replay.delta).mean() for replay in (start, end)]
        assert attacked[1] > 1.5 * attacked[0]


class TestRadius:
    SIGMA = torch.tensor([0.01, 0.2, 0.7, 1.0]).view(-1, 1, 1, 1)

    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            ("floored", [8 / 255, 0.4, 1.4, 2.0]),
            ("biased", [2e-4 + 8 / 255, 0.08 + 8 / 255, 0.98 + 8 / 255, 2 + 8 / 255]),
            ("constant", [2.0] * 4),
        ],
    )
    def test_its_forms(self, form: str, expected: list[float]) -> None:
        radius = RadiusSchedule(form=form, scale=(2.0, 2.0)).draw(self.SIGMA, Randomness(0, range(4)))
        assert radius.flatten().tolist() == pytest.approx(expected, rel=1e-5)

    def test_its_random_factor_is_each_samples_own_and_within_its_range(self) -> None:
        schedule = RadiusSchedule(form="constant", scale=(0.5, 2.0))
        drawn = schedule.draw(torch.ones(500, 1, 1, 1), Randomness(0, range(500))).flatten()
        assert 0.5 <= drawn.min() < 0.52
        assert 1.98 < drawn.max() <= 2
        assert drawn.mean().item() == pytest.approx(1.25, abs=0.06)

    def test_a_range_that_is_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"scale must be two numbers, 0 < low <= high, got \(2\.0, 1\.0\)"):
            RadiusSchedule(scale=(2.0, 1.0))


def test_sigma_and_radius_are_of_the_same_samples(draw: Draw) -> None:
    sigma = NoiseSchedule().sigma(draw.timesteps).double()
    assert torch.allclose(draw.reach, sigma.clamp(min=8 / 255))
