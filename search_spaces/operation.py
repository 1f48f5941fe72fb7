"""How a sweep is run and paid for: nothing here changes what any of its trials computes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atdiff_core.config import Config

SearcherName = Literal["auto", "gp", "tpe", "random", "sobol"]
GP_TRIALS = 100


class Price(Config):
    """What an hour of one device costs.

    Attributes:
        per_device_hour: A device is a GPU, or a CPU core where trials run on the CPU.
        currency: Printed behind amounts.
    """

    per_device_hour: Annotated[float, Field(ge=0)] = 0.0
    currency: str = "EUR"


class Budget(Config):
    """Where a sweep stops; zero is no limit. It continues once the limit has been raised.

    A trial begins only if what has been spent, what trials at work have still to spend and what
    it would spend itself stay within every limit. Passes are known in advance; hours and money
    are estimated from the trials before, and nothing runs on past a limit.

    Attributes:
        kpass: Thousand passes of training, work done twice after a crash included.
        device_hours: Hours of devices that trials hold.
        money: In the currency of the price.
    """

    kpass: Annotated[float, Field(ge=0)] = 0.0
    device_hours: Annotated[float, Field(ge=0)] = 0.0
    money: Annotated[float, Field(ge=0)] = 0.0

    @property
    def limited(self) -> bool:
        return bool(self.kpass or self.device_hours or self.money)


class Constraints(Config):
    """Points that are not worth a trial: they are drawn again, and the searcher learns why.

    Attributes:
        min_reach: Smallest (K - 1) alpha / eta. Below 1 the projection never acts, and eta is dead.
        max_reach: Largest; far above 1 every step ends on the boundary. Zero: no limit.
        max_memory_gb: Of one training step, estimated before anything starts. Zero: no limit.
    """

    min_reach: Annotated[float, Field(ge=0)] = 0.0
    max_reach: Annotated[float, Field(ge=0)] = 0.0
    max_memory_gb: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_reach and self.max_reach <= self.min_reach:
            raise ValueError(f"max_reach must exceed min_reach={self.min_reach:g}, got {self.max_reach:g}")
        return self

    def violations(self, reach: float) -> dict[str, float]:
        """How far a reach is outside, by constraint; positive is outside (Optuna's sign)."""
        outside = {}
        if self.min_reach:
            outside["min_reach"] = self.min_reach - reach
        if self.max_reach:
            outside["max_reach"] = reach - self.max_reach
        return outside
