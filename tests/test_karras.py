"""EDM coordinates: the levels and scalings are diffusers', the boundary is exact, samplers end where they must."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor

from atdiff_core.epsilon_scaling import EpsilonScaling
from atdiff_core.karras import KarrasNoise, signal_and_sigma
from atdiff_core.metrics.mismatch import mismatch
from atdiff_core.noise import NoiseSchedule
from atdiff_core.samplers import FINISHED, Sampler, sample, trajectory

CONSISTENCY, EDM = KarrasNoise(kind="consistency"), KarrasNoise(kind="edm")
THEIRS = CMStochasticIterativeScheduler()
SPREAD = 0.15  # Six standard deviations stay inside [-1, 1], so that clipping changes nothing.
SHAPE = (1, 8, 8)
COUNT = 400


class TestLevels:
    def test_levels_and_times_are_those_of_the_stock_scheduler(self) -> None:
        levels = CONSISTENCY.levels()
        assert torch.allclose(levels.flip(0), THEIRS.sigmas.double(), rtol=1e-12)
        assert torch.allclose(CONSISTENCY.time(levels).flip(0), THEIRS.timesteps.double(), rtol=1e-9)

    def test_levels_rise_from_end_to_end_however_many(self) -> None:
        for count in (2, 3, 18, 1281):
            levels = CONSISTENCY.levels(count)
            assert levels[[0, -1]].tolist() == pytest.approx([0.002, 80.0])
            assert (levels.diff() > 0).all()

    def test_signal_and_noise_of_a_level_as_the_network_is_told_it(self) -> None:
        assert signal_and_sigma(EDM, 250 * math.log(3.0)) == pytest.approx((1.0, 3.0))
        signal, sigma = signal_and_sigma(NoiseSchedule(), 500)
        assert signal**2 + sigma**2 == pytest.approx(1.0)

    def test_the_range_must_not_be_empty(self) -> None:
        with pytest.raises(ValueError, match=r"sigma_min must be below sigma_max, got 1.0 and 0.5"):
            KarrasNoise(sigma_min=1.0, sigma_max=0.5)


class TestScalings:
    def test_scalings_are_those_of_the_stock_scheduler(self) -> None:
        sigmas = EDM.levels()
        for noise, theirs in ((CONSISTENCY, THEIRS.get_scalings_for_boundary_condition), (EDM, THEIRS.get_scalings)):
            c_skip, c_out = theirs(sigmas)
            assert torch.allclose(noise.c_skip(sigmas), c_skip, rtol=1e-12)
            assert torch.allclose(noise.c_out(sigmas), c_out, rtol=1e-12)

    def test_at_the_boundary_a_consistency_function_is_the_identity_bit_for_bit(self) -> None:
        for dtype in (torch.float32, torch.float64):
            sigma = CONSISTENCY.levels()[:1].to(dtype)
            assert CONSISTENCY.c_skip(sigma).item() == 1
            assert CONSISTENCY.c_out(sigma).item() == 0

    def test_an_edm_denoiser_is_shown_inputs_and_trained_on_outputs_of_unit_variance(self) -> None:
        sigma, data = EDM.levels(), EDM.sigma_data
        assert torch.allclose(EDM.c_in(sigma).square() * (sigma.square() + data**2), torch.ones_like(sigma))
        wanted = (1 - EDM.c_skip(sigma)).square() * data**2 + EDM.c_skip(sigma).square() * sigma.square()
        assert torch.allclose(wanted, EDM.c_out(sigma).square())


def network_of(noise: KarrasNoise, factor: Tensor | None = None):  # type: ignore[no-untyped-def]
    """F of the exact denoiser or consistency function of Gaussian data of standard deviation SPREAD."""

    def network(shown: Tensor, times: Tensor) -> Tensor:
        sigma = (times.double() / 250).exp().view(-1, 1, 1, 1)
        variance = SPREAD**2 + sigma.square()
        wanted = SPREAD**2 / variance
        if noise.kind == "consistency":
            wanted = ((SPREAD**2 + noise.sigma_min**2) / variance).sqrt()
        output = (wanted - noise.c_skip(sigma)) / (noise.c_out(sigma).clamp(min=1e-12) * noise.c_in(sigma))
        return (output * shown).float()

    return network


class TestSampling:
    @pytest.mark.parametrize("nfe", [1, 2, 4])
    def test_the_exact_consistency_function_gives_the_data_in_any_number_of_steps(self, nfe: int) -> None:
        sampler = Sampler(kind="cm", nfe=nfe)
        images, evaluations = sample(
            network_of(CONSISTENCY), CONSISTENCY, sampler, shape=SHAPE, indices=range(COUNT), seed=0
        )
        assert evaluations == nfe
        assert images.std().item() == pytest.approx(SPREAD, rel=0.02)

    @pytest.mark.parametrize(("kind", "nfe", "error"), [("edm_euler", 60, 0.06), ("edm_dpmpp_2m", 30, 0.03)])
    def test_edm_samplers_give_the_data(self, kind: str, nfe: int, error: float) -> None:
        sampler = Sampler.named(kind, nfe=nfe)
        images, evaluations = sample(network_of(EDM), EDM, sampler, shape=SHAPE, indices=range(COUNT), seed=0)
        assert evaluations == nfe
        assert images.std().item() == pytest.approx(SPREAD, rel=error)

    def test_euler_on_gaussian_data_contracts_by_the_product_of_its_steps(self) -> None:
        sampler = Sampler(kind="edm_euler", nfe=7)
        sigmas = [*EDM.levels(7).flip(0).tolist(), 0.0]
        factor = math.sqrt(EDM.sigma_max**2 + 1)  # The scheduler's idea of the first state.
        for sigma, reached in pairwise(sigmas):
            factor *= 1 + (reached - sigma) * sigma / (sigma**2 + SPREAD**2)
        (_, first), *_, (level, images) = trajectory(
            network_of(EDM), EDM, sampler, shape=SHAPE, indices=range(3), seed=0
        )
        assert level == FINISHED
        latents = first / math.sqrt(EDM.sigma_max**2 + 1)
        assert torch.allclose(images, factor * latents, rtol=1e-3, atol=1e-5)

    def test_several_steps_share_nothing_but_the_latents_with_other_batches(self) -> None:
        sampler = Sampler(kind="cm", nfe=3)
        together, _ = sample(network_of(CONSISTENCY), CONSISTENCY, sampler, shape=SHAPE, indices=range(6), seed=1)
        alone, _ = sample(network_of(CONSISTENCY), CONSISTENCY, sampler, shape=SHAPE, indices=[4], seed=1)
        assert torch.allclose(together[4:5], alone, atol=1e-6)

    @pytest.mark.parametrize(
        ("sampler", "noise", "message"),
        [
            (
                Sampler(kind="ddim"),
                CONSISTENCY,
                "ddim cannot step a network that is a consistency model; .* cm",
            ),
            (Sampler(kind="cm", nfe=1), EDM, "sampler cm cannot step a network that is an EDM denoiser; .* edm_euler"),
            (
                Sampler(kind="edm_euler"),
                NoiseSchedule(),
                "cannot step a network that predicts noise; .* ddim",
            ),
            (Sampler(kind="cm", nfe=41), CONSISTENCY, "nfe of cm must be at most 40, the levels of the noise, got 41"),
        ],
    )
    def test_a_sampler_refuses_networks_it_cannot_step(
        self, sampler: Sampler, noise: KarrasNoise | NoiseSchedule, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            sampler.scheduler(noise)

    def test_states_of_the_exact_consistency_function_are_noised_data(self) -> None:
        images = SPREAD * torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(0))
        sampler = Sampler(kind="cm", nfe=3)
        levels = list(mismatch(network_of(CONSISTENCY), CONSISTENCY, sampler, images, samples=400, principal=8))
        visited = sampler.scheduler(CONSISTENCY).sigmas[:-1].tolist()
        assert [level.sigma for level in levels] == pytest.approx([*visited, 0.0])
        assert all(level.distance < 2 * level.floor for level in levels)

    def test_epsilon_scaling_is_for_networks_that_predict_noise(self) -> None:
        with pytest.raises(ValueError, match="epsilon_scaling divides a predicted noise, cm steps other networks"):
            Sampler(kind="cm", nfe=1, epsilon_scaling=EpsilonScaling(constant=1.01))
