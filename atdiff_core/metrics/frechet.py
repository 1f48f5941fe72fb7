"""Fréchet distance between the Gaussian fits of two sets of features, and its standard error."""

import math

import torch
from torch import Tensor, nn

from atdiff_core.metrics.standard_errors import MOST_SAMPLES, jackknife_error

GROUPS = 10


class AlreadyFeatures(nn.Module):
    """Stands where torchmetrics expects a network: the images it is given are features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetMeter:
    """Distances to one reference set, whose moments are computed once.

    The distance needs the eigenvalues of the two covariances' product. Torchmetrics takes them from a
    matrix of features; samples that are fewer than features have the same ones in a matrix of samples,
    which is as much smaller.
    """

    def __init__(self, reference: Tensor) -> None:
        """Takes the reference features, ``[images, num_features]``."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        features = reference.double()
        self._mean = features.mean(dim=0)
        self._covariance = torch.cov(features.T)
        self._of_many = FrechetInceptionDistance(
            AlreadyFeatures(reference.shape[1]),
            reset_real_features=False,
            sync_on_compute=False,  # Rank 0 judges alone; the other ranks would be waited for in vain.
        )
        self._of_many.update(features, real=True)

    def distance(self, generated: Tensor) -> float:
        """To generated features ``[images, num_features]``."""
        features = generated.double()
        if (spread := self._spread(features)) is not None:
            kept = torch.ones(len(features), dtype=torch.bool)
            return float(self._without_constant(features, spread, kept) + self._covariance.trace())
        self._of_many.reset()
        self._of_many.update(features, real=False)
        return float(self._of_many.compute())

    def error(self, generated: Tensor) -> float:
        """Standard error of the distance, by a jackknife over groups of samples.

        Args:
            generated: Features ``[images, num_features]``; NaN where they are too few for two groups of two.
        """
        groups = min(GROUPS, len(generated) // 2)
        if groups < 2:
            return math.nan
        features = generated[:MOST_SAMPLES].double()
        spread = self._spread(features)
        place = torch.arange(len(features)) % groups  # Latents are drawn independently: any grouping will do.
        without = torch.stack([self._without_constant(features, spread, place != group) for group in range(groups)])
        return jackknife_error(without) * math.sqrt(len(features) / len(generated))

    def _spread(self, features: Tensor) -> Tensor | None:
        """Inner products of the samples in the reference's covariance, where that matrix is the smaller one."""
        return features @ self._covariance @ features.T if len(features) <= features.shape[1] else None

    def _without_constant(self, features: Tensor, spread: Tensor | None, kept: Tensor) -> Tensor:
        """Distance of the kept samples, without the trace of the reference's covariance."""
        ours = features[kept]
        centred = ours - ours.mean(dim=0)
        degrees = len(ours) - 1
        if spread is None:
            product = centred.T @ centred / degrees @ self._covariance
            root = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()
        else:
            part = spread[kept][:, kept]
            part = part - part.mean(dim=0) - part.mean(dim=1, keepdim=True) + part.mean()
            root = (torch.linalg.eigvalsh(part) / degrees).clamp(min=0).sqrt().sum()
        offset = ours.mean(dim=0) - self._mean
        distance: Tensor = offset @ offset + centred.square().sum() / degrees - 2 * root
        return distance
