"""The effect over two searched quantities at once, with what is not known of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atdiff_core.response import Observation, control_covariance, matern, tame, untame

Array = NDArray[np.float64]

lengths = (1.0, 0.5)  # in which the effect bends: log eta, log of the other quantity
sizes = (1.0, 3.0, 9.0, 27.0)  # of the surface, in units of the noise
noise_guess = 0.02  # of log metric; worth one observation
min_trials = 8


@dataclass(frozen=True, eq=False)
class Surface:
    """Effect on a grid.

    Attributes:
        etas: ``[columns]``, log-spaced over the searched range.
        others: The second quantity, ``[rows]``.
        mean: Posterior mean of the effect, ``[rows, columns]``.
        known: Share of the prior variance that the trials have removed, ``[rows, columns]``, 0 to 1.
    """

    etas: Array
    others: Array
    mean: Array
    known: Array


def fit_surface(
    observations: Sequence[Observation], others: Sequence[float], *, columns: int = 61, rows: int = 21
) -> Surface:
    """Gaussian process over log eta and the log of another quantity, say K, with the noise of ``fit_response``.

    A product of two Matern 5/2 kernels; its size is the one of highest marginal likelihood on a small grid.

    Args:
        others: Values > 0 of the second quantity, one an observation.

    Raises:
        ValueError: Fewer than 8 trials, or a quantity that takes a single value.
    """
    etas, second = np.array([one.eta for one in observations]), np.array(others, dtype=float)
    if len(etas) < min_trials or len(set(etas)) < 2 or len(set(second)) < 2:
        raise ValueError(
            f"a surface needs {min_trials} trials or more that differ in both quantities, "
            f"got {len(etas)} with {len(set(etas))} and {len(set(second))} values"
        )
    effects = np.array([one.effect for one in observations])
    threshold = max(0.1, 3 * float(np.median(np.abs(effects - np.median(effects)))))
    tamed = tame(effects, threshold)
    grid = np.geomspace(etas.min(), etas.max(), columns), np.geomspace(second.min(), second.max(), rows)
    at = [axis.ravel() for axis in np.meshgrid(np.log(grid[0]), np.log(grid[1]))]
    seen = [np.log(etas), np.log(second)]
    best: tuple[float, Array, Array] | None = None
    for size in sizes:
        # A vague level beside the kernel: effects need not be centred.
        root = np.linalg.cholesky(control_covariance(observations) + _kernel(seen, seen, size) + 1e4)
        cross = np.linalg.solve(root, _kernel(seen, at, size) + 1e4)
        whitened = np.linalg.solve(root, tamed)
        squares = float(whitened @ whitened) + noise_guess**2
        likelihood = -(len(etas) + 1) / 2 * math.log(squares) - float(np.log(np.diag(root)).sum())
        if best is None or likelihood > best[0]:
            left = (size**2 + 1e4 - (cross**2).sum(axis=0)) / size**2
            best = likelihood, cross.T @ whitened, np.clip(1 - left, 0, 1)
    assert best is not None
    _, mean, known = best
    return Surface(*grid, untame(mean, threshold).reshape(rows, columns), known.reshape(rows, columns))


def _kernel(left: Sequence[Array], right: Sequence[Array], size: float) -> Array:
    first, second = (matern(a, b, 1.0, length) for a, b, length in zip(left, right, lengths, strict=True))
    return size**2 * first * second
