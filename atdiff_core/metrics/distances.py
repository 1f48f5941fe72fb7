"""Fréchet and kernel distance between two sets of features."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from atdiff_core.metrics.features import METRIC_NAMES, FeatureName
from atdiff_core.metrics.frechet import AlreadyFeatures, FrechetMeter
from atdiff_core.metrics.standard_errors import kernel_error

KERNEL_SUBSETS = 6


@dataclass(frozen=True)
class Distances:
    """How far generated features are from the reference.

    Attributes:
        frechet: Fréchet distance of the two Gaussian fits. Biased upwards, by an amount that
            depends on the number of samples: compare at equal numbers.
        kernel: Squared maximum mean discrepancy with the cubic polynomial kernel (KID);
            unbiased, may be slightly negative.
        kernel_std: Standard deviation of the kernel distance over its subsets.
        frechet_se: Standard error of the Fréchet distance over other samples of the same network.
        kernel_se: The same of the kernel distance.
    """

    frechet: float
    kernel: float
    kernel_std: float
    frechet_se: float
    kernel_se: float

    def named(self, features: FeatureName) -> dict[str, float]:
        """All of them under the names that they have in a feature space, say ``fd_efflite0_64``."""
        frechet, kernel = METRIC_NAMES[features]["frechet"], METRIC_NAMES[features]["kernel"]
        return {
            frechet: self.frechet,
            f"{frechet}_se": self.frechet_se,
            kernel: self.kernel,
            f"{kernel}_se": self.kernel_se,
            f"{kernel}_std": self.kernel_std,
        }


class DistanceMeter:
    """Distances to one reference set, whose moments are computed once."""

    def __init__(self, reference: Tensor) -> None:
        """Takes the reference features, ``[images, num_features]``."""
        if len(reference) < 2:
            raise ValueError(f"a reference needs at least 2 images, got {len(reference)}")
        self._reference = reference
        self._frechet = FrechetMeter(reference)

    def __call__(self, generated: Tensor) -> Distances:
        """Distances of generated features ``[images, num_features]``; a function of them alone."""
        if len(generated) < 2:
            raise ValueError(f"a distance needs at least 2 generated images, got {len(generated)}")
        kernel, kernel_std = self._kernel(generated)
        return Distances(
            self._frechet.distance(generated),
            kernel,
            kernel_std,
            self._frechet.error(generated),
            kernel_error(generated, self._reference),
        )

    def _kernel(self, generated: Tensor) -> tuple[float, float]:
        from torchmetrics.image.kid import KernelInceptionDistance

        subset = min(len(generated), len(self._reference), 1000)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)
            torch.manual_seed(0)  # torchmetrics draws its subsets from the global generator.
            metric = KernelInceptionDistance(
                AlreadyFeatures(generated.shape[1]),
                subsets=KERNEL_SUBSETS,
                subset_size=subset,
                sync_on_compute=False,
            )
            metric.update(self._reference, real=True)
            metric.update(generated, real=False)
            mean, std = metric.compute()
        return float(mean), float(std)
