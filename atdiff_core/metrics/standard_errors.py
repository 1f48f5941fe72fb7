"""How far a measured distance would move with other samples of the same network.

The reference stays as it is: it is the same for all networks, and so is its error. What is
left is the error of the evaluation, to be told apart from the noise of training.
"""

import math

import torch
from torch import Tensor

GROUPS = 10
MOST_SAMPLES = 2000
"""More samples have their error inferred from the first ones: it falls with the root of their number."""
KERNEL_REFERENCE = 5000  # Reference images that the kernel's error is computed with; more change little.


def kernel_error(generated: Tensor, reference: Tensor) -> float:
    """Standard error of the kernel distance (cubic polynomial kernel), delete-one jackknife in closed form.

    Args:
        generated: Features ``[images, num_features]``, at least 3.
        reference: Features ``[images, num_features]``.
    """
    if len(generated) < 3:
        return math.nan
    ours, theirs = generated[:MOST_SAMPLES].double(), reference[:KERNEL_REFERENCE].double()
    count = len(ours)
    within = (ours @ ours.T / ours.shape[1] + 1) ** 3
    rows = within.sum(dim=1) - within.diagonal()
    across = ((ours @ theirs.T / ours.shape[1] + 1) ** 3).mean(dim=1)
    without = (rows.sum() - 2 * rows) / ((count - 1) * (count - 2)) - 2 * (across.sum() - across) / (count - 1)
    return _jackknife(without) * math.sqrt(count / len(generated))


class FrechetError:
    """Standard error of the Fréchet distance to one reference, by a jackknife over groups of samples."""

    def __init__(self, reference: Tensor) -> None:
        """Takes the reference features, ``[images, num_features]``."""
        features = reference.double()
        self._mean = features.mean(dim=0)
        self._covariance = torch.cov(features.T)

    def __call__(self, generated: Tensor) -> float:
        """Of generated features ``[images, num_features]``; NaN where they are too few for two groups of two."""
        groups = min(GROUPS, len(generated) // 2)
        if groups < 2:
            return math.nan
        features = generated[:MOST_SAMPLES].double()
        spread = features @ self._covariance @ features.T if len(features) <= features.shape[1] else None
        place = torch.arange(len(features)) % groups  # Latents are drawn independently: any grouping will do.
        without = torch.stack([self._distance(features, spread, place != group) for group in range(groups)])
        return _jackknife(without) * math.sqrt(len(features) / len(generated))

    def _distance(self, features: Tensor, spread: Tensor | None, kept: Tensor) -> Tensor:
        """Fréchet distance of the kept samples, without the trace of the reference's covariance."""
        ours = features[kept]
        centred = ours - ours.mean(dim=0)
        degrees = len(ours) - 1
        if spread is None:
            product = centred.T @ centred / degrees @ self._covariance
            root = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()
        else:  # The same eigenvalues, from a matrix of samples instead of features.
            part = spread[kept][:, kept]
            part = part - part.mean(dim=0) - part.mean(dim=1, keepdim=True) + part.mean()
            root = (torch.linalg.eigvalsh(part) / degrees).clamp(min=0).sqrt().sum()
        offset = ours.mean(dim=0) - self._mean
        distance: Tensor = offset @ offset + centred.square().sum() / degrees - 2 * root
        return distance


def _jackknife(without: Tensor) -> float:
    """Standard error from the values with one group left out at a time."""
    count = len(without)
    return float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())
