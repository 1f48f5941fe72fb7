"""How many trials run at once: on this machine, or on the cluster that a Ray file declares."""

import os
from pathlib import Path
from typing import Any

from search_spaces.resources import Resources, Workers, worker_range


def slots_of(
    workers: Workers, resources: Resources, *, cpus: int | None = None, cluster: Path | None = None
) -> tuple[int, str]:
    """Trials at once, and what device each of their workers holds.

    Args:
        workers: Ranks of each trial; with a range, all that it may have.
        resources: Of each rank.
        cpus: CPUs of this machine that may be used; all of them without it.
        cluster: A Ray cluster file, used instead of this machine.
    """
    if cluster is None:
        devices, device = cpus or os.cpu_count() or 1, "CPU core"
    else:
        devices, device = _declared(cluster)
    most = worker_range(workers)[1]
    each = resources.gpus if device == "GPU" and resources.gpus else resources.cpus
    if devices < most * each:
        raise ValueError(f"a trial has {most} workers of {each:g} {device}s, there are {devices}; lower workers")
    return int(devices / (most * each)), device


def _declared(cluster: Path) -> tuple[int, str]:
    """Devices that all workers of a Ray cluster file have together."""
    import yaml

    try:
        content = yaml.safe_load(cluster.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{cluster} is not valid YAML: {str(error).splitlines()[0]}") from None
    types = content.get("available_node_types") if isinstance(content, dict) else None
    if not isinstance(types, dict):
        raise ValueError(f"{cluster} declares no available_node_types; give a Ray cluster file, or --cpus")
    counts = {device: _count(content, types, device) for device in ("GPU", "CPU")}
    for device, name in (("GPU", "GPU"), ("CPU", "CPU core")):
        if counts[device]:
            return counts[device], name
    silent = [name for name in types if name != content.get("head_node_type")]
    raise ValueError(
        f"{cluster} does not say what its workers have (resources of {', '.join(silent)}); "
        'write them down, say resources: {"CPU": 48, "GPU": 4}'
    )


def _count(content: dict[str, Any], types: dict[str, Any], device: str) -> int:
    total = 0
    for name, node in types.items():
        nodes = 1 if name == content.get("head_node_type") else node.get("max_workers", content.get("max_workers", 0))
        total += nodes * int((node.get("resources") or {}).get(device, 0))
    return total
