"""What finished rungs of a ladder teach about the next: the shape of the valley, and where it should lie.

Responses at several resolutions look alike: they fall towards the optimum and blow up behind it. Seen from
the optimum, z = log eta - log eta*, a valley learned at the cheap rungs holds at the dear one up to a shift.
So the dear rung need not find the shape again, only where it lies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from atdiff_core.response import Observation, control_covariance, matern, tame

Array = NDArray[np.float64]

shape_sizes = (2.0, 6.0, 18.0)  # of the shared shape beyond a quadratic, in units of the noise
own_sizes = (0.5, 1.5, 4.0)  # of what a rung has for itself, in units of the noise
length = 0.9  # over which both may bend, in log eta
own_level = 3.0  # standard deviation of a rung's own level, in units of the noise
own_depth = 0.25  # relative, of a rung's own depth
own_width = 0.2  # relative, of a rung's own width
vague = (100.0, 60.0, 30.0)  # prior standard deviations of level, slope and curvature, in units of the noise
noise_guess = 0.02  # of log metric; worth one observation
num_offsets = 97
num_draws = 256


@dataclass(frozen=True)
class Rehearsal:
    """A finished rung.

    Attributes:
        observations: Its trials.
        log_best: log eta* as it was found.
    """

    observations: tuple[Observation, ...]
    log_best: float


@dataclass(frozen=True, eq=False)
class Valley:
    """The posterior of the shared response, seen from the optimum.

    Attributes:
        offsets: z = log eta - log eta*, ``[offsets]``, evenly spaced.
        mean: Expected tamed effect, ``[offsets]``.
        covariance: Of what is not known of it, ``[offsets, offsets]``.
        noise: Standard deviation of one trial's log metric.
        own_size: How much a rung may differ from the others, in units of the noise.
        threshold: From which effects are tamed.
    """

    offsets: Array
    mean: Array
    covariance: Array
    noise: float
    own_size: float
    threshold: float

    @cached_property
    def slope(self) -> Array:
        """Of the expected effect, ``[offsets]``: what a wider or narrower valley changes."""
        return np.asarray(np.gradient(self.mean, self.offsets))


def learn_valley(rungs: Sequence[Rehearsal], *, reach: float) -> Valley:
    """Pool finished rungs, each seen from its own optimum.

    Gaussian-process regression on z: a vague quadratic and a Matern bend that all rungs share, a level and a
    smaller bend that each rung has for itself, the error of each seed's control, and noise. The sizes of
    the two bends are those of the highest marginal likelihood on a small grid; the noise has an
    inverse-gamma prior worth one observation at 0.02.

    Args:
        reach: Largest |z| that will be asked for.
    """
    every = [one for rung in rungs for one in rung.observations]
    effects = np.array([one.effect for one in every])
    between = [
        abs(a.effect - b.effect)
        for rung in rungs
        for a, b in pairwise(sorted(rung.observations, key=lambda one: one.eta))
    ]
    threshold = max(0.1, 3 * float(np.median(between)) / (0.6745 * math.sqrt(2)))
    tamed = tame(effects, threshold)
    z = np.array([math.log(one.eta) - rung.log_best for rung in rungs for one in rung.observations])
    owner = np.repeat(np.arange(len(rungs)), [len(rung.observations) for rung in rungs])
    same = owner[:, None] == owner[None, :]
    errors = control_covariance(every) * same
    offsets = np.linspace(-reach, reach, num_offsets)
    best: tuple[float, Array, Array, float, float] | None = None
    for shape in shape_sizes:
        shared, cross = _shape_kernel(z, z, shape), _shape_kernel(z, offsets, shape)
        for own in own_sizes if len(rungs) > 1 else own_sizes[1:2]:
            covariance = errors + shared + same * (own_level**2 + matern(z, z, own, length))
            root = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(root, tamed)
            squares = float(whitened @ whitened) + noise_guess**2
            degrees = len(z) + 1
            likelihood = -degrees / 2 * math.log(squares) - float(np.log(np.diag(root)).sum())
            if best is None or likelihood > best[0]:
                reduced = np.linalg.solve(root, cross)
                left = _shape_kernel(offsets, offsets, shape) - reduced.T @ reduced
                best = (likelihood, reduced.T @ whitened, left, math.sqrt(squares / degrees), own)
    assert best is not None
    _, mean, left, noise, own = best
    near = np.abs(offsets) < length
    bottom = offsets[near][mean[near].argmin()]
    return Valley(offsets - bottom, mean, left * noise**2, noise, own, threshold)


def _shape_kernel(left: Array, right: Array, size: float) -> Array:
    basis = sum(std**2 * np.outer((left / 2) ** power, (right / 2) ** power) for power, std in enumerate(vague))
    return np.asarray(basis + matern(left, right, size, length))


@dataclass(frozen=True, eq=False)
class PlacePrior:
    """Where the valley may lie before any trial: ``places`` of log eta*, and their probabilities ``weights``."""

    places: Array
    weights: Array


@dataclass(frozen=True, eq=False)
class Place:
    """Where the optimum of a rung may lie, given its trials so far.

    Attributes:
        log_etas: Candidates, ``[candidates]``, evenly spaced.
        curves: Draws of the rung's own response, ``[draws, candidates]``.
        optima: log eta at which each of them is lowest, ``[draws]``.
        noise: Variance of one trial.
    """

    log_etas: Array
    curves: Array
    optima: Array
    noise: float

    def quantile(self, probability: float) -> float:
        """Quantile of log eta*."""
        return float(np.quantile(self.optima, probability))

    @property
    def information(self) -> Array:
        """What a trial at each candidate would tell about log eta*, in nats, ``[candidates]``.

        How much of the variance of what the trial may show goes with the place of the optimum, by a quadratic
        regression over the draws.
        """
        spread = self.optima.std()
        if spread == 0:
            return np.zeros(len(self.log_etas))
        z = (self.optima - self.optima.mean()) / spread
        basis, _ = np.linalg.qr(np.stack([z, z**2 - np.mean(z**2)], axis=1))
        centred = self.curves - self.curves.mean(axis=0)
        total = (centred**2).mean(axis=0) + self.noise
        explained = ((basis.T @ centred) ** 2).sum(axis=0) / len(z)
        return np.asarray(-0.5 * np.log1p(-explained / total))


def locate(
    valley: Valley, observations: Sequence[Observation], prior: PlacePrior, log_etas: Array, *, seed: int = 0
) -> Place:
    """Posterior of a new rung's response and of where it is lowest.

    For every place of the prior's grid the trials seen are compared with the valley put there; the rung's own
    level, depth, width and bend, and the error of its controls, are integrated out. The draws are
    the same for the same arguments.

    Args:
        log_etas: Candidates for the next trial, within the searched range, ascending, evenly spaced.
    """
    rng = np.random.default_rng(seed)
    seen = np.array([math.log(one.eta) for one in observations])
    points, count = np.concatenate([seen, log_etas]), len(seen)
    tamed = tame(np.array([one.effect for one in observations]), valley.threshold)
    errors = valley.noise**2 * control_covariance(observations) if count else np.zeros((0, 0))
    log_weights = np.log(prior.weights) + _log_likelihoods(valley, seen, tamed, errors, prior.places)
    weights = np.exp(log_weights - log_weights.max())
    counts = rng.multinomial(num_draws, weights / weights.sum())
    drawn = np.flatnonzero(counts)
    view = _View(valley, points, prior.places[drawn])
    covariance = view.covariance(len(points))
    mean, left = view.mean[:, count:], covariance[:, count:, count:]
    if count:
        root = np.linalg.cholesky(covariance[:, :count, :count] + errors)
        reduced = np.linalg.solve(root, covariance[:, :count, count:])
        whitened = np.linalg.solve(root, (tamed - view.mean[:, :count])[:, :, None])
        mean = mean + (reduced * whitened).sum(axis=1)
        left = left - np.swapaxes(reduced, 1, 2) @ reduced
    left = left + 1e-6 * valley.noise**2 * np.eye(len(log_etas))
    normal = rng.standard_normal((num_draws, len(log_etas)))
    groups = np.split(normal, np.cumsum(counts[drawn])[:-1])
    curves = np.concatenate([m + n @ r.T for m, n, r in zip(mean, groups, np.linalg.cholesky(left), strict=True)])
    return Place(log_etas, curves, _lowest(log_etas, curves), valley.noise**2)


def _log_likelihoods(valley: Valley, seen: Array, tamed: Array, errors: Array, places: Array) -> Array:
    """Of the trials seen, up to a constant, for each place of the valley, ``[places]``."""
    if not len(seen):
        return np.zeros(len(places))
    view = _View(valley, seen, places)
    root = np.linalg.cholesky(view.covariance(len(seen)) + errors)
    whitened = np.linalg.solve(root, (tamed - view.mean)[:, :, None])[:, :, 0]
    log_determinant = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(-(whitened**2).sum(axis=1) / 2 - log_determinant)


class _View:
    """The shared valley put at every place: moments of a rung's response at points of log eta, ``[places, points]``.

    Values are linear between offsets. The rung has a level and a bend for itself, and may be deeper or wider than
    the others: both add what they change, times their relative spread.
    """

    def __init__(self, valley: Valley, points: Array, places: Array) -> None:
        z = points[None, :] - places[:, None]
        step = valley.offsets[1] - valley.offsets[0]
        place = ((z - valley.offsets[0]) / step).clip(0, num_offsets - 1 - 1e-9)
        self._low = place.astype(int)
        self._share = place - self._low
        self._valley, self._points = valley, points
        self.mean = self._between(valley.mean)
        self._deeper = own_depth * (self.mean - valley.mean.min())
        self._wider = own_width * z * self._between(valley.slope)

    def _between(self, values: Array) -> Array:
        return np.asarray((1 - self._share) * values[self._low] + self._share * values[self._low + 1])

    def covariance(self, count: int) -> Array:
        """Of the first ``count`` points, ``[places, count, count]``."""
        low, share, of = self._low[:, :count], self._share[:, :count], self._valley.covariance
        rows = (1 - share)[:, :, None] * of[low] + share[:, :, None] * of[low + 1]
        place, point = np.arange(len(low))[:, None, None], np.arange(count)[None, :, None]
        columns, part = low[:, None, :], share[:, None, :]
        shared = (1 - part) * rows[place, point, columns] + part * rows[place, point, columns + 1]
        points = self._points[:count]
        own = own_level**2 + matern(points, points, self._valley.own_size, length)
        deeper, wider = self._deeper[:, :count], self._wider[:, :count]
        changed = deeper[:, :, None] * deeper[:, None, :] + wider[:, :, None] * wider[:, None, :]
        return np.asarray(shared + self._valley.noise**2 * own + changed)


def _lowest(log_etas: Array, means: Array) -> Array:
    """Where each curve is lowest, by the parabola through the lowest three points."""
    inner = means.argmin(axis=1).clip(1, len(log_etas) - 2)
    rows = np.arange(len(means))
    before, here, after = (means[rows, inner + shift] for shift in (-1, 0, 1))
    shift = (before - after) / np.maximum(2 * (before - 2 * here + after), 1e-300)
    return np.asarray(log_etas[inner] + shift.clip(-1, 1) * (log_etas[1] - log_etas[0]))
