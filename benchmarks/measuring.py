"""Ratios within one run: the arms take turns, so that a busy machine slows all of them."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved(
    arms: Mapping[str, Callable[[], None]], *, rounds: int, before: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Seconds of each call, by arm; every round runs each arm once, after one round of warm-up.

    Args:
        before: Called with an arm's name before each of its calls, while no clock runs.
    """
    for run in arms.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            before(name)
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Median of the rounds' ratios to the base arm, with their quartiles."""
    ratios = sorted(ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True))
    quarter = len(ratios) // 4
    return median(ratios), ratios[quarter], ratios[-1 - quarter]


def machine_line() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
