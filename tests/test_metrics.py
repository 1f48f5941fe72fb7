"""Distances between sets of features, the features themselves, and the evaluator's cache."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from atdiff_core.data.stream import ShardSet
from atdiff_core.metrics.distances import DistanceMeter
from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
from atdiff_core.metrics.features import INCEPTION_WEIGHTS, Inception, as_uint8, feature_network, features_of
from atdiff_core.metrics.frechet import AlreadyFeatures, FrechetMeter
from atdiff_core.metrics.inception_score import inception_score
from atdiff_core.metrics.precision_recall import precision_recall
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.samplers import Sampler


def gaussian(seed: int, count: int = 500, features: int = 8) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


class TestFrechet:
    def test_a_set_is_at_no_distance_from_itself(self) -> None:
        features = gaussian(0)
        assert DistanceMeter(features)(features).frechet == pytest.approx(0, abs=1e-6)

    def test_two_gaussians_are_at_their_closed_form_distance(self) -> None:
        means = torch.linspace(-1, 1, 8)
        one, other = torch.linspace(0.5, 2, 8), torch.linspace(1.5, 1, 8)
        closed_form = (means.square() + (one - other).square()).sum().item()
        measured = DistanceMeter(one * gaussian(0, 200_000))(means + other * gaussian(1, 200_000)).frechet
        assert measured == pytest.approx(closed_form, rel=0.02)

    def test_a_shift_adds_its_squared_length(self) -> None:
        features = gaussian(0)
        shift = torch.linspace(0, 1, 8)
        distance = DistanceMeter(features)(features + shift).frechet
        assert distance == pytest.approx(shift.square().sum().item(), rel=1e-4)

    @pytest.mark.parametrize("count", [2, 7, 8, 9, 40])
    def test_few_samples_and_many_are_at_torchmetrics_distance(self, count: int) -> None:
        """Those that are no more than the features go through their own matrix."""
        reference, generated = gaussian(0).double(), 0.3 + gaussian(1, count).double()
        theirs = FrechetInceptionDistance(AlreadyFeatures(8))
        theirs.update(reference, real=True)
        theirs.update(generated, real=False)
        ours = FrechetMeter(reference).distance(generated)
        assert ours == pytest.approx(theirs.compute().item(), rel=1e-5)

    def test_a_meter_keeps_its_reference_and_forgets_what_it_measured(self) -> None:
        meter = DistanceMeter(gaussian(0))
        first = meter(gaussian(1))
        meter(3 + gaussian(2))
        assert meter(gaussian(1)) == first


class TestKernel:
    def test_equal_distributions_are_at_no_distance(self) -> None:
        distances = [DistanceMeter(gaussian(seed))(gaussian(100 + seed)).kernel for seed in range(8)]
        shifted = DistanceMeter(gaussian(0))(0.3 + gaussian(100)).kernel
        assert abs(sum(distances) / 8) < 0.01 < 0.1 < shifted
        assert min(distances) < 0  # Unbiased, hence sometimes below zero.

    def test_one_whole_subset_is_the_unbiased_estimate_with_the_cubic_kernel(self) -> None:
        real, fake = gaussian(0, 60).double(), 0.5 + gaussian(1, 60).double()

        def kernel(one: Tensor, other: Tensor) -> Tensor:
            return (one @ other.T / 8 + 1) ** 3

        def off_diagonal_mean(matrix: Tensor) -> Tensor:
            return (matrix.sum() - matrix.trace()) / (60 * 59)

        cross = kernel(real, fake).mean()
        expected = off_diagonal_mean(kernel(real, real)) + off_diagonal_mean(kernel(fake, fake)) - 2 * cross
        measured = DistanceMeter(real.float())(fake.float())
        assert measured.kernel == pytest.approx(expected.item(), rel=1e-4)
        assert measured.kernel_std == pytest.approx(0, abs=1e-5)

    def test_subsets_are_the_same_whatever_the_global_generator(self) -> None:
        meter, generated = DistanceMeter(gaussian(0, 300)), gaussian(1, 200)
        torch.manual_seed(0)
        once = meter(generated)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        assert meter(generated) == once
        assert once.kernel_std > 0
        assert torch.equal(torch.get_rng_state(), before)


def test_a_distance_needs_two_images_on_either_side() -> None:
    with pytest.raises(ValueError, match="a reference needs at least 2 images, got 1"):
        DistanceMeter(gaussian(0, 1))
    with pytest.raises(ValueError, match="at least 2 generated images, got 1"):
        DistanceMeter(gaussian(0))(gaussian(1, 1))


class TestPrecisionRecall:
    def test_a_set_covers_itself(self) -> None:
        both = precision_recall(gaussian(0), gaussian(0))
        assert (both.precision, both.recall) == (1, 1)

    def test_sets_far_apart_do_not_touch(self) -> None:
        both = precision_recall(gaussian(0), 100 + gaussian(1))
        assert (both.precision, both.recall) == (0, 0)

    def test_one_of_two_clusters_alone_is_precise_but_recalls_half(self) -> None:
        clusters = torch.cat([gaussian(0, 250), 100 + gaussian(1, 250)])
        order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
        one_of_them = gaussian(0, 250).repeat(2, 1)
        both = precision_recall(one_of_them, clusters[order])
        assert both.precision == 1
        assert both.recall == pytest.approx(0.5, abs=0.01)

    def test_exchanging_the_sets_exchanges_the_figures(self) -> None:
        one, other = gaussian(0), 0.5 * gaussian(1)
        forth, back = precision_recall(one, other), precision_recall(other, one)
        assert (forth.precision, forth.recall) == (back.recall, back.precision)

    def test_as_many_of_each_are_compared(self) -> None:
        assert precision_recall(gaussian(0, 50), gaussian(1)) == precision_recall(gaussian(0, 50), gaussian(1)[:50])

    def test_too_few_images_are_refused(self) -> None:
        with pytest.raises(ValueError, match="need at least 4 images of each kind, got 3"):
            precision_recall(gaussian(0, 3), gaussian(1))


class TestInceptionScore:
    def test_images_that_all_look_alike_score_one(self) -> None:
        assert inception_score(torch.randn(7).expand(100, 7)) == pytest.approx(1)

    def test_images_sure_of_equally_many_classes_score_their_number(self) -> None:
        sure = 50 * torch.eye(4).repeat(5_000, 1)
        assert inception_score(sure) == pytest.approx(4, rel=1e-3)

    def test_too_few_images_are_refused(self) -> None:
        with pytest.raises(ValueError, match="needs at least 10 images, got 9"):
            inception_score(torch.zeros(9, 4))


def test_a_full_evaluation_of_too_few_images_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 4 samples and reference images, got 3 and 50000"):
        EvaluationConfig(samples=3, full=True)
    with pytest.raises(ValueError, match="needs at least 10 samples and reference images, got 9 and 50000"):
        EvaluationConfig(samples=9, features="inception", full=True)


def test_bytes_are_truncated_and_clamped() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0])
    assert as_uint8(images).tolist() == [0, 0, 127, 254, 255, 255]


class TestFeatures:
    @pytest.fixture(scope="class")
    def digits(self, digits_8px: ShardSet) -> Tensor:
        return torch.cat(list(digits_8px.images()))

    @pytest.fixture(scope="class")
    def reference(self, digits: Tensor) -> Tensor:
        return features_of([digits[:128]], feature_network("efflite0_64"))

    def test_they_have_their_shape_and_are_finite(self, reference: Tensor) -> None:
        assert reference.shape == (128, 1280)
        assert reference.dtype == torch.float32
        assert reference.isfinite().all()

    def test_they_do_not_depend_on_the_batches(self, digits: Tensor, reference: Tensor) -> None:
        pieces = features_of(digits[:70].split(33), feature_network("efflite0_64"))
        assert torch.allclose(pieces, reference[:70], atol=1e-3)

    def test_a_grey_image_has_the_features_of_its_colour_copy(self, digits: Tensor, reference: Tensor) -> None:
        colour = features_of([digits[:4].expand(-1, 3, -1, -1)], feature_network("efflite0_64"))
        assert torch.allclose(colour, reference[:4], atol=1e-3)

    def test_noisier_digits_are_farther_away(self, digits: Tensor, reference: Tensor) -> None:
        others = digits[128:]
        noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(0))
        meter = DistanceMeter(reference)
        network = feature_network("efflite0_64")
        distances = [meter(features_of([others + level * noise], network)) for level in (0, 0.1, 0.4)]
        assert distances[0].kernel < distances[1].kernel < distances[2].kernel
        assert distances[0].frechet < distances[1].frechet < distances[2].frechet

    def test_inception_without_weights_tells_what_to_set(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(INCEPTION_WEIGHTS, str(tmp_path / "missing.pth"))
        with pytest.raises(ValueError, match=r"ATDIFF_INCEPTION_WEIGHTS must be the path of .*missing\.pth"):
            Inception()


class TestEvaluator:
    CONFIG = EvaluationConfig(samples=6, reference=48, samplers=(Sampler(nfe=2), Sampler(kind="ancestral", nfe=1)))

    def test_reference_features_are_computed_once_and_kept(self, digits_8px: ShardSet, tmp_path: Path) -> None:
        first = Evaluator(self.CONFIG, digits_8px, tmp_path)
        (file,) = tmp_path.iterdir()
        written = file.stat()
        second = Evaluator(self.CONFIG, digits_8px, tmp_path)
        assert list(tmp_path.iterdir()) == [file]
        assert (file.stat().st_mtime_ns, file.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
        network = UNet(resolution=8, channels=(8, 16)).build(seed=0)
        one, other = (list(each.evaluate(network, NoiseSchedule())) for each in (first, second))
        assert [each.distances for each in one] == [each.distances for each in other]

    def test_another_size_of_the_reference_has_features_of_its_own(self, digits_8px: ShardSet, tmp_path: Path) -> None:
        for reference in (8, 16):
            Evaluator(self.CONFIG.but(reference=reference), digits_8px, tmp_path)
        assert len(list(tmp_path.iterdir())) == 2

    def test_every_sampler_is_judged_under_its_name(self, digits_8px: ShardSet, tmp_path: Path) -> None:
        evaluator = Evaluator(self.CONFIG, digits_8px, tmp_path)
        network = UNet(resolution=8, channels=(8, 16)).build(seed=0)
        results = list(evaluator.evaluate(network, NoiseSchedule()))
        assert [result.sampler for result in results] == list(self.CONFIG.samplers)
        assert all(result.images.shape == (6, 1, 8, 8) for result in results)
        assert list(evaluator.named(results[1])) == [
            "fd_efflite0_64/ancestral_1", "fd_efflite0_64_se/ancestral_1",
            "kd_efflite0_64/ancestral_1", "kd_efflite0_64_se/ancestral_1", "kd_efflite0_64_std/ancestral_1",
        ]  # fmt: skip
