"""How far a measured distance would move with other samples of the same network.

The reference stays as it is: it is the same for all networks, and so is its error. What is
left is the error of the evaluation, to be told apart from the noise of training.
"""

import math

from torch import Tensor

MOST_SAMPLES = 2000
"""More samples have their error inferred from the first ones: it falls with the root of their number."""
KERNEL_REFERENCE = 5000  # Reference images that the kernel's error is computed with; more change little.


def kernel_error(generated: Tensor, reference: Tensor) -> float:
    """Standard error of the kernel distance (cubic polynomial kernel), delete-one jackknife in closed form.

    Args:
        generated: Features ``[images, num_features]``, at least 3.
        reference: Features ``[images, num_features]``.
    """
    if len(generated) < 3:
        return math.nan
    ours, theirs = generated[:MOST_SAMPLES].double(), reference[:KERNEL_REFERENCE].double()
    count = len(ours)
    within = (ours @ ours.T / ours.shape[1] + 1) ** 3
    rows = within.sum(dim=1) - within.diagonal()
    across = ((ours @ theirs.T / ours.shape[1] + 1) ** 3).mean(dim=1)
    without = (rows.sum() - 2 * rows) / ((count - 1) * (count - 2)) - 2 * (across.sum() - across) / (count - 1)
    return jackknife_error(without) * math.sqrt(count / len(generated))


def jackknife_error(without: Tensor) -> float:
    """Standard error from the values with one group left out at a time."""
    count = len(without)
    return float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())
