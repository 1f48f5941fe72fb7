"""Samplers: evaluations counted, and Gaussian data on which the outcome is known."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from atdiff_core.epsilon_scaling import EpsilonScaling
from atdiff_core.levels import chain_levels, log_snr_levels, strided_levels
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.samplers import (
    FINISHED,
    Sampler,
    class_labels,
    latents,
    sample,
    sample_batches,
    trajectory,
)

LABELS = ("ddim", "ancestral", "iddpm", "dpmpp_2m", "dpmpp_2m_logsnr")
EVERY_SAMPLER = pytest.mark.parametrize("label", LABELS)
SCHEDULES = pytest.mark.parametrize("schedule", ["linear", "cosine"])
SPREAD = 0.15  # Six standard deviations stay inside [-1, 1], so that clipping changes nothing.
SHAPE = (1, 8, 8)


class BayesOptimal:
    """E[noise | x_t] for Gaussian images of standard deviation SPREAD; remembers its timesteps.

    Behind the noise comes v: minus one, the smallest variance, unless ``with_variance`` makes it
    the exact one of the step to the next of these levels.
    """

    def __init__(self, noise: NoiseSchedule) -> None:
        self.noise = noise
        self.timesteps: list[int] = []
        self.next_level: dict[int, int] = {}

    def with_variance(self, sampler: Sampler) -> "BayesOptimal":
        levels = sampler.scheduler(self.noise).timesteps.tolist()
        self.next_level = dict(pairwise(levels))
        return self

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        level = int(timesteps[0])
        self.timesteps.append(level)
        assert (timesteps == level).all()
        abar = self.noise.abar[level]
        predicted = (1 - abar).sqrt() * noisy / variance_at(abar)
        return torch.cat([predicted, torch.full_like(noisy, self.exact_v(level))], dim=1).float()

    def exact_v(self, level: int) -> float:
        """Where log Var(x_s | x_t) lies between the logarithms of the bounds that v interpolates."""
        if level not in self.next_level:
            return -1.0
        abar, before = self.noise.abar[level], self.noise.abar[self.next_level[level]]
        beta = 1 - abar / before
        exact = variance_at(before) * beta / variance_at(abar)
        smallest = beta * (1 - before) / (1 - abar)
        return float(2 * (exact / smallest).log() / (beta / smallest).log() - 1)


def variance_at(abar: Tensor) -> Tensor:
    """Variance of x_t for Gaussian images of standard deviation SPREAD."""
    return abar * SPREAD**2 + 1 - abar


def sampled(label: str, nfe: int, noise: NoiseSchedule, count: int = 16) -> Tensor:
    images, _ = sample(
        BayesOptimal(noise), noise, Sampler.named(label, nfe=nfe), shape=SHAPE, indices=range(count), seed=0
    )
    return images


def gain(label: str, nfe: int, noise: NoiseSchedule) -> float:
    """How much a deterministic sampler scales its latents: the spread of what it makes."""
    start = latents(SHAPE, range(16), seed=0)
    return float((sampled(label, nfe, noise) * start).sum() / start.square().sum())


class TestEvaluations:
    @EVERY_SAMPLER
    @pytest.mark.parametrize("nfe", [*range(1, 21), 50])
    def test_the_network_is_asked_as_often_as_told_and_never_twice_about_one_level(self, label: str, nfe: int) -> None:
        noise = NoiseSchedule()
        network = BayesOptimal(noise)
        _, counted = sample(network, noise, Sampler.named(label, nfe=nfe), shape=SHAPE, indices=range(2), seed=0)
        assert counted == nfe == len(network.timesteps)
        assert network.timesteps == sorted(set(network.timesteps), reverse=True)

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [2, 5, 10, 20])
    def test_samplers_start_and_end_where_they_say(self, schedule: str, nfe: int) -> None:
        noise = NoiseSchedule(kind=schedule)
        visited = {label: Sampler.named(label, nfe=nfe).scheduler(noise).timesteps.tolist() for label in LABELS}
        first, last = ({label: levels[end] for label, levels in visited.items()} for end in (0, -1))
        assert (first["ancestral"], first["iddpm"], first["ddim"]) == (999, 999, 1000 - 1000 // nfe)
        half_log_snr = (noise.abar / (1 - noise.abar)).log() / 2
        accepted = int((half_log_snr >= -5.1).sum())
        assert first["dpmpp_2m"] == accepted - 1  # The noisiest level it accepts.
        assert first["dpmpp_2m_logsnr"] == {"linear": 991, "cosine": 987}[schedule] == round(0.992 * accepted) - 1
        assert (last["ddim"], last["ancestral"], last["iddpm"]) == (0, 0, 0)

    @EVERY_SAMPLER
    def test_more_evaluations_than_noise_levels_are_refused(self, label: str) -> None:
        with pytest.raises(ValueError, match=r"nfe of \w+ must be at most \d+, .* got 11"):
            Sampler.named(label, nfe=11).scheduler(NoiseSchedule(num_timesteps=10))

    @EVERY_SAMPLER
    @SCHEDULES
    def test_the_most_evaluations_there_can_be_give_finite_images(self, label: str, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule, num_timesteps=50)
        with pytest.raises(ValueError, match="must be at most") as refused:
            sampled(label, 51, noise)
        most = int(re.search(r"at most (\d+)", str(refused.value)).group(1))
        images = sampled(label, most, noise)
        assert images.isfinite().all()


class TestLevels:
    """The levels of guided-diffusion, and what is done where it has none."""

    @pytest.mark.parametrize(
        ("nfe", "levels"), [(2, [999, 0]), (5, [999, 749, 500, 250, 0]), (8, [999, 856, 714, 571, 428, 285, 143, 0])]
    )
    def test_a_respaced_chain_contains_both_ends(self, nfe: int, levels: list[int]) -> None:
        assert chain_levels(1000, nfe) == levels

    @pytest.mark.parametrize(
        ("nfe", "first"), [(3, 668), (5, 800), (6, 835), (8, 875), (10, 900), (20, 950), (50, 980)]
    )
    def test_ddim_takes_the_smallest_stride_that_gives_as_many_steps(self, nfe: int, first: int) -> None:
        levels = strided_levels(1000, nfe)
        (stride,) = {noisier - cleaner for noisier, cleaner in pairwise(levels)}
        assert (levels[0], levels[-1], len(levels)) == (first, 0, nfe)
        assert len(range(0, 1000, stride)) == nfe < len(range(0, 1000, stride - 1))

    @pytest.mark.parametrize("num_timesteps", [50, 1000])
    def test_ddim_never_starts_far_below_the_noisiest_level(self, num_timesteps: int) -> None:
        for nfe in range(1, num_timesteps + 1):
            levels = strided_levels(num_timesteps, nfe)
            assert len(set(levels)) == nfe
            assert num_timesteps - levels[0] <= -(-num_timesteps // nfe)
            assert levels[-1] == 0 or nfe == 1

    def test_where_no_whole_stride_fits_the_levels_are_those_of_the_broken_one(self) -> None:
        assert strided_levels(10, 7) == [8, 7, 5, 4, 2, 1, 0]

    @pytest.mark.parametrize("label", ["ddim", "ancestral", "iddpm"])
    def test_a_single_step_is_made_at_the_noisiest_level_and_ends_in_its_prediction(self, label: str) -> None:
        noise = NoiseSchedule(kind="linear", num_timesteps=100)

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            """Knows that all images have the value 0.3 everywhere, and learned the largest variance."""
            abar = noise.abar[timesteps[0]]
            return torch.cat([(noisy - abar.sqrt() * 0.3) / (1 - abar).sqrt(), torch.ones_like(noisy)], dim=1)

        sampler = Sampler.named(label, nfe=1)
        (level, _), (_, images) = trajectory(network, noise, sampler, shape=SHAPE, indices=range(4), seed=0)
        assert level == 99
        assert torch.allclose(images, torch.full_like(images, 0.3), atol=1e-3)

    @SCHEDULES
    def test_log_snr_levels_are_as_even_as_whole_timesteps_allow(self, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule)
        half_log_snr = (noise.abar / (1 - noise.abar)).log() / 2
        spacing = half_log_snr[[*log_snr_levels(noise, 8), 0]].diff()
        assert torch.allclose(spacing, spacing.mean().expand(8), rtol=0.2)

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [1, 5, 50, 400, 900])
    def test_log_snr_levels_are_distinct_and_above_zero(self, schedule: str, nfe: int) -> None:
        levels = log_snr_levels(NoiseSchedule(kind=schedule), nfe)
        assert levels == sorted(set(levels), reverse=True)
        assert len(levels) == nfe
        assert levels[-1] > 0


class TestNames:
    @pytest.mark.parametrize(
        "label", [*LABELS, "iddpm_es1.017", "ancestral_es1.003_0.0025", "dpmpp_2m_logsnr_es1.01", "ddim_es1_-1e-05"]
    )
    def test_a_label_names_its_sampler(self, label: str) -> None:
        sampler = Sampler.named(label, nfe=7)
        assert sampler.label == label
        assert sampler.name == f"{label}_7"

    def test_a_plain_sampler_is_named_as_it_always_was(self) -> None:
        assert Sampler().name == "ddim_10"
        assert Sampler(kind="iddpm", epsilon_scaling=EpsilonScaling(constant=1.0)).name == "iddpm_10"

    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"must be ddim, ancestral, iddpm, .* got 'euler'"):
            Sampler.named("euler", nfe=5)

    def test_settings_that_a_sampler_does_not_have_are_refused(self) -> None:
        with pytest.raises(ValueError, match="spacing log_snr is one of dpmpp_2m, got it for ddim"):
            Sampler(spacing="log_snr")
        with pytest.raises(ValueError, match=r"must stay positive at all 10 levels, got -0.8"):
            Sampler(epsilon_scaling=EpsilonScaling(slope=-0.2))


class TestIndependence:
    def test_latents_are_a_function_of_seed_and_index(self) -> None:
        together = latents(SHAPE, [4, 9, 2], seed=1)
        assert torch.equal(together, torch.cat([latents(SHAPE, [index], seed=1) for index in (4, 9, 2)]))
        assert not torch.equal(together, latents(SHAPE, [4, 9, 2], seed=2))

    @EVERY_SAMPLER
    def test_samples_do_not_depend_on_the_batch_size(self, label: str) -> None:
        noise = NoiseSchedule()
        optimal, unet = BayesOptimal(noise), UNet(resolution=8, channels=(8, 16)).build(seed=0).eval()
        drawn = [
            list(
                sample_batches(
                    lambda noisy, timesteps: optimal(noisy, timesteps) + 0.1 * unet(noisy, timesteps),
                    noise,
                    Sampler.named(label, nfe=4),
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

    @EVERY_SAMPLER
    def test_sampling_ignores_and_leaves_alone_the_global_generator(self, label: str) -> None:
        noise = NoiseSchedule()
        torch.manual_seed(0)
        once = sampled(label, 5, noise)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        assert torch.equal(sampled(label, 5, noise), once)
        assert torch.equal(torch.get_rng_state(), before)

    @EVERY_SAMPLER
    def test_images_stay_in_their_range(self, label: str) -> None:
        images, _ = sample(
            lambda noisy, _: torch.cat([-3 * noisy, noisy], dim=1),
            NoiseSchedule(),
            Sampler.named(label, nfe=3),
            shape=SHAPE,
            indices=[0],
            seed=0,
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
    @pytest.mark.parametrize("label", ["ddim", "dpmpp_2m"])
    def test_more_steps_converge_to_the_spread_of_the_data(self, label: str, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule)
        errors = [abs(gain(label, nfe, noise) - SPREAD) / SPREAD for nfe in (10, 40, 200, 500)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.03

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [40, 50, 100, 200])
    def test_the_second_order_solver_is_nearer_than_ddim_at_equal_cost(self, schedule: str, nfe: int) -> None:
        noise = NoiseSchedule(kind=schedule)
        first_order, second_order = (abs(gain(label, nfe, noise) - SPREAD) for label in ("ddim", "dpmpp_2m"))
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

    @SCHEDULES
    @pytest.mark.parametrize("nfe", [2, 5, 20])
    def test_with_the_exact_variance_every_state_of_improved_ddpm_has_the_spread_of_its_level(
        self, schedule: str, nfe: int
    ) -> None:
        noise = NoiseSchedule(kind=schedule)
        sampler = Sampler(kind="iddpm", nfe=nfe)
        network = BayesOptimal(noise).with_variance(sampler)
        for level, state in trajectory(network, noise, sampler, shape=SHAPE, indices=range(64), seed=0):
            assert level == FINISHED or state.std() == pytest.approx(
                math.sqrt(variance_at(noise.abar[level])), rel=0.05
            )
        assert state.std() == pytest.approx(SPREAD, rel=0.05)  # Four standard errors of 64² pixels.

    def test_the_smallest_learned_variance_is_ancestral_sampling(self) -> None:
        noise = NoiseSchedule()
        assert torch.allclose(sampled("iddpm", 10, noise), sampled("ancestral", 10, noise), atol=1e-5)

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_doubling_the_steps_of_the_second_order_solver_quarters_its_error(self, schedule: str) -> None:
        noise = NoiseSchedule(kind=schedule, num_timesteps=4000)
        start = log_snr_levels(noise, 1)[0]
        exact = math.sqrt(variance_at(noise.abar[0]) / variance_at(noise.abar[start]))
        errors = [abs(gain("dpmpp_2m_logsnr", nfe, noise) - exact) for nfe in (15, 30, 60)]
        for coarse, fine in pairwise(errors):
            assert 3 < coarse / fine < 5.5


class TestLearnedVariance:
    def test_a_network_without_it_is_refused_by_improved_ddpm(self) -> None:
        with pytest.raises(
            ValueError, match=r"iddpm needs a network with a learned variance \(2 output channels\), got 1"
        ):
            sample(lambda noisy, _: noisy, NoiseSchedule(), Sampler(kind="iddpm"), shape=SHAPE, indices=[0], seed=0)

    @pytest.mark.parametrize("label", ["ddim", "ancestral", "dpmpp_2m", "dpmpp_2m_logsnr"])
    def test_the_others_ignore_it(self, label: str) -> None:
        noise = NoiseSchedule()

        def without(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return BayesOptimal(noise)(noisy, timesteps)[:, :1]

        plain, _ = sample(without, noise, Sampler.named(label, nfe=5), shape=SHAPE, indices=range(16), seed=0)
        assert torch.equal(sampled(label, 5, noise), plain)


class TestEpsilonScaling:
    @EVERY_SAMPLER
    def test_it_is_a_network_that_predicts_less_noise_by_as_much(self, label: str) -> None:
        noise, nfe = NoiseSchedule(), 6
        levels = Sampler.named(label, nfe=nfe).scheduler(noise).timesteps.tolist()
        divisor = {level: 1.01 + 0.002 * (nfe - 1 - place) for place, level in enumerate(levels)}

        def weaker(noisy: Tensor, timesteps: Tensor) -> Tensor:
            predicted, v = BayesOptimal(noise)(noisy, timesteps).chunk(2, dim=1)
            return torch.cat([predicted / divisor[int(timesteps[0])], v], dim=1)

        plain, _ = sample(weaker, noise, Sampler.named(label, nfe=nfe), shape=SHAPE, indices=range(16), seed=0)
        assert torch.allclose(sampled(f"{label}_es1.01_0.002", nfe, noise), plain, atol=1e-6)

    def test_one_and_no_slope_change_nothing(self) -> None:
        noise = NoiseSchedule()
        scaling = EpsilonScaling(constant=1.0, slope=0.0)
        images, _ = sample(
            BayesOptimal(noise),
            noise,
            Sampler(nfe=5, epsilon_scaling=scaling),
            shape=SHAPE,
            indices=range(16),
            seed=0,
        )
        assert torch.equal(images, sampled("ddim", 5, noise))

    def test_ddim_takes_its_direction_from_the_scaled_and_clipped_image(self) -> None:
        noise, divisor = NoiseSchedule(), 1.1
        sampler = Sampler(nfe=2, epsilon_scaling=EpsilonScaling(constant=divisor))
        (level, start), (reached, state), _ = trajectory(
            lambda noisy, _: 0.3 * noisy, noise, sampler, shape=SHAPE, indices=range(4), seed=0
        )
        abar, before = noise.abar[level], noise.abar[reached]
        clean = ((start - (1 - abar).sqrt() * 0.3 * start / divisor) / abar.sqrt()).clamp(-1, 1)
        direction = (start - abar.sqrt() * clean) / (1 - abar).sqrt()
        assert (clean.abs() == 1).any()
        assert torch.allclose(state, (before.sqrt() * clean + (1 - before).sqrt() * direction).float(), atol=1e-5)


class TestClasses:
    def test_labels_are_a_function_of_seed_and_index_and_every_class_comes_up(self) -> None:
        together = class_labels(range(200), 10, seed=1)
        assert torch.equal(together[[4, 9, 2]], class_labels([4, 9, 2], 10, seed=1))
        assert not torch.equal(together, class_labels(range(200), 10, seed=2))
        assert together.dtype == torch.int64
        assert set(together.tolist()) == set(range(10))

    def test_each_image_is_drawn_for_its_own_class_whatever_the_batch(self) -> None:
        noise = NoiseSchedule()

        def network(noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
            """Knows that all images of class c have the value c / 10 everywhere."""
            abar = noise.abar[timesteps].view(-1, 1, 1, 1)
            clean = (labels / 10).view(-1, 1, 1, 1)
            return ((noisy - abar.sqrt() * clean) / (1 - abar).sqrt()).float()

        batches = sample_batches(
            network, noise, Sampler(nfe=3), shape=SHAPE, count=20, seed=3, num_classes=10, batch_size=7
        )
        classes = class_labels(range(20), 10, seed=3)
        assert torch.allclose(torch.cat(list(batches)).mean(dim=(1, 2, 3)), classes / 10, atol=1e-4)

    def test_indices_and_classes_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"indices of samples must be whole numbers >= 0, .* got \[-1\]"):
            latents(SHAPE, [-1], seed=0)
        with pytest.raises(ValueError, match=r"at least one, got \[\]"):
            latents(SHAPE, [], seed=0)
        with pytest.raises(ValueError, match=r"num_classes must be at least 1 .* got 0"):
            class_labels([0], 0, seed=0)
        with pytest.raises(ValueError, match="count and batch_size must be at least 1, got 4 and 0"):
            list(
                sample_batches(
                    lambda noisy, _: noisy, NoiseSchedule(), Sampler(), shape=SHAPE, count=4, seed=0, batch_size=0
                )
            )
