"""How the trial metric responds to the strength of the attack, and where it is best.

A study at one resolution has trained trials of different strength ``eta`` (amplitude per
element). The *effect* of a trial is log(its metric) - log(metric of its replay control): the
same K, seed and passes with delta = 0. Negative is better than the control.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Verdict = Literal["optimum", "flat", "falling", "rising", "not_better"]

flat_rate = 0.05  # F test: how often a flat response may pass for a curve
min_interior = 0.90  # posterior probability that eta* is inside the searched range
min_probability = 0.95  # that each end is worse than eta*, and that eta* is better than the control

min_etas = 4
smallest_noise = 1e-4  # The F test sees nothing below: keeps rounding errors from being a response.
noise_guess = 0.02  # of log metric; the prior of the noise, worth one observation
bend_sizes = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # in units of the noise
bend_lengths = (0.5, 1.0)  # in units of half the searched range
grid = np.linspace(-1, 1, 101)  # log eta, scaled so that the searched range is [-1, 1]


@dataclass(frozen=True)
class Observation:
    """One trial against its replay control.

    Attributes:
        eta: Strength, an amplitude per element, > 0.
        effect: log(metric / metric of the control); 0 is as good as the control.
        seed: Trials of one seed share the error of their control.
        weight: Relative precision (1 / variance) of the trial, > 0; 0.25 for twice the noise.
    """

    eta: float
    effect: float
    seed: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.eta < math.inf and 0 < self.weight < math.inf):
            raise ValueError(f"eta and weight must be > 0 and finite, got {self.eta} and {self.weight}")
        if not math.isfinite(self.effect):
            raise ValueError(f"effect must be finite, got {self.effect} at eta = {self.eta:g}: leave failed trials out")


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best strength at one resolution, or why there is none.

    Attributes:
        verdict: ``flat``: not told apart from a constant. ``falling``, ``rising``: the best may
            lie at or beyond the largest, or smallest, eta searched. ``not_better``: a
            minimum, but not told apart from the control.
        reason: The verdict in one sentence, with its numbers.
        eta: Posterior median of eta*, amplitude per element, within the searched range.
        low, high: 95 % interval of eta*.
        log_std: Standard deviation of log eta*.
        samples: Draws of log eta*, ``[draws]``.
        effect: Posterior median of the effect at ``eta``.
        effect_low, effect_high: Its 95 % interval.
    """

    verdict: Verdict
    reason: str
    eta: float
    low: float
    high: float
    log_std: float
    samples: Array = field(repr=False)
    effect: float
    effect_low: float
    effect_high: float

    @property
    def found(self) -> bool:
        """Whether a power law may use it."""
        return self.verdict == "optimum"


@dataclass(frozen=True, eq=False)
class Response:
    """Effect against strength at one resolution, ready to plot; arrays have shape ``[101]``.

    Attributes:
        etas: Log-spaced grid over the searched range.
        mean: Centre of the posterior of the effect (its median).
        low, high: 95 % band, pointwise.
        observations: What was fitted, in order of eta.
        optimum: Where the effect is lowest.
    """

    etas: Array
    mean: Array
    low: Array
    high: Array
    observations: tuple[Observation, ...]
    optimum: Optimum


def fit_response(observations: Sequence[Observation], *, seed: int = 0, draws: int = 2000) -> Response:
    """The response to log eta and its minimum, each with its posterior.

    The model is Bayesian and conjugate (normal-inverse-gamma), a quadratic that may bend::

        tamed effect = a + b u + c u^2 + bend(u) + control[seed] + noise,    u ~ log eta

    * *Quadratic*: flat prior on a, b, c (the limit of a wide normal), so a parabola keeps its
      exact minimum. *Bend*: a Gaussian process with a Matern 5/2 kernel, 0 to 16 times the
      noise; its size and length are averaged over a grid by marginal likelihood. Without it a
      parabola invents minima: the effect tends to zero at small eta (the control) and blows up
      at large eta, and a parabola through such a hockey stick, or a fall that levels off, turns.
    * *Control*: its error is shared by all trials of a seed and as large as that of one trial,
      so leaders repeated with a lucky seed do not dig a dip.
    * *Noise*: one variance / weight, inverse-gamma prior worth one observation at 0.02.
      Nuisance settings (K, norm, reach) count as noise.
    * *Tamed*: above a threshold t the effect becomes t (1 + log(effect / t)), for large eta raise
      the metric by orders of magnitude. Being monotone it moves no minimum, and effects are
      reported untamed. t is 0.1, or three times the noise between neighbours if that is more.

    Each draw of the posterior is a curve over the searched range, and its eta* is where it is
    lowest. There is an optimum if all of these hold; the first that fails is the verdict:

    1. an F test of the quadratic against a constant rejects at 5 % (else ``flat``);
    2. eta* is inside the range with probability >= 90 %, and each end of the range is worse than
       the median eta* with probability >= 95 %, which tells a valley from a plateau (else
       ``falling`` or ``rising``);
    3. the effect there is below zero with probability >= 95 % (else ``not_better``).

    Raises:
        ValueError: Fewer than 4 different eta, or fewer than 100 draws.
    """
    if draws < 100:
        raise ValueError(f"draws must be >= 100 to give quantiles, got {draws}")
    ordered = tuple(sorted(observations, key=lambda one: (one.eta, one.seed, one.effect, one.weight)))
    trials = _Trials.of(ordered)
    curves = _draw_curves(trials, np.random.default_rng(seed), draws)
    low, mean, high = untame(np.quantile(curves, [0.025, 0.5, 0.975], axis=0), trials.threshold)
    return Response(np.exp(trials.log_eta(grid)), mean, low, high, ordered, _judge(trials, curves))


def tame(effect: Array, threshold: float) -> Array:
    """The effect up to ``threshold``, its logarithm above, joined with equal slopes."""
    return np.where(effect <= threshold, effect, threshold * (1 + np.log(np.maximum(effect, threshold) / threshold)))


def untame(tamed: Array, threshold: float) -> Array:
    """Inverse of ``tame``."""
    return np.where(tamed <= threshold, tamed, threshold * np.exp(np.maximum(tamed / threshold - 1, 0)))


@dataclass(frozen=True, eq=False)
class _Trials:
    """Observations scaled for the fit: ``u`` in [-1, 1], error covariance in units of the noise."""

    u: Array
    tamed: Array
    covariance: Array
    threshold: float
    centre: float
    half_range: float

    @classmethod
    def of(cls, ordered: Sequence[Observation]) -> "_Trials":
        num_etas = len({one.eta for one in ordered})
        if num_etas < min_etas:
            counts = f"{len(ordered)} trials at {num_etas}"
            raise ValueError(f"a response needs {min_etas} different eta or more, got {counts}: search more strengths")
        log_eta = np.log([one.eta for one in ordered])
        effect = np.array([one.effect for one in ordered])
        between_neighbours = float(np.median(np.abs(np.diff(effect)))) / (0.6745 * math.sqrt(2))
        threshold = max(0.1, 3 * between_neighbours)
        centre, half_range = (log_eta[0] + log_eta[-1]) / 2, (log_eta[-1] - log_eta[0]) / 2
        covariance = control_covariance(ordered)
        u = (log_eta - centre) / half_range
        return cls(u, tame(effect, threshold), covariance, threshold, float(centre), float(half_range))

    def log_eta(self, u: Array) -> Array:
        return np.asarray(self.centre + self.half_range * u)


def control_covariance(observations: Sequence[Observation]) -> Array:
    """Covariance of effects in units of the noise: own noise / weight, and the shared error of each seed's control."""
    seeds = np.array([one.seed for one in observations])
    return np.asarray(np.diag([1 / one.weight for one in observations]) + (seeds[:, None] == seeds[None, :]))


def _quadratic(u: Array) -> Array:
    return np.stack([np.ones_like(u), u, u**2], axis=1)


def _flat_p_value(trials: _Trials) -> float:
    """F test of a quadratic against a constant; with two numerator degrees of freedom its tail is a power."""
    root = np.linalg.cholesky(trials.covariance)
    target, design = np.linalg.solve(root, trials.tamed), np.linalg.solve(root, _quadratic(trials.u))
    residuals = [target - part @ np.linalg.lstsq(part, target, rcond=None)[0] for part in (design[:, :1], design)]
    freedom = len(target) - 3
    flat, curved = (float(residual @ residual) + freedom * smallest_noise**2 for residual in residuals)
    return float((curved / flat) ** (freedom / 2))


def _draw_curves(trials: _Trials, rng: np.random.Generator, draws: int) -> Array:
    """Posterior draws of the tamed effect on the grid, ``[draws, 101]``."""
    bends = [(0.0, 1.0)] + [(size, length) for length in bend_lengths for size in bend_sizes if size > 0]
    fits = [_fit_bend(trials, size, length) for size, length in bends]
    log_weights = np.array([log_likelihood for log_likelihood, _, _, _ in fits])
    weights = np.exp(log_weights - log_weights.max())
    bounds = np.round(draws * np.cumsum(weights) / weights.sum()).astype(int)
    freedom = len(trials.u) - 2
    curves = []
    for (_, mean, covariance, squares), count in zip(fits, np.diff(bounds, prepend=0), strict=True):
        if count:
            jitter = 1e-8 * np.trace(covariance) / len(grid) * np.eye(len(grid))
            noise = np.sqrt(squares / rng.chisquare(freedom, count))
            normal = rng.standard_normal((count, len(grid)))
            curves.append(mean + noise[:, None] * (normal @ np.linalg.cholesky(covariance + jitter).T))
    return np.concatenate(curves)


def _fit_bend(trials: _Trials, size: float, length: float) -> tuple[float, Array, Array, float]:
    """Log marginal likelihood; mean and covariance / noise variance on the grid; sum of squares.

    Source:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, Eqs. 2.41, 2.42 and
        2.45: a process with basis functions under a vague prior.
    """
    u = trials.u
    root = np.linalg.cholesky(trials.covariance + matern(u, u, size, length))
    target = np.linalg.solve(root, trials.tamed)
    design = np.linalg.solve(root, _quadratic(u))
    cross = np.linalg.solve(root, matern(u, grid, size, length))
    information = design.T @ design
    inverse = np.linalg.inv(information)
    coefficients = inverse @ (design.T @ target)
    residual = target - design @ coefficients
    unexplained = _quadratic(grid) - cross.T @ design
    mean = _quadratic(grid) @ coefficients + cross.T @ residual
    covariance = matern(grid, grid, size, length) - cross.T @ cross + unexplained @ inverse @ unexplained.T
    squares = float(residual @ residual) + noise_guess**2
    log_determinant = 2 * float(np.log(np.diag(root)).sum()) + float(np.linalg.slogdet(information)[1])
    return -(log_determinant + (len(u) - 2) * math.log(squares)) / 2, mean, covariance, squares


def matern(left: Array, right: Array, size: float, length: float) -> Array:
    """Matern 5/2 covariance between two sets of points."""
    distance = math.sqrt(5) * np.abs(left[:, None] - right[None, :]) / length
    return np.asarray(size**2 * (1 + distance + distance**2 / 3) * np.exp(-distance))


def _lowest(curves: Array) -> Array:
    """Where each curve is lowest; between grid points, by the parabola through the lowest three."""
    best = curves.argmin(axis=1)
    inner = best.clip(1, len(grid) - 2)
    before, here, after = (curves[np.arange(len(curves)), inner + shift] for shift in (-1, 0, 1))
    shift = (before - after) / np.maximum(2 * (before - 2 * here + after), 1e-300)
    between: Array = grid[inner] + shift.clip(-0.5, 0.5) * (grid[1] - grid[0])
    return np.where(best == inner, between, grid[best])


def _judge(trials: _Trials, curves: Array) -> Optimum:
    samples = _lowest(curves)
    low, middle, high = np.quantile(samples, [0.025, 0.5, 0.975])
    at_best = curves[:, int(np.abs(grid - middle).argmin())]
    verdict, reason = _verdict(trials, curves, samples, at_best)
    effect_low, effect, effect_high = untame(np.quantile(at_best, [0.025, 0.5, 0.975]), trials.threshold)
    eta_low, eta, eta_high = np.exp(trials.log_eta(np.array([low, middle, high])))
    etas = float(eta), float(eta_low), float(eta_high), float(samples.std() * trials.half_range)
    effects = float(effect), float(effect_low), float(effect_high)
    return Optimum(verdict, reason, *etas, trials.log_eta(samples), *effects)


def _verdict(trials: _Trials, curves: Array, samples: Array, at_best: Array) -> tuple[Verdict, str]:
    p_value = _flat_p_value(trials)
    if p_value >= flat_rate:
        return "flat", (
            f"the response cannot be told from flat: {len(trials.u)} trials at {len(set(trials.u))} eta, "
            f"F test of a quadratic against a constant p = {p_value:.2g} (needed: below {flat_rate:g})"
        )
    smallest, eta, largest = np.exp(trials.log_eta(np.array([-1, np.median(samples), 1])))
    at_smallest, at_largest = float(np.mean(samples <= grid[0])), float(np.mean(samples >= grid[-1]))
    falls, turns_up = (float(np.mean(curves[:, end] > at_best)) for end in (0, -1))
    if at_smallest + at_largest > 1 - min_interior or min(falls, turns_up) < min_probability:
        falling = (turns_up, -at_largest) < (falls, -at_smallest)
        share, worse = (at_largest, turns_up) if falling else (at_smallest, falls)
        edge = f"still falling, or level, at the largest eta searched ({largest:.3g})"
        edge = edge if falling else f"rising, or level, at the smallest eta searched ({smallest:.3g})"
        return "falling" if falling else "rising", (
            f"the response is {edge}: {share:.0%} of the posterior puts the optimum at that edge, and {worse:.0%} "
            "finds the edge worse than the best (needed: 10% or less at the edges, and 95% or more)"
        )
    better = float(np.mean(at_best < 0))
    where = f"there is a minimum at eta = {eta:.3g}, between the ends of the search ({smallest:.3g} to {largest:.3g})"
    if better < min_probability:
        return "not_better", f"{where}, but only {better:.0%} of the posterior puts it below the control (needed: 95%)"
    return "optimum", f"{where}, and {better:.0%} of the posterior puts it below the control"
