"""How often each of the leading trials is repeated when one after the other is rejected."""

import math


def repetitions(arms: int, most: int) -> tuple[int, ...]:
    """Runs of every leader in order of rejection, the winner last: ``[arms]``.

    Successive rejects: seeds are spent on the leaders that are still in question. The k-th to be rejected
    gets 2 / (arms + 1 - k) of the runs of the last two, which get ``most`` each; among all
    schedules of as many runs this one nearly minimises the chance of losing the best arm.

    Args:
        arms: Leaders, at least 1.
        most: Runs of the winner, the one that chose it included, at least 1.

    Source:
        Audibert and Bubeck, Best Arm Identification in Multi-Armed Bandits, COLT 2010, Fig. 3,
        scaled so that the last phase has ``most`` runs.
    """
    if arms < 1 or most < 1:
        raise ValueError(f"rejection needs at least 1 leader and 1 run of it, got {arms} and {most}")
    return tuple(
        most if rejected >= arms - 1 else max(1, math.ceil(2 * most / (arms + 1 - rejected)))
        for rejected in range(1, arms + 1)
    )


def survivors(arms: int, most: int, run: int) -> int:
    """How many leaders are still in question before their ``run``-th run, counted from 1."""
    return sum(times >= run for times in repetitions(arms, most))
