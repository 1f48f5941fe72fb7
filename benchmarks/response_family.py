"""Simulated responses whose optimum is known, with the noise and the bias of real fine-tuning.

The log metric of a trial at strength eta (x = log eta), trained for a fraction t of its budget::

    level + 0.15 (1 - t) + seed + gain(t) effect(x + drift (1 - t)) + setting + noise / sqrt(t)

``seed`` is shared by all trials of a seed, their control included; ``setting`` is the effect of the
nuisance choices (K, reach). Half-trained trials show a weaker effect, and their optimum lies elsewhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
Shape = Literal["parabola", "basin", "blow-up", "hockey", "flat", "falling", "rising", "plateau"]
VALLEYS: tuple[Shape, ...] = ("parabola", "basin", "blow-up", "hockey")
MONOTONE: tuple[Shape, ...] = ("falling", "rising", "plateau")


def _parabola(z: Array) -> Array:
    return 0.8 * z**2 - 1


def _basin(z: Array) -> Array:
    return np.asarray(0.25 - 1.25 * np.exp(-(z**2) / 2))


def _blow_up(z: Array) -> Array:
    strength = np.exp(z)
    return np.asarray(np.log1p(0.1 * strength**3) - 2 * strength / (1 + strength**2))


def _hockey(z: Array) -> Array:
    return np.asarray(-np.exp(-((z / 1.3) ** 2) / 2) + 1.5 * np.log1p(np.exp(2.5 * (z - 1.0))))


RAW: dict[Shape, Callable[[Array], Array]] = {
    "parabola": _parabola,
    "basin": _basin,
    "blow-up": _blow_up,
    "hockey": _hockey,
}


def _minimum(shape: Shape) -> tuple[float, float]:
    found = minimize_scalar(lambda z: float(RAW[shape](np.array(z))), bounds=(-1.5, 1.5), method="bounded")
    return float(found.x), float(found.fun)


MINIMA = {shape: _minimum(shape) for shape in VALLEYS}


def standard(shape: Shape, z: Array) -> Array:
    """A response of depth 1: lowest at z = 0 where it is a valley, in units of its width; -1 there."""
    if shape in RAW:
        at, value = MINIMA[shape]
        return RAW[shape](z + at) / abs(value)
    if shape == "plateau":
        return np.asarray(-1 / (1 + np.exp(-3 * (z + 0.5))))
    return {"flat": np.zeros_like(z), "falling": -0.5 * z, "rising": 0.5 * z}[shape]


@dataclass(frozen=True)
class Response:
    """The truth at one resolution; ``log_best`` is log eta*, meaningless where there is no valley."""

    shape: Shape
    log_best: float
    depth: float
    width: float
    noise: float
    setting: float
    gain: float = 0.7
    drift: float = 0.25

    def effect(self, log_eta: Array, trained: float = 1.0) -> Array:
        """Expected log(metric / metric of the replay control)."""
        gain = self.gain + (1 - self.gain) * (2 * trained - 1)
        z = (log_eta + self.drift * 2 * (1 - trained) - self.log_best) / self.width
        return gain * self.depth * standard(self.shape, z)


@dataclass(frozen=True)
class Family:
    """How ladders are drawn.

    Attributes:
        log_low, log_high: Range of log eta searched.
        scatter: Standard deviation of log eta* about its law.
        noise: Lowest and highest standard deviation of one trial's log metric.
        depth: Lowest and highest effect at the optimum.
        width: Lowest and highest width of the valley in log eta.
        own_shape: Relative standard deviation of depth and width between resolutions.
        exponents: Those of D that are drawn from.
    """

    log_low: float = math.log(0.003)
    log_high: float = math.log(0.6)
    scatter: float = 0.15
    noise: tuple[float, float] = (0.01, 0.03)
    depth: tuple[float, float] = (0.15, 0.4)
    width: tuple[float, float] = (0.7, 1.2)
    own_shape: float = 0.1
    exponents: tuple[float, ...] = (0.0, -0.15, -0.3, -0.5)


@dataclass(frozen=True)
class Ladder:
    """One simulated study: the truth at every resolution."""

    exponent: float
    log_at_middle: float
    sides: tuple[int, ...]
    responses: tuple[Response, ...]

    def log_law(self, side: int) -> float:
        """log eta* of the law, without the scatter."""
        middle = math.exp(float(np.mean([math.log(each) for each in self.sides])))
        return self.log_at_middle + self.exponent * 2 * math.log(side / middle)


def draw_ladder(
    rng: np.random.Generator, *, sides: tuple[int, ...] = (8, 16, 32, 64), shape: Shape | None = None, family: Family
) -> Ladder:
    """A ladder of one shape whose optimum follows a power law up to scatter."""
    shape = shape or VALLEYS[rng.integers(len(VALLEYS))]
    exponent = family.exponents[rng.integers(len(family.exponents))]
    middle = (family.log_low + family.log_high) / 2 + rng.uniform(-0.4, 0.4)
    noise, depth, width = (rng.uniform(*span) for span in (family.noise, family.depth, family.width))
    bare = Ladder(exponent, middle, sides, ())
    responses = tuple(
        Response(
            shape,
            bare.log_law(side) + family.scatter * rng.standard_normal(),
            depth * math.exp(family.own_shape * rng.standard_normal()),
            width * math.exp(family.own_shape * rng.standard_normal()),
            noise,
            0.5 * noise,
        )
        for side in sides
    )
    return Ladder(exponent, middle, sides, responses)


class Bench:
    """Runs trials at one resolution. A trial is a function of its settings and seed, as real training is."""

    def __init__(self, response: Response, key: tuple[int, ...]) -> None:
        """``key`` decides all noise."""
        self.response, self._key = response, key
        rng = np.random.default_rng(key)
        self._level = float(rng.normal(0, 0.3))
        self._settings = response.setting * rng.standard_normal(2)

    def control(self, seed: int) -> "Curve":
        """The replay control."""
        return self._train(lambda trained: 0.0, seed, 0)

    def trial(self, log_eta: float, seed: int, setting: int = 0) -> "Curve":
        def effect(trained: float) -> float:
            return float(self.response.effect(np.array(log_eta), trained)) + float(self._settings[setting])

        return self._train(effect, seed, 1 + 2 * abs(round(log_eta * 1e9)) + setting)

    def _train(self, effect: Callable[[float], float], seed: int, name: int) -> "Curve":
        noise = self.response.noise
        common = self._level + float(np.random.default_rng([*self._key, seed]).normal(0, 2 * noise))
        late, own = np.random.default_rng([*self._key, seed, name]).normal(0, noise, 2)
        early = 0.7 * float(late) + math.sqrt(2 - 0.49) * float(own)
        return Curve(common + 0.15 + effect(0.5) + early, common + effect(1.0) + float(late))


@dataclass(frozen=True)
class Curve:
    """Log metric of one trial at half and at the whole budget."""

    half: float
    full: float
