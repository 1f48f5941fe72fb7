"""What may vary in a study, and how a sampled point becomes a perturbation."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atdiff_core.balls import BALLS, Ball, Norm, ball_of, norm_named
from atdiff_core.config import Config
from atdiff_core.perturbations import FreeAT

Point = dict[str, float | int | str]
"""One value for each searched name, as a searcher samples it."""


class Range(Config):
    """An interval of real numbers, searched on a logarithmic scale if ``log``."""

    kind: Literal["range"] = "range"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"a range needs low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low > 0, got {self.low}")
        return self

    def at(self, place: float) -> float:
        """The value at a place in [0, 1] between the ends."""
        if self.log:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)


class Choice(Config):
    """One of several values; a single value fixes it."""

    kind: Literal["choice"] = "choice"
    values: Annotated[tuple[int | float | str, ...], Field(min_length=1)]

    def at(self, place: float) -> int | float | str:
        """The value at a place in [0, 1), every value having the same share."""
        return self.values[int(place * len(self.values))]


Domain = Annotated[Range | Choice, Field(discriminator="kind")]
Suggest = Callable[[str, Domain], float | int | str]
"""Chooses the value of a name from its domain."""


def log_range(low: float, high: float) -> Range:
    return Range(low=low, high=high, log=True)


def choice(*values: int | float | str) -> Choice:
    return Choice(values=values)


class SearchedDomains(Config):
    """What every kind of search space can tell about itself."""

    @property
    def conditional(self) -> bool:
        """Whether some names exist only for some values of others."""
        return False

    @property
    def unit(self) -> Literal["reach", "raw"]:
        """Whether radii are amplitudes per element (``reach``) or the papers' norms (``raw``)."""
        raise NotImplementedError

    def drawn(self, suggest: Suggest) -> Point:
        """A point whose values are suggested name by name; a name may depend on values before it."""
        return {name: suggest(name, domain) for name, domain in self.searched().items()}

    def searched(self) -> dict[str, Domain]:
        """The domains that really vary, by name."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        return {name: d for name, d in named.items() if isinstance(d, Range) or len(d.values) > 1}

    def fixed(self) -> Point:
        """The names that have one value only."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        return {name: d.values[0] for name, d in named.items() if isinstance(d, Choice) and len(d.values) == 1}

    @model_validator(mode="after")
    def _vary(self) -> Self:
        if not self.searched():
            raise ValueError(f"a search space needs at least one domain that varies, got only {self.fixed()}")
        return self

    def replay_counts(self) -> tuple[int, ...]:
        """Every K that a trial of this space can have."""
        raise NotImplementedError

    def norms(self) -> tuple[Norm, ...]:
        """Every norm that a trial of this space can have."""
        norm: Choice = getattr(self, "norm")  # noqa: B009
        return tuple(norm_named(name) for name in norm.values)

    def eta_range(self) -> tuple[float, float]:
        """The radii searched, lowest and highest, as they are written (amplitude, or raw)."""
        eta: Domain = getattr(self, "eta")  # noqa: B009
        if isinstance(eta, Range):
            return eta.low, eta.high
        numbers = [float(value) for value in eta.values]
        return min(numbers), max(numbers)


def _counts(domain: Domain) -> tuple[int, ...]:
    if isinstance(domain, Range):
        return tuple(range(round(domain.low), round(domain.high) + 1))
    return tuple(int(value) for value in domain.values)


def _check_replays_and_norms(num_replays: Domain, norm: Choice) -> None:
    if min(_counts(num_replays)) < 2:
        raise ValueError(f"num_replays must be >= 2 for an ascent to happen, got {min(_counts(num_replays))}")
    for name in norm.values:
        norm_named(name)


class ReachDomains(SearchedDomains):
    """Free-AT by radius, replays, reach and norm, in amplitude per element.

    Attributes:
        eta: Radius of the ball.
        num_replays: K, at least 2.
        reach: rho = (K - 1) alpha / eta. Below 1 the boundary cannot be reached. The step
            alpha is derived from it, so that no part of the space is dead.
        norm: ``l1``, ``l2`` or ``linf``.
    """

    kind: Literal["reach"] = "reach"
    eta: Domain
    num_replays: Domain = Choice(values=(3,))
    reach: Domain = Choice(values=(1.0,))
    norm: Choice = Choice(values=("l2",))

    @property
    def unit(self) -> Literal["reach", "raw"]:
        return self.kind

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_replays_and_norms(self.num_replays, self.norm)
        return self

    def replay_counts(self) -> tuple[int, ...]:
        return _counts(self.num_replays)

    def perturbation(self, point: Point, dimension: int) -> FreeAT:
        """The scheme at a point; the searched names of ``point`` complete the fixed ones."""
        values = {**self.fixed(), **point}
        eta, replays = float(values["eta"]), int(values["num_replays"])
        step_size = float(values["reach"]) * eta / (replays - 1)
        return FreeAT(ball=ball_of(str(values["norm"]), eta), num_replays=replays, step_size=step_size)


class RawDomains(SearchedDomains):
    """Free-AT by the papers' own numbers: raw norms of delta, images in [-1, 1].

    Attributes:
        alpha: Norm of one ascent step (0.1 for CIFAR-10 in AT_Diff).
        eta: Radius of the ball, as a norm. Where it exceeds (K - 1) alpha it does nothing.
        num_replays: K, at least 2.
        norm: ``l1``, ``l2`` or ``linf``.
    """

    kind: Literal["raw"] = "raw"
    alpha: Domain
    eta: Domain
    num_replays: Domain = Choice(values=(3,))
    norm: Choice = Choice(values=("l2",))

    @property
    def unit(self) -> Literal["reach", "raw"]:
        return self.kind

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_replays_and_norms(self.num_replays, self.norm)
        return self

    def replay_counts(self) -> tuple[int, ...]:
        return _counts(self.num_replays)

    def perturbation(self, point: Point, dimension: int) -> FreeAT:
        values = {**self.fixed(), **point}
        norm = norm_named(values["norm"])
        unit = BALLS[norm].raw(1.0, dimension)
        ball: Ball = ball_of(norm, float(values["eta"]) / unit)
        return FreeAT(ball=ball, num_replays=int(values["num_replays"]), step_size=float(values["alpha"]) / unit)
