"""What a running trial tells: judgements, and its progress between them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Judged:
    """The trial metric after ``kpass``; ``final`` once the whole budget is spent."""

    kpass: float
    metric: float
    final: bool


@dataclass(frozen=True)
class Trained:
    """Progress between judgements, for progress bars."""

    kpass: float
    budget_kpass: float
