"""Noise schedules against those of diffusers, and what they promise of x_t."""

import pytest
import torch
from diffusers import DDPMScheduler

from atdiff_core.noise import MAX_BETA, NoiseSchedule

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("kind", KINDS)
def test_betas_are_those_of_diffusers(kind: str) -> None:
    ours, theirs = NoiseSchedule(kind=kind), DDPMScheduler(beta_schedule=KINDS[kind])
    assert torch.allclose(ours.betas, theirs.betas.double(), rtol=1e-4, atol=1e-7)
    assert torch.allclose(ours.abar, theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_timesteps", [2, 50, 1000, 4000])
def test_the_signal_only_ever_falls(kind: str, num_timesteps: int) -> None:
    abar = NoiseSchedule(kind=kind, num_timesteps=num_timesteps).abar
    assert abar.dtype == torch.float64
    assert (abar.diff() < 0).all()
    assert 0 < abar[-1] < abar[0] < 1


def test_cosine_betas_are_capped() -> None:
    assert NoiseSchedule(kind="cosine").betas.max() == MAX_BETA


def test_cosine_signal_follows_its_formula_until_the_cap() -> None:
    schedule = NoiseSchedule(kind="cosine")
    ramp = (torch.arange(1, 1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2
    start = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2
    assert torch.allclose(schedule.abar[:-1], (torch.cos(ramp) ** 2 / start)[:-1], rtol=1e-9)


def test_a_linear_schedule_ends_in_the_same_noise_at_any_length() -> None:
    long, short = (NoiseSchedule(kind="linear", num_timesteps=steps).abar[-1].log() for steps in (1000, 250))
    assert short == pytest.approx(long.item(), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_signal_and_noise_powers_add_to_one(kind: str) -> None:
    schedule, timesteps = NoiseSchedule(kind=kind), torch.arange(1000)
    total = schedule.signal(timesteps).square() + schedule.sigma(timesteps).square()
    assert total.shape == (1000, 1, 1, 1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_unit_data_keep_unit_variance_when_noised(timestep: int) -> None:
    generator = torch.Generator().manual_seed(timestep)
    clean, noise = (torch.randn(64, 1, 32, 32, generator=generator) for _ in range(2))
    noisy = NoiseSchedule().noised(clean, noise, torch.full((64,), timestep))
    assert noisy.var().item() == pytest.approx(1, abs=4 * (2 / noisy.numel()) ** 0.5)


def test_the_first_level_is_nearly_the_image_and_the_last_nearly_noise() -> None:
    clean, noise = torch.full((2, 1, 4, 4), 0.5), torch.ones(2, 1, 4, 4)
    first, last = NoiseSchedule().noised(clean, noise, torch.tensor([0, 999]))
    assert torch.allclose(first, clean[0], atol=0.01)
    assert torch.allclose(last, noise[0], atol=0.01)
