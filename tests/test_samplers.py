"""Samplers: evaluations counted, and Gaussian data on which the outcome is known."""

import math
import re

import pytest
import torch
from torch import Tensor

from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.samplers import Sampler, SamplerKind, latents, sample, sample_batches

KINDS: tuple[SamplerKind, ...] = ("ddim", "ancestral", "dpmpp_2m")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
SCHEDULES = pytest.mark.parametrize("schedule", ["linear", "cosine"])
SPREAD = 0.15  # Six standard deviations stay inside [-1, 1], so that clipping changes nothing.
SHAPE = (1, 8, 8)


class BayesOptimal:
    """E[noise | x_t] for Gaussian images of standard deviation SPREAD; remembers its timesteps."""

    def __init__(self, noise: NoiseSchedule) -> None:
        self.noise = noise
        self.timesteps: list[int] = []

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        self.timesteps.append(int(timesteps[0]))
        assert (timesteps == timesteps[0]).all()
        abar = self.noise.abar[timesteps].view(-1, 1, 1, 1)
        return ((1 - abar).sqrt() * noisy / (abar * SPREAD**2 + 1 - abar)).float()


def sampled(kind: SamplerKind, nfe: int, noise: NoiseSchedule, count: int = 16) -> Tensor:
    images, _ = sample(
        BayesOptimal(noise), noise, Sampler(kind=kind, nfe=nfe), shape=SHAPE, indices=range(count), seed=0
    )
    return images


def gain(kind: SamplerKind, nfe: int, noise: NoiseSchedule) -> float:
    """How much a deterministic sampler scales its latents: the spread of what it makes."""
    start = latents(SHAPE, range(16), seed=0)
    return float((sampled(kind, nfe, noise) * start).sum() / start.square().sum())


class TestEvaluations:
    @EVERY_KIND
    @pytest.mark.parametrize("nfe", [*range(1, 21), 50])
    def test_the_network_is_asked_as_often_as_told_and_never_twice_about_one_level(
        self, kind: SamplerKind, nfe: int
    ) -> None:
        noise = NoiseSchedule()
        network = BayesOptimal(noise)
        _, counted = sample(network, noise, Sampler(kind=kind, nfe=nfe), shape=SHAPE, indices=range(2), seed=0)
        assert counted == nfe == len(network.timesteps)
        assert network.timesteps == sorted(set(network.timesteps), reverse=True)

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [2, 5, 10, 20])
    def test_samplers_start_and_end_where_they_say(self, schedule: str, nfe: int) -> None:
        noise = NoiseSchedule(kind=schedule)
        first, last = {}, {}
        for kind in KINDS:
            timesteps = Sampler(kind=kind, nfe=nfe).scheduler(noise).timesteps.tolist()
            first[kind], last[kind] = timesteps[0], timesteps[-1]
        assert (first["ancestral"], first["ddim"]) == (999, 1000 - 1000 // nfe)
        half_log_snr = (noise.abar / (1 - noise.abar)).log() / 2
        assert first["dpmpp_2m"] == int((half_log_snr >= -5.1).sum()) - 1  # The noisiest level it accepts.
        assert (last["ddim"], last["ancestral"]) == (0, 0)

    @EVERY_KIND
    def test_more_evaluations_than_noise_levels_are_refused(self, kind: SamplerKind) -> None:
        with pytest.raises(ValueError, match=rf"nfe of {kind} must be at most \d+ .* got 11"):
            Sampler(kind=kind, nfe=11).scheduler(NoiseSchedule(num_timesteps=10))

    @EVERY_KIND
    @SCHEDULES
    def test_the_most_evaluations_there_can_be_give_finite_images(self, kind: SamplerKind, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule, num_timesteps=50)
        with pytest.raises(ValueError, match="must be at most") as refused:
            sampled(kind, 51, noise)
        most = int(re.search(r"at most (\d+)", str(refused.value)).group(1))
        images = sampled(kind, most, noise)
        assert images.isfinite().all()


class TestIndependence:
    def test_latents_are_a_function_of_seed_and_index(self) -> None:
        together = latents(SHAPE, [4, 9, 2], seed=1)
        assert torch.equal(together, torch.cat([latents(SHAPE, [index], seed=1) for index in (4, 9, 2)]))
        assert not torch.equal(together, latents(SHAPE, [4, 9, 2], seed=2))

    @EVERY_KIND
    def test_samples_do_not_depend_on_the_batch_size(self, kind: SamplerKind) -> None:
        noise = NoiseSchedule()
        optimal, unet = BayesOptimal(noise), UNet(resolution=8, channels=(8, 16)).build(seed=0).eval()
        drawn = [
            list(
                sample_batches(
                    lambda noisy, timesteps: optimal(noisy, timesteps) + 0.1 * unet(noisy, timesteps),
                    noise,
                    Sampler(kind=kind, nfe=4),
                    shape=SHAPE,
                    count=7,
                    seed=0,
                    batch_size=size,
                )
            )
            for size in (7, 3, 1)
        ]
        assert [len(batches) for batches in drawn] == [1, 3, 7]
        whole, *others = (torch.cat(batches) for batches in drawn)
        assert whole.shape == (7, *SHAPE)
        for other in others:
            assert torch.allclose(other, whole, atol=1e-4)

    @EVERY_KIND
    def test_sampling_ignores_and_leaves_alone_the_global_generator(self, kind: SamplerKind) -> None:
        noise = NoiseSchedule()
        torch.manual_seed(0)
        once = sampled(kind, 5, noise)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        assert torch.equal(sampled(kind, 5, noise), once)
        assert torch.equal(torch.get_rng_state(), before)

    @EVERY_KIND
    def test_images_stay_in_their_range(self, kind: SamplerKind) -> None:
        images, _ = sample(
            lambda noisy, _: -3 * noisy, NoiseSchedule(), Sampler(kind=kind, nfe=3), shape=SHAPE, indices=[0], seed=0
        )
        assert images.abs().max() <= 1


class TestGaussianData:
    @SCHEDULES
    @pytest.mark.parametrize("nfe", [2, 5, 10, 50])
    def test_ddim_scales_its_latents_by_the_product_of_its_steps(self, schedule: str, nfe: int) -> None:
        noise = NoiseSchedule(kind=schedule)
        levels = [*range(0, 1000 - 1000 // nfe + 1, 1000 // nfe)]
        abars = [1.0, *noise.abar[levels].tolist()]
        factor = 1.0
        for abar, before in zip(reversed(abars[1:]), reversed(abars[:-1]), strict=True):
            power = abar * SPREAD**2 + 1 - abar
            clean, remaining = math.sqrt(abar) * SPREAD**2 / power, math.sqrt(1 - abar) / power
            factor *= math.sqrt(before) * clean + math.sqrt(1 - before) * remaining
        expected = factor * latents(SHAPE, range(16), seed=0)
        assert torch.allclose(sampled("ddim", nfe, noise), expected, atol=1e-5)

    @SCHEDULES
    @pytest.mark.parametrize("kind", ["ddim", "dpmpp_2m"])
    def test_more_steps_converge_to_the_spread_of_the_data(self, kind: SamplerKind, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule)
        errors = [abs(gain(kind, nfe, noise) - SPREAD) / SPREAD for nfe in (10, 40, 200, 500)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.03

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [40, 50, 100, 200])
    def test_the_second_order_solver_is_nearer_than_ddim_at_equal_cost(self, schedule: str, nfe: int) -> None:
        noise = NoiseSchedule(kind=schedule)
        first_order, second_order = (abs(gain(kind, nfe, noise) - SPREAD) for kind in ("ddim", "dpmpp_2m"))
        assert second_order < 0.9 * first_order

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [2, 5, 20])
    def test_ancestral_sampling_has_the_spread_of_the_posterior_chain(self, schedule: str, nfe: int) -> None:
        noise = NoiseSchedule(kind=schedule)
        levels = torch.linspace(0, 999, nfe).round().long()
        abars = [1.0, *noise.abar[levels].tolist()]
        variance = 1.0
        for abar, before in zip(reversed(abars[1:]), reversed(abars[:-1]), strict=True):
            alpha, clean = abar / before, math.sqrt(abar) * SPREAD**2 / (abar * SPREAD**2 + 1 - abar)
            factor = (math.sqrt(before) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - before)) / (1 - abar)
            variance = factor**2 * variance + (1 - alpha) * (1 - before) / (1 - abar)
        spread = sampled("ancestral", nfe, noise, count=64).std().item()
        assert spread == pytest.approx(math.sqrt(variance), rel=0.05)  # Four standard errors of 64² pixels.

    @SCHEDULES
    def test_ancestral_sampling_reproduces_the_spread_with_many_steps(self, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule)
        spread = sampled("ancestral", 500, noise, count=64).std().item()
        assert spread == pytest.approx(SPREAD, rel=0.06)

    def test_ancestral_sampling_adds_noise_of_its_own(self) -> None:
        noise = NoiseSchedule()
        start = latents(SHAPE, range(16), seed=0)
        correlation = torch.corrcoef(torch.stack([start.flatten(), sampled("ancestral", 200, noise).flatten()]))[0, 1]
        assert abs(correlation) < 0.2
