"""Latent consistency distillation: formulas written out again, stock schedulers, identities, every scheme."""

from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_text_networks import PLAIN, TINY
from torch import Tensor

from atdiff_core.balls import L2Ball
from atdiff_core.karras import KarrasNoise
from atdiff_core.latent_noise import LatentConsistencyNoise
from atdiff_core.minibatch import Minibatch
from atdiff_core.noise import NoiseSchedule, Predicts
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.image_distances import L2, Huber
from atdiff_core.objectives.latent_consistency import (
    LatentConsistencyDistillation,
    SkipDraw,
    Skipping,
    guided_step,
)
from atdiff_core.objectives.objective import Companions, Teacher
from atdiff_core.perturbations import PGD, FreeAT, GaussianPerturbation, Perturbation, RandomPerturbation, Unperturbed
from atdiff_core.randomness import Randomness
from atdiff_core.schedulers import PREDICTION_TYPES

BATCH = 6
RANDOMNESS = Randomness(1, range(BATCH))
PREDICTIONS = list(get_args(Predicts))
SCHEDULE, SPREAD = NoiseSchedule(kind="scaled_linear"), 0.5
BALL = L2Ball(radius=0.02)
SCHEMES: list[Perturbation] = [
    Unperturbed(), Unperturbed(num_replays=2), RandomPerturbation(ball=BALL, num_replays=2, step_size=0.01),
    GaussianPerturbation(std=0.01), PGD(ball=BALL, num_steps=2, step_size=0.01),
    FreeAT(ball=BALL, num_replays=3, step_size=0.01),
]  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PROMPT, EMPTY = normal(BATCH, 5, 6, seed=1), normal(1, 5, 6, seed=2)


def student(seed: int) -> torch.nn.Module:
    network = TINY.build(seed).double()
    torch.nn.init.normal_(network.unet.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(seed))
    return network


def noise_of(predicts: Predicts, **changes: Any) -> LatentConsistencyNoise:
    return LatentConsistencyNoise(schedule=NoiseSchedule(kind="scaled_linear", predicts=predicts), **changes)


def at_work(objective: LatentConsistencyDistillation) -> Skipping:
    teacher = Teacher(PLAIN.build(3).double(), objective.noise.schedule)
    target = student(2).requires_grad_(False)
    return objective.beside(Companions(teacher, target, {"prompt": EMPTY}), progress=0.5)


def drawn(skipping: Skipping) -> SkipDraw:
    return skipping.draw(normal(BATCH, 4, 4, 4), RANDOMNESS, condition={"prompt": PROMPT})


class TestLoss:
    @pytest.mark.parametrize("perturbed", ["student", "solver"])
    @pytest.mark.parametrize("predicts", PREDICTIONS)
    def test_it_is_the_papers_written_out(self, predicts: Predicts, perturbed: str) -> None:
        objective = LatentConsistencyDistillation(noise=noise_of(predicts), perturbed=perturbed, w_min=2, w_max=9)
        skipping, trained, delta = at_work(objective), student(5), 0.1 * normal(BATCH, 4, 4, 4, seed=7)
        draw = drawn(skipping)
        losses = skipping.loss(trained, draw, delta)
        root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
        abar = torch.cumprod(1 - root**2, dim=0)
        grid = [20 * step - 1 for step in range(1, 51)]
        teacher, target = skipping.companions.teacher.network, skipping.companions.target

        def read(output: Tensor, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
            a, s = abar[t].sqrt(), (1 - abar[t]).sqrt()
            if predicts == "noise":
                return (z - s * output) / a, output
            if predicts == "velocity":
                return a * z - s * output, a * output + s * z
            return output, (z - a * output) / s

        def end(network: Any, z: Tensor, t: int, w: Tensor, row: int) -> Tensor:
            output = network(z, torch.tensor([t]), prompt=PROMPT[row : row + 1], guidance=w.view(1))
            skip, out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
            return skip * z + out * read(output, z, t)[0]

        for row in range(BATCH):
            t, w = int(draw.timesteps[row]), draw.condition["guidance"][row].double()
            below = max(0, t - 20)
            assert t in grid
            assert 2 <= w <= 9
            z = abar[t].sqrt() * draw.clean[row : row + 1] + (1 - abar[t]).sqrt() * draw.noise[row : row + 1]
            outputs = [teacher(z, torch.tensor([t]), prompt=each) for each in (PROMPT[row : row + 1], EMPTY)]
            with_prompt, without = (read(output, z, t) for output in outputs)
            image, noise = (one + w * (one - other) for one, other in zip(with_prompt, without, strict=True))
            solved = abar[below].sqrt() * image + (1 - abar[below]).sqrt() * noise
            shift = delta[row : row + 1]
            here, there = (z + shift, solved) if perturbed == "student" else (z, solved + shift)
            difference = end(trained, here, t, w, row) - end(target, there, below, w, row)
            wanted = ((difference**2 + 0.001**2).sqrt() - 0.001).mean().item()
            assert losses[row].item() == pytest.approx(wanted, rel=2e-5)

    @pytest.mark.parametrize("predicts", PREDICTIONS)
    def test_the_teachers_step_is_that_of_the_stock_ddim_scheduler(self, predicts: Predicts) -> None:
        objective = LatentConsistencyDistillation(noise=noise_of(predicts), w_min=3, w_max=3)
        skipping = at_work(objective)
        draw, teacher = drawn(skipping), skipping.companions.teacher.network
        theirs = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, prediction_type=PREDICTION_TYPES[predicts],
        )  # fmt: skip
        theirs.set_timesteps(50)
        nothing = EMPTY.expand(BATCH, -1, -1)
        told, untold = (teacher(draw.noisy, draw.timesteps, prompt=each) for each in (PROMPT, nothing))
        guided = told + 3.0 * (told - untold)
        for row, t in enumerate(draw.timesteps.tolist()):
            stepped = theirs.step(guided[row], t, draw.noisy[row]).prev_sample
            assert torch.allclose(draw.solved[row], stepped, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("predicts", PREDICTIONS)
    def test_the_end_is_what_the_stock_scheduler_calls_denoised(self, predicts: Predicts) -> None:
        noise = noise_of(predicts)
        theirs = LCMScheduler(prediction_type=PREDICTION_TYPES[predicts])
        theirs.set_timesteps(50)
        assert theirs.timesteps.flip(0).tolist() == noise.grid.tolist()
        output, noisy = normal(1, 4, 4, 4, seed=3), normal(1, 4, 4, 4, seed=4)
        for t in (19, 499, 999):
            theirs._step_index = None
            denoised = theirs.step(output, t, noisy).denoised
            assert torch.allclose(noise.end(output, noisy, torch.tensor([t])), denoised, rtol=1e-4, atol=1e-4)

    def test_the_boundary_is_exact(self) -> None:
        noise, start = LatentConsistencyNoise(), torch.tensor([0])
        noisy = normal(1, 4, 4, 4)
        assert torch.equal(noise.end(normal(1, 4, 4, 4, seed=5), noisy, start), noisy)

    def test_a_perfect_teacher_and_student_of_one_point_have_no_loss(self) -> None:
        """All data at one point: the trajectory is a straight line there, whatever the guidance."""
        point, schedule = normal(1, 4, 4, 4, seed=9), NoiseSchedule(kind="scaled_linear", predicts="image")
        noise = LatentConsistencyNoise(schedule=schedule)

        class Perfect(torch.nn.Module):
            def forward(self, noisy: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
                return point.expand_as(noisy)

        companions = Companions(Teacher(Perfect(), schedule), Perfect(), {"prompt": EMPTY})
        skipping = LatentConsistencyDistillation(noise=noise, distance=L2()).beside(companions, progress=0)
        draw = skipping.draw(point.expand(BATCH, -1, -1, -1), RANDOMNESS, condition={"prompt": PROMPT})
        ideal = schedule.noised(draw.clean, draw.noise, draw.solved_timesteps)
        assert torch.allclose(draw.solved, ideal, atol=1e-5)
        late = draw.solved_timesteps > 0
        assert float(skipping.loss(Perfect(), draw, torch.zeros_like(draw.noisy))[late].max()) < 1e-6

    @settings(max_examples=25)
    @given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 10**6))
    def test_steps_stay_on_the_grid_or_end_at_zero(self, steps: int, skip: int, seed: int) -> None:
        if skip > steps:
            with pytest.raises(ValidationError, match="skip must be at most"):
                LatentConsistencyDistillation(noise=LatentConsistencyNoise(num_steps=steps), skip=skip)
            return
        objective = LatentConsistencyDistillation(noise=LatentConsistencyNoise(num_steps=steps), skip=skip)
        network = lambda noisy, timesteps, **told: torch.zeros_like(noisy)  # noqa: E731
        companions = Companions(Teacher(torch.nn.Identity(), objective.noise.schedule), None, {"prompt": EMPTY})
        object.__setattr__(companions.teacher, "network", network)
        draw = objective.beside(companions, progress=0).draw(torch.zeros(8, 1, 1, 1), Randomness(seed, range(8)))
        grid = objective.noise.grid.tolist()
        for t, below in zip(draw.timesteps.tolist(), draw.solved_timesteps.tolist(), strict=True):
            place = grid.index(t) - skip
            assert below == (grid[place] if place >= 0 else 0)


class Bayes(torch.nn.Module):
    """The best noise predictor of Gaussian data with standard deviation ``SPREAD``, whatever it is told."""

    def forward(self, noisy: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
        sigma = SCHEDULE.sigma(timesteps).to(noisy)
        return sigma * noisy / variance(timesteps).view(-1, 1, 1, 1)


def variance(timesteps: Tensor) -> Tensor:
    """Of x_t, for Gaussian data; the probability flow keeps x_t / sqrt(variance)."""
    abar = SCHEDULE.abar[timesteps]
    return abar * SPREAD**2 + 1 - abar


def chained(noise: LatentConsistencyNoise) -> Tensor:
    """How much of x_t the teacher's steps leave at t = 0, from each timestep of the grid, ``[num_steps]``."""
    teacher, left, below = Teacher(Bayes(), SCHEDULE), torch.ones(1, 1, 1, 1, dtype=torch.float64), 0
    shares = []
    for t in noise.grid.tolist():
        here, there, w = torch.tensor([t]), torch.tensor([below]), torch.tensor([7.0])
        left = left * guided_step(teacher, torch.ones_like(left), here, there, w, {"prompt": EMPTY}, {"prompt": EMPTY})
        shares.append(left.flatten())
        below = t
    return torch.cat(shares)


class TestGaussian:
    def test_the_teachers_steps_are_the_probability_flow_to_first_order(self) -> None:
        errors = []
        for steps in (50, 100, 200):
            noise = LatentConsistencyNoise(num_steps=steps)
            exact = (variance(torch.tensor([0])) / variance(noise.grid)).sqrt()
            errors.append(float((chained(noise) / exact - 1)[-1].abs()))
        assert errors[0] < 0.1
        for coarse, fine in pairwise(errors):
            assert coarse / fine == pytest.approx(2, rel=0.2)

    @pytest.mark.parametrize("perturbed", ["student", "solver"])
    def test_distillation_finds_the_consistency_function(self, perturbed: str) -> None:
        noise = LatentConsistencyNoise(schedule=SCHEDULE.but(predicts="image"), num_steps=5)
        objective = LatentConsistencyDistillation(noise=noise, distance=L2(), perturbed=perturbed, target_rate=0.5)

        class Linear(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.shares = torch.nn.Parameter(torch.full((1000,), 0.5, dtype=torch.float64))

            def forward(self, noisy: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
                return self.shares[timesteps].view(-1, 1, 1, 1) * noisy

        trained, target = Linear(), Linear()
        optimizer = torch.optim.Adam(trained.parameters(), lr=0.03)
        skipping = objective.beside(Companions(Teacher(Bayes(), SCHEDULE), target, {"prompt": EMPTY}), progress=0)
        for step in range(250):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 250)
            randomness = Randomness(0, range(16 * step, 16 * (step + 1)))
            clean = SPREAD * randomness.for_("data").normal((1, 1, 1)).double()
            draw = skipping.draw(clean, randomness, condition={"prompt": EMPTY.expand(16, -1, -1)})
            optimizer.zero_grad()
            skipping.loss(trained, draw, torch.zeros_like(draw.noisy)).mean().backward()
            optimizer.step()
            with torch.no_grad():
                target.shares.lerp_(trained.shares, 1 - objective.target_decay(0))
        learned = trained.shares.detach()[noise.grid]  # c_out is one and c_skip nothing away from t = 0.
        assert torch.allclose(learned, chained(noise), rtol=0.05)


class TestPerturbed:
    @pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.kind}{scheme.steps_per_minibatch}")
    @pytest.mark.parametrize("perturbed", ["student", "solver"])
    @pytest.mark.parametrize("unit", ["image", "noise"])
    def test_every_scheme_trains_it(self, scheme: Perturbation, perturbed: str, unit: str) -> None:
        objective = LatentConsistencyDistillation(perturbed=perturbed, unit=unit)
        skipping, trained = at_work(objective), student(5)
        draw = drawn(skipping)
        others = [skipping.companions.target, skipping.companions.teacher.network]
        minibatch = Minibatch.whole(lambda delta: skipping.loss(trained, draw, delta), BATCH)
        replays = []
        for replay in scheme.replays(minibatch, draw.noisy, RANDOMNESS):
            replays.append(replay)
            assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained.parameters())
            trained.zero_grad()
        assert len(replays) == scheme.steps_per_minibatch
        assert all(weight.grad is None for other in others for weight in other.parameters())
        if isinstance(scheme, PGD | FreeAT):
            last = replays[-1]
            assert last.delta.abs().max() > 0
            assert (last.losses >= last.clean_losses).double().mean() > 0.5

    @pytest.mark.parametrize("perturbed", ["student", "solver"])
    def test_without_a_perturbation_it_is_the_plain_loss_bit_for_bit(self, perturbed: str) -> None:
        draws = {each: drawn(at_work(LatentConsistencyDistillation(perturbed=each))) for each in ("student", "solver")}
        skipping, trained = at_work(LatentConsistencyDistillation(perturbed=perturbed)), student(5)
        draw = draws[perturbed]
        ends = (
            skipping._end(trained, draw, draw.noisy, draw.timesteps),
            skipping._end(skipping.companions.target, draw, draw.solved, draw.solved_timesteps),
        )
        losses = skipping.loss(trained, draw, torch.zeros_like(draw.noisy))
        assert torch.equal(losses, skipping.objective.distance.between(*ends))

    def test_units_differ_by_the_noise_where_delta_is_added(self) -> None:
        delta = 0.1 * normal(BATCH, 4, 4, 4, seed=7)
        for perturbed, level in (("student", "sigma"), ("solver", "solved_sigma")):
            objective = LatentConsistencyDistillation(perturbed=perturbed)
            skipping, scaled, trained = at_work(objective), at_work(objective.but(unit="noise")), student(5)
            draw = drawn(skipping)
            there = getattr(draw, level) * delta
            assert torch.equal(skipping.loss(trained, draw, there), scaled.loss(trained, draw, delta))

    def test_passes_are_teacher_target_and_student(self) -> None:
        objective = LatentConsistencyDistillation()
        assert objective.passes_per_draw + objective.passes_per_descent == pytest.approx(2)


class TestRefusal:
    def test_an_empty_range_of_guidance_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="range of the guidance scale is empty: w_min=9, w_max=5"):
            LatentConsistencyDistillation(w_min=9, w_max=5)

    def test_teachers_that_cannot_teach_are_refused(self) -> None:
        objective = LatentConsistencyDistillation()
        with pytest.raises(ValueError, match="diffusion's own timesteps, this one is an EDM denoiser"):
            objective.check_teacher(KarrasNoise(kind="edm"))
        with pytest.raises(ValueError, match="give the objective the teacher's"):
            objective.check_teacher(NoiseSchedule(kind="cosine"))
        objective.check_teacher(NoiseSchedule(kind="scaled_linear", predicts="velocity"))
        with pytest.raises(ValueError, match="needs a teacher, got none"):
            objective.beside(Companions(), progress=0)
        with pytest.raises(ValueError, match="away from the empty prompt, got none"):
            objective.beside(Companions(Teacher(PLAIN.build(), objective.noise.schedule)), progress=0)

    def test_a_student_starts_at_a_teacher_or_a_student_of_the_same_noise(self) -> None:
        objective = LatentConsistencyDistillation()
        objective.check_start(objective.noise)
        objective.check_start(objective.noise.schedule)
        with pytest.raises(ValueError, match="weights to start from"):
            objective.check_start(NoiseSchedule(kind="scaled_linear", predicts="velocity"))

    def test_a_grid_finer_than_the_schedule_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="num_steps must be at most the 1000"):
            LatentConsistencyNoise(num_steps=1001)


class TestPredictions:
    @pytest.mark.parametrize("predicts", PREDICTIONS)
    @pytest.mark.parametrize("kind", ["linear", "cosine", "scaled_linear"])
    def test_image_and_noise_are_read_out_of_what_is_meant(self, kind: Any, predicts: Predicts) -> None:
        schedule = NoiseSchedule(kind=kind, predicts=predicts)
        clean, noise, t = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1), torch.tensor([5, 400, 900])
        noisy, meant = schedule.noised(clean, noise, t), schedule.meant(clean, noise, t)
        assert torch.allclose(schedule.image_in(meant, noisy, t), clean, atol=1e-4)
        assert torch.allclose(schedule.noise_in(meant, noisy, t), noise, atol=1e-4)

    @pytest.mark.parametrize("predicts", PREDICTIONS)
    def test_denoising_wants_the_same_image_wherever_delta_leads(self, predicts: Predicts) -> None:
        objective = Denoising(noise=NoiseSchedule(kind="scaled_linear", predicts=predicts))
        draw, delta = objective.draw(normal(BATCH, 1, 2, 2), RANDOMNESS), 0.1 * normal(BATCH, 1, 2, 2, seed=3)
        moved = draw.noisy + delta
        wanted = objective._target(draw, delta)
        assert torch.allclose(objective.noise.image_in(wanted, moved, draw.timesteps), draw.clean, atol=1e-3)
        assert torch.equal(objective.loss(lambda *given, **told: wanted, draw, delta), torch.zeros(BATCH))

    def test_scaled_linear_is_the_stock_schedule_of_stable_diffusion(self) -> None:
        theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        ours = NoiseSchedule(kind="scaled_linear").abar.float()
        assert torch.allclose(ours, theirs.alphas_cumprod, rtol=1e-4)


def test_huber_is_squared_near_and_absolute_far() -> None:
    zero, far = torch.zeros(1, 1, 1, 2), torch.tensor([3.0, -4.0]).view(1, 1, 1, 2)
    assert Huber(c=0.001).between(far, zero).item() == pytest.approx(3.5 - 0.001, rel=1e-5)
    near = torch.full((1, 1, 1, 2), 1e-3, dtype=torch.float64)
    assert Huber(c=1.0).between(near, zero.double()).item() == pytest.approx(5e-7, rel=1e-3)
