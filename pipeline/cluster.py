"""Ray: started for a sweep on this machine, or joined where a cluster is given."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 128 * 1024**2


@contextmanager
def ray_session(cpus: int | None = None, *, dashboard: bool = False) -> Iterator[int]:
    """Yields the number of CPUs trials may use.

    The dashboard is what frees the workers of a Ray Train run that is stopped early: trials of
    several workers want it.

    Where ``RAY_ADDRESS`` is set the cluster there is joined and left running; otherwise Ray is
    started on this machine and stopped at the end. A session that exists already is used.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield int(ray.cluster_resources().get("CPU", 1))
        return
    joined = bool(os.environ.get("RAY_ADDRESS"))
    local: dict[str, Any] = (
        {}
        if joined  # "local": another Ray that happens to run on this machine is none of ours.
        else {"address": "local", "num_cpus": cpus or os.cpu_count(), "object_store_memory": OBJECT_STORE_BYTES}
    )
    try:
        ray.init(
            include_dashboard=None if joined else dashboard, log_to_driver=False, logging_level=logging.ERROR, **local
        )
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {error}; "
            "unset RAY_ADDRESS to run on this machine"
        ) from None
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()
