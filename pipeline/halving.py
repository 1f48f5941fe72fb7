"""Asynchronous successive halving (Li et al., arXiv:1810.05934): who goes on past a rung."""

from collections.abc import Sequence

import numpy as np


def goes_on(metric: float, earlier: Sequence[float], keep: float) -> bool:
    """Whether a trial belongs to the best share ``keep`` of those judged at the rung before it.

    Args:
        metric: Smaller is better.
        earlier: Metrics of the trials that reached the rung before; without any it goes on.
        keep: Share that goes on, in (0, 1).
    """
    return not earlier or metric <= float(np.quantile(earlier, keep))
