"""Balls: projections, steepest directions and the papers' raw norms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.stats import kstest
from torch import Tensor

from atdiff_core.balls import BALLS, Ball, L1Ball, L2Ball, LInfBall, ball_of
from atdiff_core.randomness import Randomness

EVERY_BALL = pytest.mark.parametrize("norm", list(BALLS))
ORDERS = {"l1": 1, "l2": 2, "linf": math.inf}
SHAPE = (4, 2, 3, 3)
DIMENSION = 18

seeds = st.integers(0, 2**31)
scales = st.sampled_from([1e-6, 0.01, 1.0, 100.0])
radii = st.sampled_from([0.0, 0.003, 0.1, 2.0])


def tensor(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestEveryBall:
    @EVERY_BALL
    @given(seed=seeds, scale=scales, radius=radii)
    def test_projecting_twice_is_projecting_once(self, norm: str, seed: int, scale: float, radius: float) -> None:
        ball = ball_of(norm, radius)
        once = ball.project(tensor(seed, scale))
        assert torch.allclose(ball.project(once), once, rtol=1e-12, atol=1e-12 * radius)

    @EVERY_BALL
    @given(seed=seeds, scale=scales, radius=radii)
    def test_a_projection_lies_in_the_ball(self, norm: str, seed: int, scale: float, radius: float) -> None:
        ball = ball_of(norm, radius)
        assert (ball.size(ball.project(tensor(seed, scale))) <= radius * (1 + 1e-12)).all()

    @EVERY_BALL
    @given(seed=seeds, scale=scales)
    def test_points_inside_stay_and_points_outside_reach_the_boundary(self, norm: str, seed: int, scale: float) -> None:
        delta = tensor(seed, scale)
        outer = ball_of(norm, 1.01 * ball_of(norm, 0).size(delta).max().item())
        inner = ball_of(norm, 0.99 * ball_of(norm, 0).size(delta).min().item())
        assert torch.equal(outer.project(delta), delta)
        assert not outer.on_boundary(delta).any()
        assert inner.on_boundary(inner.project(delta)).all()

    @EVERY_BALL
    @given(seed=seeds, radius=radii)
    def test_no_other_point_of_the_ball_is_nearer_than_the_projection(
        self, norm: str, seed: int, radius: float
    ) -> None:
        ball, delta = ball_of(norm, radius), tensor(seed)
        nearest = ball.project(delta)
        others = ball.project(tensor(seed + 1))
        towards = ((others - nearest) * (delta - nearest)).flatten(1).sum(dim=1)
        assert (towards <= 1e-9).all()  # The obtuse angle that marks a projection on a convex set.

    @EVERY_BALL
    @given(seed=seeds, scale=st.sampled_from([1e-12, 1e-6, 1.0, 1e6]))
    def test_a_steepest_step_has_size_one(self, norm: str, seed: int, scale: float) -> None:
        ball = ball_of(norm, 1)
        assert torch.allclose(ball.size(ball.steepest(tensor(seed, scale))), torch.ones(4, dtype=torch.float64))

    @EVERY_BALL
    @pytest.mark.parametrize("exponent", range(-44, 10, 2))
    def test_a_steepest_step_is_never_longer_than_one_however_small_the_gradient(
        self, norm: str, exponent: int
    ) -> None:
        ball = ball_of(norm, 1)
        gradient = tensor(0).float() * 10.0**exponent
        assert (ball.size(ball.steepest(gradient)) <= 1 + 1e-4).all()

    @EVERY_BALL
    def test_a_zero_gradient_gives_no_step(self, norm: str) -> None:
        zero = torch.zeros(SHAPE)
        assert torch.equal(ball_of(norm, 1).steepest(zero), zero)

    @EVERY_BALL
    def test_samples_are_projected_and_climb_one_by_one(self, norm: str) -> None:
        ball, delta = ball_of(norm, 0.3), tensor(0)
        for operation in (ball.project, ball.steepest):
            alone = torch.cat([operation(sample[None]) for sample in delta])
            assert torch.allclose(operation(delta), alone, rtol=1e-12, atol=0)

    @EVERY_BALL
    @given(seed=seeds)
    def test_a_raw_radius_is_the_norm_that_torch_computes(self, norm: str, seed: int) -> None:
        ball, delta = ball_of(norm, 1), tensor(seed)
        raw = torch.linalg.vector_norm(delta.flatten(1), ord=ORDERS[norm], dim=1)
        assert [ball.raw(size, DIMENSION) for size in ball.size(delta).tolist()] == pytest.approx(raw.tolist())

    @EVERY_BALL
    def test_a_negative_radius_is_refused_with_its_value(self, norm: str) -> None:
        with pytest.raises(ValueError, match=r"radius must be >= 0 \(an amplitude per element\), got -0\.25"):
            ball_of(norm, -0.25)


@pytest.mark.parametrize(("ball", "dual"), [(L2Ball(radius=1), 2), (LInfBall(radius=1), 1)], ids=["l2", "linf"])
@given(seed=seeds)
def test_the_steepest_step_gains_what_the_dual_norm_allows(ball: Ball, dual: int, seed: int) -> None:
    gradient = tensor(seed)
    gain = (gradient * ball.steepest(gradient)).flatten(1).sum(dim=1)
    bound = ball.raw(1, DIMENSION) * torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1)
    assert torch.allclose(gain, bound)


@given(seed=seeds)
def test_the_l1_step_is_dense_and_along_the_gradient(seed: int) -> None:
    gradient = tensor(seed)
    step = L1Ball(radius=1).steepest(gradient)
    cosine = torch.cosine_similarity(step.flatten(1), gradient.flatten(1))
    assert torch.allclose(cosine, torch.ones_like(cosine))


@given(st.integers(0, 10_000))
def test_the_l1_step_along_one_element_gains_what_the_dual_norm_allows(seed: int) -> None:
    gradient = tensor(seed)
    step = L1Ball(radius=1, steps="top", top_fraction=1e-9).steepest(gradient)
    gain = (gradient * step).flatten(1).sum(dim=1)
    assert torch.allclose(gain, DIMENSION * gradient.flatten(1).abs().amax(dim=1))
    assert ((step != 0).flatten(1).sum(dim=1) == 1).all()


@given(st.integers(0, 10_000))
def test_the_l1_step_along_the_largest_elements_has_their_signs_and_one_size(seed: int) -> None:
    gradient = tensor(seed)
    ball = L1Ball(radius=1, steps="top", top_fraction=0.5)
    step = ball.steepest(gradient)
    assert torch.allclose(ball.size(step), torch.ones(len(step), dtype=step.dtype))
    moved = step != 0
    assert (moved.flatten(1).sum(dim=1) == DIMENSION // 2).all()
    assert (step.sign() == gradient.sign())[moved].all()
    smallest_moved = gradient.abs().where(moved, math.inf).flatten(1).amin(dim=1)
    assert (smallest_moved >= gradient.abs().where(~moved, 0).flatten(1).amax(dim=1)).all()


@EVERY_BALL
def test_uniform_points_fill_the_ball_by_its_volume(norm: str) -> None:
    ball, count = ball_of(norm, 0.3), 6000
    points = ball.uniform((1, 2, 2), Randomness(0, range(count)))
    depth = (ball.size(points) / 0.3) ** 4  # The volume of a ball grows with the radius to the power of D.
    assert kstest(depth.numpy(), "uniform").pvalue > 0.01
    assert (points.mean(dim=0).abs() < 0.02).all()
    assert torch.equal(ball.uniform((1, 2, 2), Randomness(0, [17])), points[17:18])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_uniform_points_prefer_no_direction_of_their_norm(norm: str) -> None:
    points = ball_of(norm, 1.0).uniform((1, 1, 2), Randomness(1, range(6000))).flatten(1)
    share = points.abs()[:, 0] / points.abs().sum(dim=1)
    if norm == "l2":
        share = torch.atan2(points.abs()[:, 1], points.abs()[:, 0]) / (math.pi / 2)
    assert kstest(share.numpy(), "uniform").pvalue > 0.01


class TestL1Projection:
    @given(seed=seeds, scale=scales, fraction=st.floats(0.001, 0.999))
    def test_it_is_soft_thresholding_at_the_root_of_the_excess(self, seed: int, scale: float, fraction: float) -> None:
        delta = tensor(seed, scale)[:1]
        radius = fraction * delta.abs().mean().item()
        magnitude = delta.abs().numpy()
        threshold = brentq(
            lambda level: np.maximum(magnitude - level, 0).mean() - radius, 0, magnitude.max(), xtol=1e-14 * scale
        )
        expected = np.sign(delta.numpy()) * np.maximum(magnitude - threshold, 0)
        assert np.allclose(L1Ball(radius=radius).project(delta).numpy(), expected, rtol=0, atol=1e-10 * scale)

    def test_it_is_the_nearest_point_that_a_general_optimizer_finds(self) -> None:
        delta = tensor(3)[:1, :1, :2]
        flat = delta.flatten().numpy()
        radius = 0.4 * abs(flat).mean()
        budget = radius * flat.size  # Split into positive and negative parts, the l1 ball is a simplex.
        found = minimize(
            lambda parts: ((parts[: flat.size] - parts[flat.size :] - flat) ** 2).sum(),
            np.full(2 * flat.size, budget / (4 * flat.size)),
            bounds=[(0, None)] * (2 * flat.size),
            constraints={"type": "ineq", "fun": lambda parts: budget - parts.sum()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        nearest = found.x[: flat.size] - found.x[flat.size :]
        assert np.allclose(L1Ball(radius=radius).project(delta).flatten().numpy(), nearest, atol=1e-5)

    def test_single_precision_loses_nothing_at_the_size_of_real_images(self) -> None:
        delta = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        ball = L1Ball(radius=0.05)
        assert torch.allclose(ball.project(delta), ball.project(delta.double()).float(), atol=1e-4)
        assert torch.allclose(ball.size(ball.project(delta)), torch.full((2,), 0.05), rtol=1e-3)


def test_an_unknown_norm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="norm must be one of l1, l2, linf, got 'l3'"):
        ball_of("l3", 1)
