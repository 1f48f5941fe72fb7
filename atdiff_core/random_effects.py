"""A straight line through uncertain points that may scatter about it, with its whole posterior."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

typical_scatter = 0.25  # of the logarithm of an optimum, a factor of 1.3 between rungs; the prior's scale
scatters = np.linspace(0, 5 * typical_scatter, 401)[1:]
num_draws = 4000


@dataclass(frozen=True, eq=False)
class LinePosterior:
    """Posterior of y = intercept + slope * x through points that scatter; draws are ``[num_draws]``.

    Attributes:
        slope, intercept: Posterior means.
        scatter: Posterior median of the standard deviation of the points about the line that
            their own uncertainty does not explain.
        slopes, intercepts: Joint draws.
        deviations: Draws of how far a new point lies from the line.
    """

    slope: float
    intercept: float
    scatter: float
    slopes: Array
    intercepts: Array
    deviations: Array

    @classmethod
    def through(cls, x: Array, y: Array, samples: Sequence[Array], rng: np.random.Generator) -> "LinePosterior":
        """Random-effects regression.

        Point i is known up to its posterior, whose draws are ``samples[i]`` with standard
        deviation s_i; points may scatter about the line by a common tau beyond that, and weigh
        1 / (s_i^2 + tau^2). Slope and intercept have flat priors. tau has a half-normal prior of
        scale ``typical_scatter`` and is integrated over on a grid. A draw takes tau from its
        posterior, each point from its samples plus tau times a normal, and a weighted line through them.

        Args:
            x: ``[points]``.
            y: ``[points]``; the centre of each point's posterior.
        """
        variances = np.array([np.var(draws) for draws in samples])
        probability = scatter_posterior(x, y, variances)
        slope, intercept = weighted_line(x, y, variances + scatters[:, None] ** 2)
        scatter = rng.choice(scatters, num_draws, p=probability)
        measured = np.stack([rng.choice(draws, num_draws) for draws in samples], axis=1)
        moved = measured + scatter[:, None] * rng.standard_normal(measured.shape)
        slopes, intercepts = weighted_line(x, moved, variances + scatter[:, None] ** 2)
        return cls(
            slope=float(probability @ slope),
            intercept=float(probability @ intercept),
            scatter=float(np.median(scatter)),
            slopes=slopes,
            intercepts=intercepts,
            deviations=scatter * rng.standard_normal(num_draws),
        )

    def draws_at(self, x: float) -> Array:
        """Draws of y at a new point, scatter included."""
        return self.intercepts + self.slopes * x + self.deviations

    def p_value(self, slope: float) -> float:
        """Twice the posterior probability beyond a hypothetical slope, on the nearer side; at least 1 / draws."""
        above = float(np.mean(self.slopes > slope))
        return min(1.0, max(2 * min(above, 1 - above), 1 / num_draws))


def weighted_line(x: Array, y: Array, variances: Array) -> tuple[Array, Array]:
    """Slope and intercept per row, weights 1 / variance; ``y`` and ``variances`` broadcast to ``[rows, points]``."""
    weights = 1 / variances
    total = weights.sum(axis=1)
    centre = (weights * x).sum(axis=1) / total
    mean = (weights * y).sum(axis=1) / total
    offset = x - centre[:, None]
    slope = (weights * offset * y).sum(axis=1) / (weights * offset**2).sum(axis=1)
    return slope, mean - slope * centre


def scatter_posterior(x: Array, y: Array, variances: Array) -> Array:
    """Probability of each entry of ``scatters``: half-normal prior times restricted likelihood."""
    total = variances + scatters[:, None] ** 2
    slope, intercept = weighted_line(x, y, total)
    residual = y - intercept[:, None] - slope[:, None] * x
    weights = 1 / total
    centre = (weights * x).sum(axis=1) / weights.sum(axis=1)
    information = weights.sum(axis=1) * (weights * (x - centre[:, None]) ** 2).sum(axis=1)
    log_likelihood = (np.log(weights).sum(axis=1) - np.log(information) - (weights * residual**2).sum(axis=1)) / 2
    log_posterior = log_likelihood - (scatters / typical_scatter) ** 2 / 2
    posterior = np.exp(log_posterior - log_posterior.max())
    return np.asarray(posterior / posterior.sum())
