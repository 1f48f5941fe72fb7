"""The variational term, against torch's own Gaussians and the sum rule of probabilities."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.variational import grey_level_log_likelihood, variational_term

NOISE = NoiseSchedule(kind="linear", num_timesteps=200)
SHAPE = (6, 2, 3, 3)
LEVELS = torch.tensor([1, 2, 10, 60, 150, 199])


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean images, noise, a prediction of it, and v; in double precision."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, error, v = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    return (clean / 3).clamp(-1, 1), noise, noise + 0.1 * error, v.tanh()


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    return NOISE.signal(levels).double() * clean + NOISE.sigma(levels).double() * noise


def peer(level: int) -> DDPMScheduler:
    return DDPMScheduler(trained_betas=NOISE.betas.numpy(), clip_sample=False, num_train_timesteps=200)


def posterior_mean(scheduler: DDPMScheduler, predicted: Tensor, level: int, noisy: Tensor) -> Tensor:
    """diffusers' own reverse step, with its noise taken away again."""
    stepped = scheduler.step(predicted, level, noisy, generator=torch.Generator().manual_seed(0)).prev_sample
    noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0), dtype=noisy.dtype)
    return stepped - scheduler._get_variance(level) ** 0.5 * noise


def test_it_is_the_divergence_of_the_reverse_step_from_diffusers_posterior(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    clean, noise, predicted, v = tensors
    noisy = noised(clean, noise, LEVELS)
    ours = variational_term(clean, noisy, predicted, v, LEVELS, NOISE)
    for row, level in enumerate(LEVELS.tolist()):
        scheduler = peer(level)
        small, large = scheduler._get_variance(level), NOISE.betas[level]
        deviation = torch.exp(((v[row] + 1) / 2 * large.log() + (1 - v[row]) / 2 * small.log()) / 2)
        truth = Normal(posterior_mean(scheduler, noise[row], level, noisy[row]), small**0.5)
        model = Normal(posterior_mean(scheduler, predicted[row], level, noisy[row]), deviation)
        expected = kl_divergence(truth, model).mean() / math.log(2) * 200 / 1000
        assert ours[row].item() == pytest.approx(expected.item(), rel=2e-3)


def test_the_right_noise_and_the_lower_variance_are_the_posterior_itself(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    clean, noise, _, v = tensors
    losses = variational_term(clean, noised(clean, noise, LEVELS), noise, -torch.ones_like(v), LEVELS, NOISE)
    assert losses.abs().max() < 1e-7  # Signal and noise level of x_t are float32.


def test_only_the_variance_channels_get_a_gradient(tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    clean, noise, predicted, v = (each.requires_grad_() for each in tensors)
    noisy = noised(clean.detach(), noise, LEVELS)
    variational_term(clean.detach(), noisy, predicted, v, LEVELS, NOISE).sum().backward()
    assert noise.grad is None
    assert predicted.grad is None
    assert (v.grad != 0).all()


def test_the_probabilities_of_all_grey_levels_sum_to_one() -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(-1, 1)
    mean, log_variance = torch.tensor([[-1.3, 0.2, 0.999]]).double(), torch.tensor([[-3.0, -8.0, -1.0]]).double()
    total = grey_level_log_likelihood(levels.expand(-1, 3), mean, log_variance).exp().sum(dim=0)
    assert torch.allclose(total, torch.ones(3).double(), atol=1e-9)


def test_at_the_last_step_it_is_the_likelihood_of_the_image(tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    clean, noise, _, v = tensors
    levels = torch.zeros(len(clean), dtype=torch.int64)
    losses = variational_term(clean, noised(clean, noise, levels), noise, v, levels, NOISE)
    assert (losses > 0).all()
    assert (losses < 8 * 200 / 1000).all()  # The right noise costs less than the eight bits of a guess.
