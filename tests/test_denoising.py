"""The objective: identities, and Gaussian data on which everything is known in closed form."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.drawing import Denoiser, Draw
from atdiff_core.randomness import Randomness

SPREAD = 0.5
BATCH = 16
SEES = Denoising()
BLIND = Denoising(attack_sees_target=False)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return SPREAD * torch.randn(BATCH, 1, 4, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def draw() -> Draw:
    """Gaussian images of standard deviation SPREAD, in double precision."""
    return SEES.draw(images(), Randomness(1, range(BATCH)))


@pytest.fixture
def delta(draw: Draw) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.1 * torch.randn(draw.noisy.shape, generator=generator, dtype=torch.float64)


class BayesOptimal(nn.Module):
    """E[noise | x_t] for Gaussian images of standard deviation SPREAD."""

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        abar = NoiseSchedule().abar[timesteps].view(-1, 1, 1, 1)
        return (1 - abar).sqrt() * noisy / (abar * SPREAD**2 + 1 - abar)


def contraction(draw: Draw) -> Tensor:
    """abar s² / (sigma (abar s² + sigma²)): by how much the optimal residual moves against delta."""
    abar = 1 - draw.sigma**2
    return abar * SPREAD**2 / (draw.sigma * (abar * SPREAD**2 + draw.sigma**2))


def gradient(objective: Denoising, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
    delta = delta.clone().requires_grad_()
    return torch.autograd.grad(objective.loss(network, draw, delta).sum(), delta)[0]


class TestDraw:
    def test_a_draw_solves_for_its_images(self, draw: Draw) -> None:
        signal = NoiseSchedule().signal(draw.timesteps)
        assert torch.allclose((draw.noisy - draw.sigma * draw.noise) / signal, images(), atol=1e-3)
        assert draw.sigma.shape == (BATCH, 1, 1, 1)

    def test_a_draw_does_not_depend_on_the_split_of_the_minibatch(self, draw: Draw) -> None:
        half = SEES.draw(images()[8:], Randomness(1, range(8, BATCH)))
        assert torch.equal(half.noisy, draw.noisy[8:])
        assert torch.equal(half.timesteps, draw.timesteps[8:])

    def test_every_noise_level_is_drawn(self) -> None:
        objective = Denoising(noise=NoiseSchedule(num_timesteps=5))
        timesteps = objective.draw(torch.zeros(200, 1, 1, 1), Randomness(0, range(200))).timesteps
        assert set(timesteps.tolist()) == set(range(5))


class TestLoss:
    def test_the_loss_is_the_weighted_error_of_the_implied_clean_image(self, draw: Draw, delta: Tensor) -> None:
        network = UNet(resolution=4, channels=(8,)).build(seed=0).double().eval()
        signal = NoiseSchedule().signal(draw.timesteps).double()
        seen = draw.noisy + delta
        with torch.no_grad():
            implied = (seen - draw.sigma * network(seen, draw.timesteps)) / signal
            losses = SEES.loss(network, draw, delta)
        clean = (draw.noisy - draw.sigma * draw.noise) / signal
        weight = (signal / draw.sigma).flatten() ** 2
        assert torch.allclose(losses, weight * (implied - clean).square().flatten(1).mean(dim=1), rtol=1e-6)

    def test_without_a_perturbation_it_is_the_loss_of_ddpm(self, draw: Draw) -> None:
        network = BayesOptimal()
        expected = (network(draw.noisy, draw.timesteps) - draw.noise).square().flatten(1).mean(dim=1)
        assert torch.equal(SEES.loss(network, draw, torch.zeros_like(draw.noisy)), expected)

    @pytest.mark.parametrize("objective", [SEES, BLIND], ids=["sees the target", "blind to it"])
    def test_a_perturbation_moves_the_optimal_residual_by_its_closed_form(
        self, objective: Denoising, draw: Draw, delta: Tensor
    ) -> None:
        network = BayesOptimal()
        residual = network(draw.noisy, draw.timesteps) - draw.noise - contraction(draw) * delta
        losses = objective.loss(network, draw, delta)
        assert torch.allclose(losses, residual.square().flatten(1).mean(dim=1), rtol=1e-4)

    def test_a_denoiser_that_knows_the_clean_image_never_loses(self, draw: Draw, delta: Tensor) -> None:
        signal = NoiseSchedule().signal(draw.timesteps).double()
        clean = (draw.noisy - draw.sigma * draw.noise) / signal
        losses = SEES.loss(lambda noisy, _: (noisy - signal * clean) / draw.sigma, draw, delta)
        assert losses.max() < 1e-20


class TestWhatTheAttackSees:
    def test_it_changes_neither_the_loss_nor_the_gradient_of_the_parameters(self, draw: Draw, delta: Tensor) -> None:
        network = UNet(resolution=4, channels=(8,)).build(seed=0).double()
        results = []
        for objective in (SEES, BLIND):
            losses = objective.loss(network, draw, delta)
            results.append([losses, *torch.autograd.grad(losses.mean(), list(network.parameters()))])
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

    def test_the_two_gradients_differ_by_the_part_through_the_target(self, draw: Draw, delta: Tensor) -> None:
        network = UNet(resolution=4, channels=(8,)).build(seed=0).double().eval()
        sees, blind = (gradient(objective, network, draw, delta) for objective in (SEES, BLIND))
        with torch.no_grad():
            residual = network(draw.noisy + delta, draw.timesteps) - draw.noise - delta / draw.sigma
        assert torch.allclose(blind - sees, 2 / 16 * residual / draw.sigma, rtol=1e-5, atol=1e-9)

    def test_the_blind_gradient_is_opposite_to_the_true_one_for_an_optimal_denoiser(
        self, draw: Draw, delta: Tensor
    ) -> None:
        sees, blind = (gradient(objective, BayesOptimal(), draw, delta) for objective in (SEES, BLIND))
        cosine = torch.cosine_similarity(sees.flatten(1), blind.flatten(1))
        assert torch.allclose(cosine, -torch.ones_like(cosine), atol=1e-6)

    def test_climbing_blindly_therefore_lowers_the_loss_that_true_climbing_raises(self, draw: Draw) -> None:
        still = torch.zeros_like(draw.noisy)
        start = SEES.loss(BayesOptimal(), draw, still)
        ends = []
        for objective in (SEES, BLIND):
            uphill = gradient(objective, BayesOptimal(), draw, still)
            length = uphill.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            ends.append(SEES.loss(BayesOptimal(), draw, 1e-4 * uphill / length))
        assert (ends[0] > start).all()
        assert (ends[1] < start).all()


class TestDropout:
    @pytest.fixture
    def network(self) -> nn.Module:
        return UNet(resolution=4, channels=(8,), dropout=0.5).build(seed=0).double().train()

    def test_every_replay_of_a_draw_has_the_same_masks(self, network: nn.Module, draw: Draw, delta: Tensor) -> None:
        assert torch.equal(SEES.loss(network, draw, delta), SEES.loss(network, draw, delta))

    def test_another_draw_has_other_masks(self, network: nn.Module, draw: Draw, delta: Tensor) -> None:
        other = replace(draw, dropout_seed=draw.dropout_seed + 1)
        assert not torch.equal(SEES.loss(network, draw, delta), SEES.loss(network, other, delta))

    def test_masks_leave_the_global_generator_where_it_was(self, network: nn.Module, draw: Draw, delta: Tensor) -> None:
        before = torch.get_rng_state()
        SEES.loss(network, draw, delta)
        assert torch.equal(torch.get_rng_state(), before)

    def test_masks_act_in_training_only(self, network: nn.Module, draw: Draw, delta: Tensor) -> None:
        training = SEES.loss(network, draw, delta)
        network.eval()
        assert not torch.equal(SEES.loss(network, draw, delta), training)
