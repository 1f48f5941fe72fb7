"""Errors of the evaluation: closed form against leaving out by hand, and against fresh samples."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from atdiff_core.metrics.distances import DistanceMeter
from atdiff_core.metrics.frechet import FrechetMeter
from atdiff_core.metrics.standard_errors import kernel_error


def features(seed: int, count: int, width: int = 8, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, width, generator=generator, dtype=torch.float64)


def kernel_distance(ours: Tensor, theirs: Tensor) -> float:
    """The part of the unbiased squared distance that depends on ours."""
    within = (ours @ ours.T / ours.shape[1] + 1) ** 3
    off_diagonal = (within.sum() - within.diagonal().sum()) / (len(ours) * (len(ours) - 1))
    return float(off_diagonal - 2 * ((ours @ theirs.T / ours.shape[1] + 1) ** 3).mean())


def test_the_kernels_closed_form_is_leaving_out_one_sample_at_a_time() -> None:
    ours, theirs = features(0, 12), features(1, 30)
    without = [kernel_distance(torch.cat([ours[:i], ours[i + 1 :]]), theirs) for i in range(12)]
    by_hand = math.sqrt(11 / 12 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert kernel_error(ours, theirs) == pytest.approx(by_hand)


def test_both_errors_are_the_spread_over_fresh_samples() -> None:
    theirs = features(0, 400)
    meter = DistanceMeter(theirs.float())
    measured = [meter(features(seed, 200, shift=0.5).float()) for seed in range(1, 41)]
    for distance, error in (("frechet", "frechet_se"), ("kernel", "kernel_se")):
        spread = np.std([getattr(each, distance) for each in measured], ddof=1)
        stated = np.sqrt(np.mean([getattr(each, error) ** 2 for each in measured]))
        assert stated == pytest.approx(spread, rel=0.4), distance


@pytest.mark.parametrize("count", [6, 40])
def test_the_frechet_error_is_leaving_out_a_group_of_samples_at_a_time(count: int) -> None:
    """From few samples through their own matrix, from many through that of the features."""
    theirs, ours = features(0, 50, width=10), features(1, count, width=10, shift=0.3)
    groups = min(10, count // 2)
    place = torch.arange(count) % groups
    covariance = torch.cov(theirs.T)

    def distance(kept: Tensor) -> float:
        product = torch.cov(kept.T) @ covariance
        root = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()
        offset = kept.mean(dim=0) - theirs.mean(dim=0)
        return float(offset @ offset + torch.cov(kept.T).trace() - 2 * root)

    without = np.array([distance(ours[place != group]) for group in range(groups)])
    by_hand = math.sqrt((groups - 1) / groups * np.sum((without - without.mean()) ** 2))
    assert FrechetMeter(theirs).error(ours) == pytest.approx(by_hand, rel=1e-5)


def test_more_samples_have_a_smaller_error() -> None:
    theirs = features(0, 300)
    few, many = (kernel_error(features(1, count, shift=0.4), theirs) for count in (50, 800))
    assert many < few / 2


def test_too_few_samples_have_no_error() -> None:
    assert math.isnan(kernel_error(features(0, 2), features(1, 10)))
    assert math.isnan(FrechetMeter(features(1, 10)).error(features(0, 3)))


def test_the_error_of_many_samples_is_inferred_from_the_first_of_them() -> None:
    theirs, ours = features(0, 400), features(1, 8000, shift=0.5)
    fresh = [kernel_error(ours[start : start + 2000], theirs) for start in (2000, 4000, 6000)]
    assert kernel_error(ours, theirs) == pytest.approx(np.mean(fresh) / 2, rel=0.1)
    frechet = FrechetMeter(theirs).error
    assert frechet(ours) == pytest.approx(frechet(ours[:2000]) / 2)
