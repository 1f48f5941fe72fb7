"""The same work on many parts: one after the other in this process, or as Ray tasks."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, TypeVar

Shared = TypeVar("Shared")
Item = TypeVar("Item")

WORTHWHILE_SAMPLES = 20_000
"""Fewer are done before Ray has started."""


def chosen_workers(asked: int, *, samples: int) -> int:
    """How many processes are to share the work; 1 is this process alone, without Ray.

    Args:
        asked: What the user wants; 0 for all CPUs of the machine or cluster, where there are
            enough samples for it and Ray is installed.

    Raises:
        ValueError: If several are asked for and Ray is not installed.
    """
    if asked < 0:
        raise ValueError(f"workers must be >= 0, got {asked}")
    with_ray = find_spec("ray") is not None
    if asked > 1 and not with_ray:
        raise ValueError(f"{asked} workers need Ray: pip install 'atdiff[sweep]', or --workers 1")
    if asked:
        return asked
    if samples < WORTHWHILE_SAMPLES or not with_ray:
        return 1
    return 2**16 if os.environ.get("RAY_ADDRESS") else os.cpu_count() or 1


def in_parts(
    function: Callable[[Shared, int], Iterator[Item]], shared: Shared, parts: int, *, workers: int, gpus: float = 0
) -> Iterator[tuple[int, Item]]:
    """What ``function(shared, part)`` yields for each part below ``parts``, with the part's number.

    Items of one part keep their order; parts are mingled where several workers share them. Each
    part is tried again when its process is lost, from its start.

    Args:
        gpus: That one part needs.

    Raises:
        Exception: Whatever the function raises, as it raised it.
    """
    if workers == 1:
        for part in range(parts):
            for item in function(shared, part):
                yield part, item
        return
    from pipeline.cluster import ray_session

    with ray_session(min(workers, os.cpu_count() or 1)) as cpus:
        yield from _as_tasks(function, shared, parts, at_once=int(min(workers, cpus)), gpus=gpus)


def _as_tasks(
    function: Callable[[Shared, int], Iterator[Item]], shared: Shared, parts: int, *, at_once: int, gpus: float
) -> Iterator[tuple[int, Item]]:
    import ray
    from ray.exceptions import RayTaskError

    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming")(_one_part)
    reference = ray.put(shared)
    waiting = deque(range(parts))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            part = waiting.popleft()
            running[task.remote(function, reference, part)] = part
        ready: Any = ray.wait(list(running), num_returns=1)[0][0]
        try:
            item: Item = ray.get(next(ready))
        except StopIteration:
            del running[ready]
            continue
        except RayTaskError as error:
            raise error.cause from None
        yield running[ready], item


def _one_part(function: Callable[[Any, int], Iterator[Any]], shared: Any, part: int) -> Iterator[Any]:
    yield from function(shared, part)
