"""The mismatch where it is known: Gaussian data, an optimal network, and networks wrong by a known scale."""

import math

import pytest
import torch
from torch import Tensor

from atdiff_core.metrics.mismatch import BLOCKS, MismatchAt, compared, data_basis, mismatch
from atdiff_core.noise import NoiseSchedule
from atdiff_core.randomness import Randomness
from atdiff_core.samplers import FINISHED, Sampler, SamplerKind

SPREAD = 0.15  # Six standard deviations stay inside [-1, 1], so that clipping changes nothing.
SHAPE = (1, 6, 6)
NOISE = NoiseSchedule()
SAMPLES = 1000
SHORT = 0.012  # Of a distance: what the quantiles of a block of 100 miss, see ``compared``.


class Gaussian:
    """E[noise | x_t] for images of standard deviation SPREAD, times a scale."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        abar = NOISE.abar[timesteps].view(-1, 1, 1, 1)
        return (self.scale * (1 - abar).sqrt() * noisy / (abar * SPREAD**2 + 1 - abar)).float()


def images(count: int = SAMPLES + 100) -> Tensor:
    return SPREAD * Randomness(5, range(count), "images").normal(SHAPE)


def measured(kind: SamplerKind, nfe: int, scale: float = 1.0) -> list[MismatchAt]:
    found = mismatch(
        Gaussian(scale), NOISE, Sampler(kind=kind, nfe=nfe), images(), samples=SAMPLES, principal=12, random=12
    )
    return list(found)


def deviations(kind: SamplerKind, nfe: int, scale: float = 1.0) -> dict[int, float]:
    """Standard deviation of the sampler's state at each of its levels: a linear recursion from 1."""
    timesteps = Sampler(kind=kind, nfe=nfe).scheduler(NOISE).timesteps.tolist()
    found, variance = {}, 1.0
    for now, after in zip(timesteps, [*timesteps[1:], FINISHED], strict=True):
        found[now] = math.sqrt(variance)
        abar, abar_after = float(NOISE.abar[now]), 1.0 if after == FINISHED else float(NOISE.abar[after])
        noise_gain = scale * math.sqrt(1 - abar) / (abar * SPREAD**2 + 1 - abar)
        clean_gain = (1 - math.sqrt(1 - abar) * noise_gain) / math.sqrt(abar)
        if kind == "ddim":
            gain, added = math.sqrt(abar_after) * clean_gain + math.sqrt(1 - abar_after) * noise_gain, 0.0
        else:
            beta = 1 - abar / abar_after
            back = math.sqrt(1 - beta) * (1 - abar_after) / (1 - abar)
            gain = math.sqrt(abar_after) * beta / (1 - abar) * clean_gain + back
            added = (1 - abar_after) / (1 - abar) * beta
        variance = gain**2 * variance + added
    return found | {FINISHED: math.sqrt(variance)}


def expected(kind: SamplerKind, nfe: int, scale: float = 1.0) -> dict[int, float]:
    """W2 of two centred Gaussians is the difference of their deviations, here in units of that of q."""
    found = {}
    for timestep, deviation in deviations(kind, nfe, scale).items():
        abar = 1.0 if timestep == FINISHED else float(NOISE.abar[timestep])
        found[timestep] = abs(deviation / math.sqrt(abar * SPREAD**2 + 1 - abar) - 1)
    return found


class TestGaussianData:
    @pytest.mark.parametrize("nfe", [4, 12])
    @pytest.mark.parametrize(
        ("kind", "scale"),  # A wrong scale at ancestral's first level would be clipped: nothing of x_0 is left there.
        [("ddim", 1.0), ("ddim", 0.97), ("ddim", 1.02), ("ancestral", 1.0)],
    )
    def test_the_measured_mismatch_is_the_closed_form_within_its_error(
        self, kind: SamplerKind, nfe: int, scale: float
    ) -> None:
        known = expected(kind, nfe, scale)
        found = measured(kind, nfe, scale)
        assert [each.timestep for each in found] == list(known)
        for each in found:
            truth = known[each.timestep]
            margin = 3 * each.std_error + SHORT * truth
            assert truth - margin <= each.distance <= max(truth + margin, each.floor), each

    def test_a_second_order_solver_with_the_optimal_network_stays_with_the_data(self) -> None:
        sampler = Sampler.named("dpmpp_2m_logsnr", nfe=20)
        found = list(mismatch(Gaussian(), NOISE, sampler, images(), samples=SAMPLES, principal=12, random=12))
        assert len(found) == 21
        assert all(each.distance < each.floor for each in found)

    def test_it_shrinks_as_evaluations_grow(self) -> None:
        last = {nfe: measured("ddim", nfe)[-1].distance for nfe in (3, 6, 12, 24)}
        assert list(last.values()) == sorted(last.values(), reverse=True)
        assert last[24] < last[3] / 4

    def test_an_error_of_the_network_adds_up_along_the_trajectory(self) -> None:
        wrong = [each for each in measured("ddim", 12, scale=0.97) if each.timestep > 200]
        distances = [each.distance for each in wrong]
        assert distances == sorted(distances)
        assert distances[0] < wrong[0].floor < distances[-1] / 2

    def test_less_noise_predicted_mends_some_of_what_few_steps_take_away(self) -> None:
        optimal, scaled = measured("ddim", 12)[-1], measured("ddim", 12, scale=0.97)[-1]
        assert scaled.distance < optimal.distance - 5 * optimal.std_error


class TestEstimator:
    def test_equal_distributions_pass_the_floor_once_in_twenty(self) -> None:
        generator = torch.Generator().manual_seed(0)
        passed = 0
        for _ in range(200):
            forward, reverse = torch.randn(2, 200, 5, generator=generator, dtype=torch.float64)
            distance, _, floor = compared(forward, reverse)
            passed += distance > floor
        assert 2 <= passed <= 20

    def test_the_square_of_the_distance_is_unbiased_and_its_error_is_the_scatter(self) -> None:
        generator = torch.Generator().manual_seed(1)
        shift = 0.2
        found, errors = [], []
        for _ in range(150):
            forward, reverse = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
            distance, error, _ = compared(forward, reverse + shift)
            found.append(distance)
            errors.append(error)
        squares = torch.tensor(found).square()
        scatter = float(torch.tensor(found).std())
        assert float(squares.mean()) == pytest.approx(shift**2, abs=4 * float(squares.std()) / math.sqrt(150))
        assert sum(errors) / 150 == pytest.approx(scatter, rel=0.25)

    def test_the_distance_has_no_unit(self) -> None:
        generator = torch.Generator().manual_seed(0)
        forward, reverse = torch.randn(2, 100, 5, generator=generator, dtype=torch.float64)
        once = compared(forward, reverse + 1)
        assert compared(7 * forward, 7 * reverse + 7) == pytest.approx(once)

    def test_a_shift_is_measured_exactly(self) -> None:
        forward = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        distance, _, _ = compared(forward, forward + torch.tensor([0.3, 0.0, -0.4]))
        assert distance == pytest.approx(0.5 / math.sqrt(float(forward.var(dim=0).sum())))


class TestBasis:
    def test_it_is_orthonormal_and_begins_with_what_varies_most(self) -> None:
        deviation = torch.linspace(3, 0.1, 36).view(SHAPE)
        basis = data_basis(images(400) * deviation, principal=4, random=6, seed=0)
        assert basis.shape == (36, 10)
        assert torch.allclose(basis.T @ basis, torch.eye(10, dtype=torch.float64), atol=1e-9)
        leading = basis[:, :4].square().sum(dim=1)
        assert float(leading[:8].sum()) > 3.5 > 0.5 > float(leading[16:].sum())

    def test_it_is_a_function_of_images_and_seed_and_leaves_the_global_generator_alone(self) -> None:
        before = torch.get_rng_state()
        once = data_basis(images(50), principal=3, random=3, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(9)
        assert torch.equal(data_basis(images(50), principal=3, random=3, seed=0), once)
        assert not torch.allclose(data_basis(images(50), principal=3, random=3, seed=1)[:, 3:], once[:, 3:])

    @pytest.mark.parametrize(("principal", "random"), [(0, 5), (5, 0), (0, 36), (36, 0), (20, 16)])
    def test_either_kind_can_be_had_alone_up_to_the_whole_space(self, principal: int, random: int) -> None:
        assert data_basis(images(80), principal=principal, random=random, seed=0).shape == (36, principal + random)


class TestMeasuring:
    def test_the_mismatch_does_not_depend_on_the_batches(self) -> None:
        sampler = Sampler(kind="ancestral", nfe=3)
        settings = {"samples": 40, "principal": 4, "random": 4}
        whole, parts = (
            [each.distance for each in mismatch(Gaussian(), NOISE, sampler, images(80), batch_size=size, **settings)]
            for size in (40, 7)
        )
        assert parts == pytest.approx(whole, rel=1e-4)

    def test_a_conditional_network_is_told_its_classes(self) -> None:
        told: list[Tensor] = []

        def conditional(noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
            told.append(labels)
            return Gaussian()(noisy, timesteps)

        settings = {"samples": 40, "principal": 4, "random": 4}
        plain = mismatch(Gaussian(), NOISE, Sampler(nfe=2), images(80), **settings)
        found = mismatch(conditional, NOISE, Sampler(nfe=2), images(80), num_classes=3, **settings)
        assert list(found) == list(plain)
        assert set(torch.cat(told).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "expected_line"),
    [
        ({"samples": 25}, f"samples must be a multiple of {BLOCKS}, at least 20, got 25"),
        ({"samples": 100}, "needs more than 4 images besides the 100 compared, got 0: give more images"),
        ({"principal": 30, "random": 7}, r"together 1 to 36 \(the elements of an image\), got 30 and 7"),
        ({"principal": 0, "random": 0}, "got 0 and 0"),
        ({"random": -1}, "must be >= 0 .* got 4 and -1"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(changes: dict[str, int], expected_line: str) -> None:
    settings = {"samples": 40, "principal": 4, "random": 4} | changes
    with pytest.raises(ValueError, match=expected_line):
        mismatch(Gaussian(), NOISE, Sampler(nfe=2), images(90), **settings)


def test_images_that_are_all_the_same_are_refused() -> None:
    found = mismatch(Gaussian(), NOISE, Sampler(nfe=2), torch.zeros(60, *SHAPE), samples=40, principal=4, random=4)
    with pytest.raises(ValueError, match="do not differ from one another"):
        list(found)
