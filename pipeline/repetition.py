"""The leaders of a search again, with further seeds: the worst are rejected on the way."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import mean

from atdiff_core.controls import random_control, replay_control
from atdiff_core.rejection import repetitions, survivors
from pipeline.records import Assignment
from search_spaces.space import Replication, Space, TrialConfig

MetricOf = Callable[[str], float | None]
"""Final metric of a trial by key: infinite where it failed, ``None`` while it is not known."""


def repeated(
    space: Space, base: TrialConfig, leaders: Sequence[Assignment], seeds: Sequence[int], metric_of: MetricOf
) -> Iterator[Assignment]:
    """Yields seed by seed the leaders that are still in question, each with its random control.

    Before every further seed the leaders are ranked by their mean difference to the replay control of the same
    seed, and as many as ``survivors`` says go on. Stops where that depends on trials without a result.

    Args:
        leaders: Search trials, trained with the first seed, the best first; none where all trials failed.
        seeds: Those that the winner has in the end.
    """
    if not leaders:
        return
    alive = list(leaders)
    for place, seed in enumerate(seeds):
        if place:
            scores = [_score(space, base, leader, seeds[:place], metric_of) for leader in alive]
            if None in scores:
                return
            ranked = sorted(zip(scores, range(len(alive)), strict=True), key=lambda pair: (pair[0] or 0.0, pair[1]))
            alive = [alive[number] for _, number in ranked[: survivors(len(leaders), len(seeds), place + 1)]]
        for leader in alive:
            perturbation = leader.config.train.perturbation
            if place:
                yield Assignment(space.trial_config(base, perturbation, seed), "repeat", leader.key)
            yield Assignment(space.trial_config(base, random_control(perturbation), seed), "random", leader.key)


def _score(
    space: Space, base: TrialConfig, leader: Assignment, seeds: Sequence[int], metric_of: MetricOf
) -> float | None:
    """Mean difference to the replay control; ``None`` while any of it is unknown."""
    perturbation = leader.config.train.perturbation
    control = replay_control(perturbation.steps_per_minibatch)
    differences = []
    for seed in seeds:
        pair = [metric_of(space.trial_config(base, scheme, seed).key) for scheme in (perturbation, control)]
        if None in pair:
            return None
        ours, theirs = (math.inf if metric is None else metric for metric in pair)
        differences.append(math.inf if math.isinf(ours) else ours - theirs if math.isfinite(theirs) else ours)
    return mean(differences)


def planned_repetitions(replication: Replication, leaders: int) -> int:
    """Repetitions and random controls of so many leaders, if no two coincide."""
    return sum(2 * runs - 1 for runs in repetitions(leaders, replication.seeds))
