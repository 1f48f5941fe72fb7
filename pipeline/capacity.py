"""How many trials a cluster has room for, so that they never wait for each other half started."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.resources import Resources, Workers, worker_range

Node = Mapping[str, float]
"""Resources of one node in total, used or not."""
WAIT_SEC = 20.0
"""How long nodes that are still joining are waited for before a trial is called too large."""


@dataclass(frozen=True)
class Demand:
    """What one trial asks for.

    Attributes:
        workers: Ranks, or the least and the most of them.
        resources: Of each rank, and how they are placed.
    """

    workers: Workers
    resources: Resources

    def ranks_on(self, node: Node) -> int:
        """Ranks that one node has room for."""
        wanted = self.resources.per_worker
        fitting = min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items())
        return min(fitting, 1) if self.resources.placement == "STRICT_SPREAD" else fitting

    def trials_on(self, nodes: Sequence[Node]) -> int:
        """Trials that fit side by side, each with all the ranks it may have; one if it fits shrunk."""
        least, most = worker_range(self.workers)
        ranks = sum(map(self.ranks_on, nodes))
        if self.resources.placement == "STRICT_SPREAD":
            ranks = self._spread_ranks(nodes, most)
        return ranks // most or int(ranks >= least)

    def _spread_ranks(self, nodes: Sequence[Node], most: int) -> int:
        """Ranks of several trials, none of which has two on one node."""
        shared = self.__class__(self.workers, self.resources.but(placement="SPREAD"))
        rooms = [shared.ranks_on(node) for node in nodes]
        trials = 0
        while sum(min(room, trials + 1) for room in rooms) >= (trials + 1) * most:
            trials += 1
        return trials * most or sum(room > 0 for room in rooms)

    def __str__(self) -> str:
        least, most = worker_range(self.workers)
        ranks = f"{most}" if least == most else f"{least} to {most}"
        each = " and ".join(f"{amount:g} {name}" for name, amount in self.resources.per_worker.items())
        spread = " on nodes of their own" if self.resources.placement == "STRICT_SPREAD" else ""
        return f"{ranks} worker{'s' * (most > 1)}{spread}, each with {each}"


def check_fits(
    demand: Demand,
    nodes_now: Callable[[], Sequence[Node]],
    nodes_at_most: Sequence[Node] | None,
    *,
    wait_sec: float | None = None,
) -> None:
    """Refuse trials that the cluster can never run.

    Args:
        nodes_now: The nodes that are up.
        nodes_at_most: Those that an autoscaler may start as well, where there is one.

    Raises:
        ValueError: After ``wait_sec`` (``WAIT_SEC``), in which nodes may still join.
    """
    if nodes_at_most is not None and demand.trials_on(nodes_at_most):
        return
    patience = WAIT_SEC if wait_sec is None else wait_sec
    deadline = time.monotonic() + (0 if nodes_at_most is not None else patience)
    while not demand.trials_on(nodes_now()):
        if time.monotonic() >= deadline:
            nodes = nodes_at_most or nodes_now()
            has = _listed(nodes, demand.resources.per_worker)
            raise ValueError(
                f"a trial needs {demand}; the cluster has {has}: add nodes, or lower workers or resources in the space"
            )
        time.sleep(0.5)


def _listed(nodes: Sequence[Node], names: Mapping[str, float]) -> str:
    if not nodes:
        return "no nodes"
    each = [", ".join(f"{node.get(name, 0.0):g} {name}" for name in names) for node in nodes]
    counted = {text: each.count(text) for text in each}
    shown = list(counted.items())[:4]
    more = f" and {len(counted) - 4} other kinds" if len(counted) > 4 else ""
    return "; ".join(f"{count} node{'s' * (count > 1)} with {text}" for text, count in shown) + more


def bounded(nodes: Sequence[Node], cpus: float) -> list[Node]:
    """The nodes as far as they may be used, where ``cpus`` CPUs are allowed in all."""
    left = cpus
    used: list[Node] = []
    for node in nodes:
        take = min(left, node.get("CPU", 0.0))
        used.append({**node, "CPU": take})
        left -= take
    return used
