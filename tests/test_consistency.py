"""Consistency objectives: formulas written out again, identities, and Gaussian data known in closed form."""

import math
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor, nn

from atdiff_core.balls import L2Ball
from atdiff_core.karras import KarrasNoise
from atdiff_core.minibatch import Minibatch
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.consistency import ConsistencyDistillation, ConsistencyTraining, PairDraw, Pairing
from atdiff_core.objectives.discretisation import DoublingLevels, FixedLevels, LognormalPairs, ProgressiveLevels
from atdiff_core.objectives.edm import EDM
from atdiff_core.objectives.image_distances import L1, PseudoHuber
from atdiff_core.objectives.objective import Companions, Teacher
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, Unperturbed
from atdiff_core.randomness import Randomness

SPREAD = 0.5
BATCH = 6
RANDOMNESS = Randomness(1, range(BATCH))
LINEAR = NoiseSchedule(kind="linear")
OBJECTIVES = {
    "distillation, student": ConsistencyDistillation(),
    "distillation, solver": ConsistencyDistillation(perturbed="solver", solver="euler"),
    "training, student": ConsistencyTraining(distance=L1()),
    "training, solver": ConsistencyTraining(perturbed="solver", unit="noise", distance=PseudoHuber()),
}
FREE_AT = FreeAT(ball=L2Ball(radius=0.02), num_replays=3, step_size=0.01)
TWO_STEPS = PGD(ball=L2Ball(radius=0.02), num_steps=2, step_size=0.01)
EVERY_OBJECTIVE = pytest.mark.parametrize("objective", list(OBJECTIVES.values()), ids=list(OBJECTIVES))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return SPREAD * torch.randn(BATCH, 1, 8, 8, generator=generator, dtype=torch.float64)


def network(seed: int, **changes: Any) -> nn.Module:
    return UNet(resolution=8, channels=(8, 16), **changes).build(seed).double()


def at_work(objective: ConsistencyDistillation | ConsistencyTraining, **changes: Any) -> Pairing:
    """The objective beside a random teacher and a random target."""
    target = network(2, **changes).requires_grad_(False)
    return objective.beside(Companions(Teacher(network(3), LINEAR), target), progress=0.5)


def perturbation(seed: int = 4) -> Tensor:
    return 0.1 * torch.randn(BATCH, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestDistillation:
    def test_the_loss_is_the_papers_written_out_with_the_stock_scheduler(self) -> None:
        objective = ConsistencyDistillation()
        pairing = at_work(objective)
        draw, student, delta = pairing.draw(images(), RANDOMNESS), network(5), perturbation()
        losses = pairing.loss(student, draw, delta)
        theirs = CMStochasticIterativeScheduler()
        levels = theirs.sigmas.flip(0).double()
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
        for row in range(BATCH):
            here = int((levels - draw.sigma[row].item()).abs().argmin())
            sigma, below = levels[here], levels[here - 1]
            noisy = draw.clean[row : row + 1] + sigma * draw.noise[row : row + 1]

            def denoised(x: Tensor, level: Tensor) -> Tensor:
                ratios = ((1 - alphas) / alphas).sqrt().log()
                upper = int((ratios < level.log()).sum().clamp(1, 999))
                share = (level.log() - ratios[upper - 1]) / (ratios[upper] - ratios[upper - 1])
                time = (upper - 1 + share.clamp(0, 1)).view(1)
                return x - level * pairing.companions.teacher.network(x / (1 + level**2).sqrt(), time)

            slope = (noisy - denoised(noisy, sigma)) / sigma
            guess = noisy + (below - sigma) * slope
            slope_there = (guess - denoised(guess, below)) / below
            solved = noisy + (below - sigma) * (slope + slope_there) / 2

            def end(function: nn.Module, x: Tensor, level: Tensor) -> Tensor:
                c_skip, c_out = theirs.get_scalings_for_boundary_condition(level)
                shown = x / (level**2 + theirs.config.sigma_data**2).sqrt()
                time = torch.as_tensor(theirs.sigma_to_t(level.numpy())).view(1)
                return c_skip * x + c_out * function(shown, time)

            moved = noisy + delta[row : row + 1]
            difference = end(student, moved, sigma) - end(pairing.companions.target, solved, below)
            assert losses[row].item() == pytest.approx(difference.square().mean().item(), rel=1e-6)

    def test_the_pairs_are_neighbours_and_every_one_comes_up(self) -> None:
        objective = ConsistencyDistillation(noise=KarrasNoise(num_levels=5))
        pairing = Pairing(ConsistencyTraining(noise=objective.noise, discretisation=FixedLevels()), Companions(), 0)
        draw = pairing.draw(torch.zeros(200, 1, 1, 1, dtype=torch.float64), Randomness(0, range(200)))
        levels = objective.noise.levels()
        pairs = set(zip(draw.solved_sigma.flatten().tolist(), draw.sigma.flatten().tolist(), strict=True))
        assert pairs == set(zip(levels.tolist(), levels[1:].tolist(), strict=False))

    def test_a_minibatch_cut_in_two_draws_the_same(self) -> None:
        pairing = at_work(ConsistencyDistillation())
        whole, half = pairing.draw(images(), RANDOMNESS), pairing.draw(images()[3:], Randomness(1, range(3, BATCH)))
        assert torch.equal(whole.sigma[3:], half.sigma)
        assert torch.allclose(whole.solved[3:], half.solved, rtol=1e-12)


class TestTraining:
    def test_the_solved_neighbour_shares_image_and_noise(self) -> None:
        draw = at_work(ConsistencyTraining()).draw(images(), RANDOMNESS)
        assert torch.allclose(draw.noisy, draw.clean + draw.sigma * draw.noise)
        assert torch.allclose(draw.solved, draw.clean + draw.solved_sigma * draw.noise)

    def test_improved_training_weighs_by_the_gap(self) -> None:
        objective = ConsistencyTraining(
            weighting="inverse_gap", pairs=LognormalPairs(), discretisation=DoublingLevels()
        )
        draw = at_work(objective).draw(images(), RANDOMNESS)
        assert torch.allclose(draw.weights, 1 / (draw.sigma - draw.solved_sigma).flatten())


class TestPerturbed:
    @EVERY_OBJECTIVE
    def test_without_a_perturbation_the_loss_compares_the_two_ends_bit_for_bit(
        self, objective: ConsistencyDistillation | ConsistencyTraining
    ) -> None:
        pairing, student = at_work(objective), network(5)
        draw = pairing.draw(images(), RANDOMNESS)
        ends = [
            pairing._end(each, draw, x, sigma)
            for each, x, sigma in (
                (student, draw.noisy, draw.sigma),
                (pairing.companions.target, draw.solved, draw.solved_sigma),
            )
        ]
        losses = pairing.loss(student, draw, torch.zeros_like(draw.noisy))
        assert torch.equal(losses, objective.distance.between(*ends))

    @EVERY_OBJECTIVE
    def test_one_backward_gives_both_gradients_and_none_to_target_or_teacher(
        self, objective: ConsistencyDistillation | ConsistencyTraining
    ) -> None:
        pairing, student = at_work(objective), network(5)
        draw = pairing.draw(images(), RANDOMNESS)
        moving = perturbation().requires_grad_()
        pairing.loss(student, draw, moving).sum().backward()
        together = [parameter.grad.clone() for parameter in student.parameters()]
        student.zero_grad()
        pairing.loss(student, draw, moving.detach()).sum().backward()
        assert all(torch.equal(one, p.grad) for one, p in zip(together, student.parameters(), strict=True))
        others = (pairing.companions.target, pairing.companions.teacher.network)
        assert all(parameter.grad is None for other in others for parameter in other.parameters())
        still, step = moving.detach(), 1e-5 * perturbation(seed=9)
        there = pairing.loss(student, draw, still + step) - pairing.loss(student, draw, still - step)
        assert torch.allclose((moving.grad * 2 * step).flatten(1).sum(dim=1), there, rtol=1e-4, atol=1e-12)

    def test_in_units_of_the_noise_delta_grows_with_the_level_where_it_is_added(self) -> None:
        student = network(5)
        for perturbed in ("student", "solver"):
            image, noise = (at_work(ConsistencyTraining(perturbed=perturbed, unit=unit)) for unit in ("image", "noise"))
            draw = image.draw(images(), RANDOMNESS)
            sigma = draw.sigma if perturbed == "student" else draw.solved_sigma
            one, other = image.loss(student, draw, sigma * perturbation()), noise.loss(student, draw, perturbation())
            assert torch.equal(one, other)

    @EVERY_OBJECTIVE
    @pytest.mark.parametrize("scheme", [FREE_AT, TWO_STEPS], ids=["Free-AT", "PGD"])
    def test_every_scheme_climbs(
        self, objective: ConsistencyDistillation | ConsistencyTraining, scheme: Perturbation
    ) -> None:
        pairing, student = at_work(objective), network(5)
        draw = pairing.draw(images(), RANDOMNESS)
        minibatch = Minibatch.whole(lambda delta: pairing.loss(student, draw, delta), BATCH)
        (*_, last) = scheme.replays(minibatch, draw.noisy, RANDOMNESS)  # No optimizer step: the network stands still.
        assert last.clean_losses is not None
        assert (last.losses > last.clean_losses).all()

    def test_student_and_target_drop_the_same_units(self) -> None:
        pairing = at_work(ConsistencyTraining(), dropout=0.5)
        target = pairing.companions.target
        pairing.companions.target.train()
        draw = pairing.draw(images(), RANDOMNESS)
        level = torch.ones_like(draw.sigma)
        same = PairDraw(**{**vars(draw), "sigma": level, "solved": draw.noisy, "solved_sigma": level})
        assert not pairing.loss(target, same, torch.zeros_like(draw.noisy)).any()


class TestCost:
    def test_a_distillation_step_pays_for_teacher_target_and_student(self) -> None:
        student, solver = ConsistencyDistillation(), ConsistencyDistillation(perturbed="solver", solver="euler")
        assert passes(student, Unperturbed()) == pytest.approx(2 / 3 + 4 / 3)
        assert passes(student, FREE_AT) == pytest.approx(2 / 3 + 3 * 4 / 3)
        assert passes(student, TWO_STEPS) == pytest.approx(2 / 3 + 4 / 3 + 2)
        assert passes(solver, FREE_AT) == pytest.approx(1 / 3 + 3 * 4 / 3 + 2 / 3)  # Two ascents through the target.
        assert passes(ConsistencyTraining(), Unperturbed(num_replays=2)) == pytest.approx(8 / 3)


def passes(objective: ConsistencyDistillation | ConsistencyTraining, scheme: Perturbation) -> float:
    from atdiff_core.train_config import TrainConfig

    teacher = "a" if objective.needs_teacher else "none"
    config = TrainConfig(
        network=UNet(resolution=8), objective=objective, perturbation=scheme, dataset="", teacher=teacher,
        batch_size=1000, budget_kpass=9,
    )  # fmt: skip
    return config.kpass_per_minibatch


class Table(nn.Module):
    """A linear network with one factor for each level: F = factor * shown."""

    def __init__(self, noise: KarrasNoise, levels: Tensor) -> None:
        super().__init__()
        self.times = noise.time(levels)
        self.factors = nn.Parameter(torch.zeros(len(levels), dtype=torch.float64))

    def forward(self, shown: Tensor, times: Tensor) -> Tensor:
        places = (times[:, None] - self.times).abs().argmin(dim=1)
        return self.factors[places].view(-1, 1, 1, 1) * shown

    def function(self, noise: KarrasNoise, levels: Tensor) -> Tensor:
        """f(x, t) / x at every level."""
        with torch.no_grad():
            return noise.c_skip(levels) + noise.c_out(levels) * noise.c_in(levels) * self.factors


class Exact(nn.Module):
    """F of the exact EDM denoiser of Gaussian data."""

    noise = KarrasNoise(kind="edm")

    def forward(self, shown: Tensor, times: Tensor) -> Tensor:
        sigma = (times / 250).exp().view(-1, 1, 1, 1)
        wanted = SPREAD**2 / (SPREAD**2 + sigma.square())
        return (wanted - self.noise.c_skip(sigma)) / (self.noise.c_out(sigma) * self.noise.c_in(sigma)) * shown


class TestGaussianData:
    """x_0 ~ N(0, s²): the exact function is f(x, t) = x sqrt((s² + t_1²) / (s² + t²))."""

    NOISE = KarrasNoise(num_levels=12, sigma_max=8.0)

    def exact(self, levels: Tensor) -> Tensor:
        return ((SPREAD**2 + levels[0] ** 2) / (SPREAD**2 + levels.square())).sqrt()

    def distilled(self, levels: Tensor) -> Tensor:
        """The fixed point of distillation: the product of the teacher's Heun steps."""
        factors = [1.0]
        for below, sigma in zip(levels.tolist(), levels[1:].tolist(), strict=False):
            slope = sigma / (SPREAD**2 + sigma**2)
            guess = 1 + (below - sigma) * slope
            slope_there = guess * below / (SPREAD**2 + below**2)
            factors.append(factors[-1] * (1 + (below - sigma) * (slope + slope_there) / 2))
        return torch.tensor(factors, dtype=torch.float64)

    def trained(self, levels: Tensor) -> Tensor:
        """The fixed point of training: each neighbour's best linear guess of the one below, from the same noise."""
        factors = [1.0]
        for below, sigma in zip(levels.tolist(), levels[1:].tolist(), strict=False):
            factors.append(factors[-1] * (SPREAD**2 + below * sigma) / (SPREAD**2 + sigma**2))
        return torch.tensor(factors, dtype=torch.float64)

    def test_both_fixed_points_tend_to_the_exact_function_with_more_levels(self) -> None:
        errors = {"distilled": [], "trained": []}
        for count in (20, 40, 80):
            levels = self.NOISE.levels(count)
            for name, found in errors.items():
                found.append((getattr(self, name)(levels) / self.exact(levels)).log().abs().max().item())
        for found, order in ((errors["distilled"], 2), (errors["trained"], 1)):
            assert math.log2(found[0] / found[2]) / 2 == pytest.approx(order, abs=0.3)

    @pytest.mark.parametrize("kind", ["distilled", "trained"])
    def test_learning_converges_to_its_fixed_point(self, kind: str) -> None:
        levels, noise = self.NOISE.levels(), self.NOISE
        student, target = Table(noise, levels), Table(noise, levels).requires_grad_(False)
        teacher = Teacher(Exact(), Exact.noise)
        objective: ConsistencyDistillation | ConsistencyTraining = (
            ConsistencyDistillation(noise=noise)
            if kind == "distilled"
            else ConsistencyTraining(noise=noise, discretisation=FixedLevels())
        )
        pairing = objective.beside(Companions(teacher, target), progress=0)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        generator = torch.Generator().manual_seed(0)
        for step in range(400):
            data = SPREAD * torch.randn(48, 1, 4, 4, generator=generator, dtype=torch.float64)
            draw = pairing.draw(data, Randomness(0, range(48 * step, 48 * step + 48)))
            pairing.loss(student, draw, torch.zeros_like(data)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            target.factors.lerp_(student.factors.detach(), 0.2)
        found, expected = student.function(noise, levels), getattr(self, kind)(levels)
        assert found[0] == 1
        assert torch.allclose(found, expected, rtol=0.08)
        assert (found.log() - self.exact(levels).log()).abs().max() < (0.15 if kind == "distilled" else 0.6)


class TestEDM:
    def test_the_loss_is_the_papers_whatever_the_perturbation(self) -> None:
        objective, student, delta = EDM(), network(5), perturbation()
        draw = objective.draw(images(), RANDOMNESS)
        sigma = draw.sigma
        moved = draw.clean + sigma * draw.noise + delta
        output = student(moved / (sigma**2 + 0.25).sqrt(), 250 * sigma.log().flatten())
        denoised = 0.25 / (sigma**2 + 0.25) * moved + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * output
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        expected = (weight * (denoised - draw.clean) ** 2).flatten(1).mean(dim=1)
        assert torch.allclose(objective.loss(student, draw, delta), expected)

    def test_noise_levels_are_lognormal(self) -> None:
        draw = EDM().draw(torch.zeros(4000, 1, 1, 1, dtype=torch.float64), Randomness(0, range(4000)))
        logs = draw.sigma.log()
        assert logs.mean().item() == pytest.approx(-1.2, abs=0.06)
        assert logs.std().item() == pytest.approx(1.2, abs=0.05)

    def test_the_exact_denoiser_is_left_with_the_posterior_variance(self) -> None:
        data = SPREAD * torch.randn(300, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        objective = EDM()
        draw = objective.draw(data, Randomness(0, range(300)))
        losses = objective.loss(exact_denoiser, draw, torch.zeros_like(data))
        assert losses.mean().item() == pytest.approx(1.0, abs=0.02)  # sigma_data is the data's own.


def exact_denoiser(shown: Tensor, times: Tensor) -> Tensor:
    answer: Tensor = Exact()(shown, times)
    return answer


class TestRefusals:
    def test_distillation_without_a_teacher(self) -> None:
        with pytest.raises(ValueError, match="consistency_distillation needs a teacher, got none"):
            ConsistencyDistillation().beside(Companions(), progress=0)

    def test_a_consistency_model_as_the_teacher(self) -> None:
        with pytest.raises(ValueError, match="this one is a consistency model; give the diffusion model"):
            ConsistencyDistillation().check_teacher(KarrasNoise())

    def test_a_start_that_assumes_other_data(self) -> None:
        with pytest.raises(ValueError, match=r"sigma_data=0.6, the objective 0.5"):
            ConsistencyTraining().check_start(KarrasNoise(kind="edm", sigma_data=0.6))

    def test_noise_of_another_kind(self) -> None:
        with pytest.raises(ValueError, match=r"noise.kind must be consistency for a consistency model, got 'edm'"):
            ConsistencyTraining(noise=KarrasNoise(kind="edm"))
        with pytest.raises(ValueError, match=r"noise.kind must be edm for an EDM denoiser, got 'consistency'"):
            EDM(noise=KarrasNoise())

    def test_no_target(self) -> None:
        pairing = ConsistencyTraining().beside(Companions(), progress=0)
        draw = pairing.draw(images(), RANDOMNESS)
        with pytest.raises(ValueError, match="compares with a target network, got none"):
            pairing.loss(network(5), draw, torch.zeros_like(draw.noisy))


def test_progressive_levels_hold_the_papers_ends() -> None:
    levels = ProgressiveLevels(first=2, last=150, first_decay=0.9)
    counts = [levels.count(KarrasNoise(), share / 50) for share in range(51)]
    assert (counts[0], counts[-1]) == (2, 151)
    assert counts == sorted(counts)
    assert levels.target_decay(KarrasNoise(), 0.0) == pytest.approx(0.9)
