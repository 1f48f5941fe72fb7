"""One contract for all schemes, then what each of them promises by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atdiff_core.balls import BALLS, L2Ball, ball_of
from atdiff_core.controls import ddpm_ip, random_control, replay_control
from atdiff_core.minibatch import Loss, Minibatch, Slice
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.perturbations import (
    PGD,
    FreeAT,
    GaussianPerturbation,
    Perturbation,
    RandomPerturbation,
    Replay,
    Unperturbed,
)
from atdiff_core.randomness import Randomness

BATCH = 4
RADIUS = 0.05
STEP = 0.02
RANDOMNESS = Randomness(3, range(BATCH), "train")


def perturbed(radius: float = RADIUS, step: float = STEP) -> dict[str, Perturbation]:
    """Every scheme that perturbs, in every ball."""
    schemes: dict[str, Perturbation] = {}
    for norm in BALLS:
        settings: dict[str, Any] = {"ball": ball_of(norm, radius), "step_size": step}
        schemes[f"FreeAT {norm}"] = FreeAT(num_replays=4, **settings)
        schemes[f"FreeAT {norm} random start"] = FreeAT(num_replays=4, start="random", **settings)
        schemes[f"PGD {norm}"] = PGD(num_steps=3, **settings)
        schemes[f"PGD {norm} random start"] = PGD(num_steps=3, start="random", **settings)
        schemes[f"random {norm}"] = RandomPerturbation(num_replays=4, **settings)
    return schemes


def over(schemes: dict[str, Perturbation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scheme", list(schemes.values()), ids=list(schemes))


OTHERS = {"plain": Unperturbed(), "replays": Unperturbed(num_replays=3), "gaussian": GaussianPerturbation(std=RADIUS)}
EVERY_SCHEME = over(OTHERS | perturbed())


def from_zero(schemes: dict[str, Perturbation]) -> dict[str, Perturbation]:
    return {name: scheme for name, scheme in schemes.items() if getattr(scheme, "start", "zero") == "zero"}


class Tiny(nn.Module):
    """A nonlinear noise predictor of a few parameters, the same every time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        predicted: Tensor = self.last(torch.tanh(self.first(noisy) + timesteps.view(-1, 1, 1, 1) / 1000))
        return predicted


def problem(network: nn.Module, samples: range = range(BATCH)) -> tuple[Loss, Tensor, Randomness]:
    """The denoising loss of some images, the noised input, and their streams."""
    randomness = Randomness(3, samples, "train")
    images = randomness.for_("images").normal((1, 6, 6))
    objective = Denoising()
    draw = objective.draw(images, randomness)
    return lambda delta: objective.loss(network, draw, delta), draw.noisy, randomness


def trained(scheme: Perturbation, minibatches: int = 3) -> list[Tensor]:
    """Weights after some minibatches."""
    network = Tiny()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for number in range(minibatches):
        loss, like, randomness = problem(network, range(number * BATCH, (number + 1) * BATCH))
        for _ in scheme.replays(Minibatch.whole(loss, BATCH), like, randomness):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return [parameter.detach().clone() for parameter in network.parameters()]


def replays(scheme: Perturbation, network: nn.Module | None = None, samples: range = range(BATCH)) -> list[Replay]:
    loss, like, randomness = problem(network or Tiny(), samples)
    return list(scheme.replays(Minibatch.whole(loss, len(samples)), like, randomness))


def in_slices(network: nn.Module) -> Minibatch:
    """The same minibatch in slices of one, two and one samples."""
    slices = []
    for rows in (range(1), range(1, 3), range(3, BATCH)):
        loss, _, _ = problem(network, rows)
        slices.append(Slice(loss, loss, torch.ones(len(rows))))
    return Minibatch(slices)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


class TestContract:
    @EVERY_SCHEME
    def test_a_minibatch_yields_once_per_optimizer_step(self, scheme: Perturbation) -> None:
        assert len(replays(scheme)) == scheme.steps_per_minibatch

    @EVERY_SCHEME
    def test_each_yield_has_the_gradient_of_the_loss_at_its_perturbation_and_nothing_else(
        self, scheme: Perturbation
    ) -> None:
        network = Tiny()
        loss, like, randomness = problem(network)
        for replay in scheme.replays(Minibatch.whole(loss, BATCH), like, randomness):
            losses = loss(replay.delta)
            expected = torch.autograd.grad(losses.mean(), list(network.parameters()))
            assert torch.equal(replay.losses, losses)
            assert same([parameter.grad for parameter in network.parameters()], list(expected))
            network.zero_grad()

    @EVERY_SCHEME
    def test_what_is_yielded_holds_on_to_no_graph(self, scheme: Perturbation) -> None:
        for replay in replays(scheme):
            tensors = (replay.losses, replay.clean_losses, replay.delta)
            assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)

    @over({"plain": Unperturbed(), **from_zero(perturbed())})
    def test_the_clean_losses_are_those_without_perturbation(self, scheme: Perturbation) -> None:
        network = Tiny()
        loss, like, _ = problem(network)
        for replay in replays(scheme, network):
            assert torch.equal(replay.clean_losses, loss(torch.zeros_like(like)))

    @over(perturbed(radius=0.03))
    def test_the_perturbation_stays_in_its_ball_and_says_when_it_is_stopped(self, scheme: Perturbation) -> None:
        sizes = [scheme.ball.size(replay.delta) for replay in replays(scheme)]
        assert max(size.max() for size in sizes) <= 0.03 * (1 + 1e-5)
        assert torch.equal(scheme.on_boundary(replays(scheme)[-1].delta), sizes[-1] >= 0.03 * (1 - 1e-4))
        assert not scheme.on_boundary(torch.zeros(BATCH, 1, 6, 6)).any()

    @over(from_zero(perturbed(radius=10)))
    def test_the_perturbation_is_no_longer_than_the_steps_it_took(self, scheme: Perturbation) -> None:
        for taken, replay in enumerate(replays(scheme)):
            steps = scheme.num_steps if isinstance(scheme, PGD) else taken
            assert (scheme.ball.size(replay.delta) <= steps * STEP * (1 + 1e-5)).all()

    @over(perturbed(radius=0) | from_zero(perturbed(step=0)))
    def test_no_room_or_no_step_is_plain_training_bit_for_bit(self, scheme: Perturbation) -> None:
        assert same(trained(scheme), trained(replay_control(scheme.steps_per_minibatch)))

    @over(perturbed())
    def test_no_strength_is_plain_training_and_full_strength_the_scheme_itself(self, scheme: Perturbation) -> None:
        plain = trained(replay_control(scheme.steps_per_minibatch))
        assert same(trained(scheme.at_strength(0.0)), plain)
        assert scheme.at_strength(1.0) == scheme
        half = scheme.at_strength(0.5)
        assert (half.ball.radius, half.step_size) == (RADIUS / 2, STEP / 2)

    @EVERY_SCHEME
    def test_the_same_run_twice_is_the_same(self, scheme: Perturbation) -> None:
        torch.manual_seed(0)
        once = trained(scheme)
        torch.manual_seed(1)
        assert same(trained(scheme), once)

    @over(perturbed())
    def test_a_perturbation_changes_the_weights(self, scheme: Perturbation) -> None:
        assert not same(trained(scheme), trained(replay_control(scheme.steps_per_minibatch)))

    @EVERY_SCHEME
    def test_a_sample_is_perturbed_alike_in_any_company(self, scheme: Perturbation) -> None:
        together = replays(scheme, samples=range(BATCH))
        alone = [replays(scheme, samples=range(number, number + 1)) for number in range(BATCH)]
        for replay, singles in zip(together, zip(*alone, strict=True), strict=True):
            assert torch.allclose(replay.delta, torch.cat([single.delta for single in singles]), atol=1e-5)

    @EVERY_SCHEME
    def test_a_minibatch_in_slices_is_the_whole_minibatch(self, scheme: Perturbation) -> None:
        network, sliced = Tiny(), Tiny()
        loss, like, randomness = problem(network)
        whole = scheme.replays(Minibatch.whole(loss, BATCH), like, randomness)
        parts = scheme.replays(in_slices(sliced), like, randomness)
        for one, other in zip(whole, parts, strict=True):
            assert torch.allclose(one.losses, other.losses, rtol=1e-5)
            assert torch.allclose(one.delta, other.delta, atol=1e-6)
            for left, right in zip(network.parameters(), sliced.parameters(), strict=True):
                assert torch.allclose(left.grad, right.grad, rtol=1e-4, atol=1e-6)
            network.zero_grad()
            sliced.zero_grad()

    @EVERY_SCHEME
    def test_a_gradient_scale_reaches_the_parameters_and_never_the_perturbation(self, scheme: Perturbation) -> None:
        network, scaled = Tiny(), Tiny()
        loss, like, randomness = problem(network)
        other_loss, _, _ = problem(scaled)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        minibatch = Minibatch([Slice(other_loss, other_loss, torch.ones(BATCH))], scaler=scaler)
        plain = scheme.replays(Minibatch.whole(loss, BATCH), like, randomness)
        for one, other in zip(plain, scheme.replays(minibatch, like, randomness), strict=True):
            assert torch.allclose(one.delta, other.delta, atol=1e-7)
            for left, right in zip(network.parameters(), scaled.parameters(), strict=True):
                assert torch.allclose(left.grad * 2**10, right.grad, rtol=1e-4, atol=1e-5)
            network.zero_grad()
            scaled.zero_grad()


@pytest.mark.parametrize(
    "scheme",
    [
        FreeAT(ball=L2Ball(radius=RADIUS), step_size=STEP, num_replays=1),
        RandomPerturbation(ball=L2Ball(radius=RADIUS), step_size=STEP, num_replays=1),
        PGD(ball=L2Ball(radius=RADIUS), step_size=STEP, num_steps=0),
        Unperturbed(num_replays=1),
    ],
    ids=["FreeAT K=1", "random K=1", "PGD K=0", "replays K=1"],
)
def test_no_ascent_is_plain_training_bit_for_bit(scheme: Perturbation) -> None:
    assert same(trained(scheme), trained(Unperturbed()))
    assert scheme.steps_per_minibatch + scheme.climbs_per_step == 1


def linear(slope: float) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Loss mean((slope (noisy + delta) - clean)²) of a linear denoiser, with noisy and clean."""
    generator = torch.Generator().manual_seed(0)
    noisy, clean = torch.randn(2, BATCH, 1, 6, 6, generator=generator, dtype=torch.float64)
    weight = torch.tensor(slope, dtype=torch.float64, requires_grad=True)
    return lambda delta: (weight * (noisy + delta) - clean).square().flatten(1).mean(dim=1), noisy, clean


class TestClimbing:
    @pytest.mark.parametrize("slope", [0.2, -0.7, 3.0])
    def test_one_full_step_reaches_the_closed_form_worst_case(self, slope: float) -> None:
        loss, noisy, clean = linear(slope)
        worst = ((slope * noisy - clean).square().flatten(1).mean(dim=1).sqrt() + abs(slope) * RADIUS) ** 2
        one_step = PGD(ball=L2Ball(radius=RADIUS), step_size=RADIUS, num_steps=1)
        free = FreeAT(ball=L2Ball(radius=RADIUS), step_size=RADIUS, num_replays=2)
        for scheme in (one_step, free):
            *_, last = scheme.replays(Minibatch.whole(loss, BATCH), noisy, RANDOMNESS)
            assert torch.allclose(last.losses, worst, rtol=1e-12)

    @pytest.mark.parametrize("norm", list(BALLS))
    def test_every_norm_climbs(self, norm: str) -> None:
        (replay,) = replays(PGD(ball=ball_of(norm, RADIUS), step_size=STEP, num_steps=3))
        assert (replay.losses > replay.clean_losses).all()

    @pytest.mark.parametrize(
        "scheme",
        [
            FreeAT(ball=L2Ball(radius=1), step_size=STEP, num_replays=3),
            PGD(ball=L2Ball(radius=1), step_size=STEP, num_steps=2),
        ],
        ids=["FreeAT", "PGD"],
    )
    @pytest.mark.parametrize("damage", [float("nan"), float("inf")])
    def test_a_gradient_that_is_not_finite_leaves_its_sample_where_it_is(
        self, scheme: Perturbation, damage: float
    ) -> None:
        slopes = torch.ones(3, BATCH, 1, 1, 1)
        slopes[1, 2] = damage
        weight = torch.ones((), requires_grad=True)
        calls = iter(slopes)
        minibatch = Minibatch.whole(lambda delta: (weight * next(calls) * delta).flatten(1).sum(dim=1), BATCH)
        *_, last = scheme.replays(minibatch, torch.zeros(BATCH, 1, 6, 6), RANDOMNESS)
        sizes = scheme.ball.size(last.delta)
        assert torch.allclose(sizes, torch.tensor([2, 2, 1, 2]) * STEP)

    def test_an_ascent_takes_no_gradient_of_the_parameters_and_climbs_what_it_is_told(self) -> None:
        network, other = Tiny(), Tiny()
        (loss, like, randomness), (attack, _, _) = problem(network), problem(other)
        calls = []
        scheme = PGD(ball=L2Ball(radius=RADIUS), step_size=STEP, num_steps=3)
        descended = lambda delta: calls.append(delta) or loss(delta)  # noqa: E731
        (replay,) = scheme.replays(Minibatch.whole(descended, BATCH, attack=attack), like, randomness)
        assert len(calls) == 1
        assert torch.equal(replay.delta, replays(scheme)[0].delta)
        assert all(parameter.grad is None for parameter in other.parameters())

    def test_free_at_refuses_to_climb_another_function_than_it_descends(self) -> None:
        loss, like, randomness = problem(Tiny())
        scheme = FreeAT(ball=L2Ball(radius=RADIUS), step_size=STEP, num_replays=2)
        with pytest.raises(ValueError, match="climbs what it descends; choose PGD"):
            next(scheme.replays(Minibatch.whole(loss, BATCH, attack=loss), like, randomness))

    def test_the_reach_is_the_size_of_all_steps_in_radii(self) -> None:
        assert FreeAT(ball=L2Ball(radius=0.1), step_size=0.02, num_replays=4).reach == pytest.approx(0.6)
        assert FreeAT(ball=L2Ball(radius=0), step_size=0.02, num_replays=4).reach == 0


class TestRandomControl:
    @pytest.mark.parametrize("norm", list(BALLS))
    def test_its_sizes_are_the_steps_it_would_have_taken_up_to_the_radius(self, norm: str) -> None:
        scheme = RandomPerturbation(ball=ball_of(norm, RADIUS), step_size=STEP, num_replays=5)
        sizes = torch.stack([scheme.ball.size(replay.delta) for replay in replays(scheme)])
        expected = torch.tensor([0, STEP, 2 * STEP, RADIUS, RADIUS])
        assert torch.allclose(sizes, expected.view(-1, 1).expand(-1, BATCH))

    def test_its_direction_is_fixed_within_a_minibatch_and_differs_between_samples(self) -> None:
        scheme = RandomPerturbation(ball=L2Ball(radius=RADIUS), step_size=STEP, num_replays=3)
        _, once, twice = (replay.delta for replay in replays(scheme))
        assert torch.allclose(twice, 2 * once)
        assert len({tuple(direction) for direction in once.flatten(1).tolist()}) == BATCH

    @over({name: each for name, each in from_zero(perturbed()).items() if "random" not in name})
    def test_controls_keep_what_they_control(self, scheme: Perturbation) -> None:
        control = random_control(scheme)
        largest = min(3 * STEP, RADIUS)
        assert scheme.ball.size(replays(control)[-1].delta).tolist() == pytest.approx([largest] * BATCH)
        assert control.steps_per_minibatch == scheme.steps_per_minibatch
        assert replay_control(scheme.steps_per_minibatch).steps_per_minibatch == scheme.steps_per_minibatch

    def test_an_unperturbed_run_has_no_random_control(self) -> None:
        with pytest.raises(ValueError, match="only Free-AT and PGD have a random control, got Unperturbed"):
            random_control(Unperturbed())


class TestInputPerturbation:
    def test_its_noise_has_the_amplitude_asked_for(self) -> None:
        (replay,) = replays(GaussianPerturbation(std=0.1), samples=range(400))
        assert replay.delta.std().item() == pytest.approx(0.1, rel=0.02)

    def test_ddpm_ip_asks_for_the_noise_that_was_drawn_at_an_input_with_more_of_it(self) -> None:
        objective, scheme = ddpm_ip(Denoising(), gamma=0.15)
        randomness = Randomness(3, range(BATCH), "train")
        draw = objective.draw(randomness.for_("images").normal((1, 6, 6)), randomness)
        network = Tiny()
        minibatch = Minibatch.whole(lambda delta: objective.loss(network, draw, delta), BATCH)
        (replay,) = scheme.replays(minibatch, draw.noisy, randomness)
        more = draw.noise + replay.delta
        noisy = objective.noise.noised(draw.clean, more, draw.timesteps)
        expected = (network(noisy, draw.timesteps) - draw.noise).square().flatten(1).mean(dim=1)
        assert torch.allclose(replay.losses, expected, rtol=1e-4)


def test_a_negative_step_is_refused_with_its_value() -> None:
    with pytest.raises(ValueError, match=r"step_size must be >= 0 \(an amplitude per element\), got -1"):
        PGD(ball=L2Ball(radius=RADIUS), step_size=-1, num_steps=1)
