"""Ray: started for a sweep on this machine, or joined where a cluster is given."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.capacity import Demand, Node, bounded, check_fits
from pipeline.listening import require_listener
from pipeline.tokens import accepted_token, head_admits

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # The searcher itself hands out no more than there is room for.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""For a Ray on this machine only: nobody preempts it, and its ranks answer quickly."""
OBJECT_STORE_BYTES = 128 * 1024**2
DRIVER = "atdiff_driver"
"""Custom resource that nodes may offer to carry what drives a trial of several ranks."""
HEAD = "node:__internal_head__"
"""Ray's own resource of the head node, which carries them otherwise: it is no spot instance."""
DRIVER_SHARE = 0.001
ROOM_SEC = 1.0
UNBOUNDED = 1024
"""Nodes of a kind where the autoscaler knows no limit."""


def require_head() -> None:
    """Where ``RAY_ADDRESS`` is set: whether a cluster answers there and takes our token.

    Ray asks a dead address for ten minutes, and does not tell a wrong token from it.

    Raises:
        ValueError: It does not.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    ray = sys.modules.get("ray")  # Not imported here: it looks once whether there are tokens.
    if ":" not in address or address.startswith("ray://") or (ray is not None and ray.is_initialized()):
        return
    require_listener(address, what="Ray cluster", remedy="unset RAY_ADDRESS to run on this machine")
    if os.environ.get("RAY_USE_TLS", "0") == "0":
        accepted_token(f"the Ray cluster at RAY_ADDRESS={address}", partial(head_admits, address))


@contextmanager
def ray_session(cpus: int | None = None, *, dashboard: bool = False) -> Iterator[float]:
    """Yields the number of CPUs trials may use.

    The dashboard is what frees the workers of a Ray Train run that is stopped early: trials of
    several workers want it.

    Where ``RAY_ADDRESS`` is set the cluster there is joined and left running, and the number is
    infinite: nodes come and go. Otherwise Ray is started on this machine and stopped at the end. A
    session that exists already is used.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    require_head()
    import ray

    joined = bool(os.environ.get("RAY_ADDRESS"))

    if ray.is_initialized():
        yield math.inf if joined else ray.cluster_resources().get("CPU", 1)
        return
    if not joined:
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    local: dict[str, Any] = (
        {}
        if joined  # "local": another Ray that happens to run on this machine is none of ours.
        else {"address": "local", "num_cpus": cpus or os.cpu_count(), "object_store_memory": OBJECT_STORE_BYTES}
    )
    try:
        ray.init(
            include_dashboard=None if joined else dashboard, log_to_driver=False, logging_level=logging.ERROR, **local
        )
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        if not joined:
            raise
        said = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} does not take us: {said}; "
            "unset RAY_ADDRESS to run on this machine"
        ) from None
    try:
        yield math.inf if joined else ray.cluster_resources().get("CPU", 1)
    finally:
        ray.shutdown()


def nodes_now() -> list[Node]:
    """Resources of the nodes that are up, in a fixed order."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node["Resources"] for node in sorted(alive, key=lambda node: str(node["NodeID"]))]


def nodes_at_most() -> list[Node] | None:
    """Those that the autoscaler may start; ``None`` where there is none."""
    from ray._private.state import state

    groups = state.get_cluster_config()
    if groups is None or not groups.node_group_configs:
        return None
    most = {group.name: UNBOUNDED if group.max_count < 0 else group.max_count for group in groups.node_group_configs}
    return [dict(group.resources) for group in groups.node_group_configs for _ in range(most[group.name])]


def require_room(demand: Demand, cpus: float) -> None:
    """Refuse trials for which the cluster has no room and never will; see ``check_fits``."""
    check_fits(demand, lambda: bounded(nodes_now(), cpus), nodes_at_most())


def room_for(demand: Demand, cpus: float) -> Callable[[], int]:
    """How many trials to run at a time, counted anew as nodes come and go, at least one.

    Where an autoscaler may start nodes, trials are handed out for those as well: waiting trials are
    what makes it start them.
    """
    at_most = nodes_at_most()
    counted = [0, float("-inf")]

    def room() -> int:
        if time.monotonic() - counted[1] > ROOM_SEC:
            counted[:] = [demand.trials_on(bounded(at_most or nodes_now(), cpus)), time.monotonic()]
        return max(1, int(counted[0]))

    return room


def driver_share() -> dict[str, float]:
    """What reserves the place of a process that drives a trial but does not train: on a safe node."""
    import ray

    return {DRIVER if DRIVER in ray.cluster_resources() else HEAD: DRIVER_SHARE}
