"""Robustness where the worst case is known: a linear denoiser, and no room at all."""

import math

import pytest
import torch
from torch import Tensor

from atdiff_core.balls import BALLS, L2Ball, LInfBall, ball_of
from atdiff_core.metrics.robustness import Attack, RobustnessAt, robustness
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.randomness import Randomness

SLOPE, RADIUS, COUNT = 0.4, 0.05, 40
OBJECTIVE = Denoising(noise=NoiseSchedule())
IMAGES = 0.5 * Randomness(1, range(COUNT), "images").normal((1, 6, 6)).double()


def linear(noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Noise that goes with the denoiser D(x) = SLOPE x."""
    noise = OBJECTIVE.noise
    return noisy * (1 - SLOPE * noise.signal(timesteps)) / noise.sigma(timesteps)


def gains(attack: Attack, *, network: object = linear, **settings: object) -> list[RobustnessAt]:
    return list(robustness(network, OBJECTIVE, IMAGES, attack, **settings))  # type: ignore[arg-type]


def residuals() -> tuple[Tensor, Tensor]:
    """D(x_t) - x_0 of the images as ``robustness`` noises them, and the loss of one unit of it, squared."""
    draw = OBJECTIVE.draw(IMAGES, Randomness(0, range(COUNT), "robustness"))
    scale = OBJECTIVE.noise.signal(draw.timesteps) / draw.sigma
    return (SLOPE * draw.noisy - IMAGES).flatten(1), scale.flatten().double() ** 2


class TestLinearDenoiser:
    @pytest.mark.parametrize("num_steps", [1, 2, 5])
    def test_the_loss_under_attack_is_the_closed_form_worst_case(self, num_steps: int) -> None:
        residual, scale = residuals()
        worst = scale * (residual.square().mean(dim=1).sqrt() + SLOPE * RADIUS) ** 2
        clean = scale * residual.square().mean(dim=1)
        overall, *_ = gains(Attack(ball=L2Ball(radius=RADIUS), num_steps=num_steps))
        assert overall.attacked_loss == pytest.approx(float(worst.mean()), rel=1e-4)
        assert overall.loss == pytest.approx(float(clean.mean()), rel=1e-4)
        assert overall.gain == pytest.approx(float(worst.mean() / clean.mean()), rel=1e-4)

    def test_in_l_infinity_every_element_moves_away_from_its_target(self) -> None:
        residual, scale = residuals()
        worst = scale * (residual.abs() + SLOPE * RADIUS).square().mean(dim=1)
        overall, *_ = gains(Attack(ball=LInfBall(radius=RADIUS)))
        assert overall.attacked_loss == pytest.approx(float(worst.mean()), rel=1e-4)

    def test_the_attack_does_not_depend_on_what_training_let_it_see(self) -> None:
        detached = OBJECTIVE.but(attack_sees_target=False)
        attack = Attack(ball=L2Ball(radius=RADIUS))
        assert next(robustness(linear, detached, IMAGES, attack)) == gains(attack)[0]


class TestEveryNetwork:
    @pytest.mark.parametrize("norm", list(BALLS))
    def test_without_room_the_gain_is_one(self, norm: str) -> None:
        for found in gains(Attack(ball=ball_of(norm, 0)), num_bins=2):
            assert (found.gain, found.std_error, found.attacked_loss) == (1, 0, found.loss)

    @pytest.mark.parametrize("norm", list(BALLS))
    def test_the_gain_grows_with_the_radius_and_is_never_below_one(self, norm: str) -> None:
        network = UNet(resolution=6, channels=(8, 16)).build().double().eval()
        found = [gains(Attack(ball=ball_of(norm, radius)), network=network)[0].gain for radius in (0.01, 0.05, 0.2)]
        assert 1 < found[0] < found[1] < found[2]

    def test_the_parameters_receive_no_gradient(self) -> None:
        network = UNet(resolution=6, channels=(8, 16)).build().double().eval()
        gains(Attack(ball=L2Ball(radius=RADIUS)), network=network)
        assert all(parameter.grad is None for parameter in network.parameters())


class TestBins:
    def test_they_share_out_the_levels_and_the_images(self) -> None:
        overall, *bins = gains(Attack(ball=L2Ball(radius=RADIUS)), num_bins=3)
        assert overall.timesteps == range(1000)
        assert [each.timesteps for each in bins] == [range(333), range(333, 666), range(666, 1000)]
        assert overall.samples == COUNT == sum(each.samples for each in bins)
        total = sum(each.samples * each.attacked_loss for each in bins)
        assert overall.attacked_loss == pytest.approx(total / COUNT)

    def test_the_standard_error_is_the_scatter_over_seeds(self) -> None:
        attack = Attack(ball=L2Ball(radius=RADIUS), num_steps=1)
        objective = Denoising(noise=NoiseSchedule(num_timesteps=3))
        found = []
        for seed in range(150):
            images = 0.5 * Randomness(seed, range(COUNT), "more").normal((1, 2, 2)).double()
            network = lambda noisy, timesteps: torch.zeros_like(noisy) + noisy / 2  # noqa: E731
            found.append(next(robustness(network, objective, images, attack, seed=seed, num_bins=1)))
        scatter = float(torch.tensor([each.gain for each in found]).std())
        assert sum(each.std_error for each in found) / 150 == pytest.approx(scatter, rel=0.25)

    def test_the_result_does_not_depend_on_the_batches(self) -> None:
        attack = Attack(ball=L2Ball(radius=RADIUS))
        whole, parts = gains(attack, batch_size=COUNT), gains(attack, batch_size=7)
        assert [each.gain for each in parts] == pytest.approx([each.gain for each in whole])

    @pytest.mark.parametrize(
        ("num_bins", "line"),
        [
            (200, r"timesteps \d+ to \d+ need at least 2 images, got [01]: give more images or fewer bins"),
            (0, r"num_bins must be 1 to 1000 \(the noise levels\), got 0"),
        ],
    )
    def test_more_bins_than_images_can_fill_are_refused(self, num_bins: int, line: str) -> None:
        with pytest.raises(ValueError, match=line):
            gains(Attack(ball=L2Ball(radius=RADIUS), num_steps=1), num_bins=num_bins)


def test_the_steps_reach_across_the_ball() -> None:
    attack = Attack(ball=L2Ball(radius=0.1), num_steps=5)
    assert math.isclose(attack.step_size * attack.num_steps, 0.25)
