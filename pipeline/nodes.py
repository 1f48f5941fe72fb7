"""What every node of a cluster says of itself: versions, GPUs, storage, clock."""

import importlib.metadata
import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PACKAGES = ("ray", "torch", "diffusers", "optuna", "mlflow")
ANSWER_SEC = 20.0
CLOCK_READINGS = 5


@dataclass(frozen=True)
class NodeReport:
    """One node's own words.

    Attributes:
        name: Host name and address.
        versions: Of Python, atdiff's own revision excepted, and of the packages that must agree.
        gpus: Names of the GPUs that torch sees.
        storage_error: Why the folder cannot be written; empty where it can, or none was given.
        tracking_error: Why the tracking server cannot be reached; empty likewise.
        token: Whether the node asks for a token.
        clock_sec: Its clock minus ours; ``clock_error_sec`` is the most by which that may be wrong.
    """

    name: str
    versions: dict[str, str]
    gpus: tuple[str, ...] = ()
    storage_error: str = ""
    tracking_error: str = ""
    token: bool = False
    clock_sec: float = 0.0
    clock_error_sec: float = 0.0


@dataclass(frozen=True)
class Silent:
    """A node that gave no answer in time.

    Attributes:
        name: Its address.
        reason: What Ray says.
    """

    name: str
    reason: str


class _Witness:
    """Runs on a node; imports nothing of ours, so that it also works where our code does not."""

    def report(
        self, address: str, root: str | None, mark: str, tracking: str | None, with_gpus: bool
    ) -> dict[str, Any]:
        return {
            "name": f"{socket.gethostname()} ({address})",
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "gpus": _gpus() if with_gpus else (),
            "storage_error": _storage_error(root, mark) if root else "",
            "tracking_error": _tracking_error(tracking) if tracking else "",
            "token": os.environ.get("RAY_AUTH_MODE") == "token",
        }

    def seen(self, root: str, marks: list[str]) -> list[str]:
        """Those of the other nodes' files that this node sees."""
        return [mark for mark in marks if (Path(root) / mark).is_file()]

    def clean(self, root: str, mark: str) -> None:
        (Path(root) / mark).unlink(missing_ok=True)

    def clock(self) -> float:
        return time.time()


def ask_nodes(
    root: Path | None, tracking: str | None = None, *, with_gpus: bool = False, with_clock: bool = False
) -> list[NodeReport | Silent]:
    """Every living node's report, all asked at once; takes at most about 25 s.

    Args:
        root: Folder that every node must be able to write, and in which each must see the others' files.
        tracking: Address of an MLflow server that nodes should reach.
    """
    witness: Any = ray.remote(num_cpus=0)(_Witness)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    session = uuid.uuid4().hex[:8]
    marks = [f".atdiff-{session}-{index}" for index in range(len(nodes))]
    actors: list[Any] = [
        witness.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    folder = None if root is None else str(root)
    asked = [
        actor.report.remote(node["NodeManagerAddress"], folder, mark, tracking, with_gpus)
        for node, actor, mark in zip(nodes, actors, marks, strict=True)
    ]
    deadline = time.monotonic() + ANSWER_SEC
    answers = [_answer(each, deadline) for each in asked]
    reports: list[NodeReport | Silent] = []
    written = [mark for mark, answer in zip(marks, answers, strict=True) if _wrote(answer)]
    for node, actor, answer in zip(nodes, actors, answers, strict=True):
        if isinstance(answer, str):
            reports.append(Silent(node["NodeManagerAddress"], answer))
            continue
        if folder and _wrote(answer):
            answer["storage_error"] = _unseen(actor, folder, written, deadline)
        if with_clock:
            answer["clock_sec"], answer["clock_error_sec"] = _clock(actor)
        reports.append(NodeReport(**answer))
    for actor, mark, answer in zip(actors, marks, answers, strict=True):
        if folder and _wrote(answer):
            _answer(actor.clean.remote(folder, mark), deadline + 5)
        ray.kill(actor)
    return reports


def require_fit(root: Path) -> None:
    """Refuse a cluster with mixed versions, or where a node cannot use the root.

    A node that does not answer in time is none of it: nodes come and go, and Ray watches them.

    Raises:
        ValueError: With the node and what it says.
    """
    reports = [report for report in ask_nodes(root) if isinstance(report, NodeReport)]
    for report in reports:
        if report.storage_error:
            raise ValueError(
                f"the node {report.name} cannot use {root}: {report.storage_error}; "
                "give a --root on storage that all nodes share"
            )
    for package, versions in differing(reports).items():
        told = "; ".join(f"{version} on {', '.join(names)}" for version, names in versions.items())
        raise ValueError(f"the nodes have different versions of {package} ({told}); use one image on all of them")


def differing(reports: Sequence[NodeReport]) -> dict[str, dict[str, list[str]]]:
    """What is not of one version on all nodes: from package to version to the nodes that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for report in reports:
        for package, version in report.versions.items():
            found.setdefault(package, {}).setdefault(version, []).append(report.name)
    return {package: versions for package, versions in found.items() if len(versions) > 1}


def _answer(asked: "ray.ObjectRef[Any]", deadline: float) -> Any:
    """What a node answers, or why it does not, in a line."""
    try:
        return ray.get(asked, timeout=max(0.1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return f"no answer in {ANSWER_SEC:.0f} s"
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]


def _wrote(answer: Any) -> bool:
    return isinstance(answer, dict) and not answer["storage_error"]


def _unseen(actor: Any, root: str, marks: list[str], deadline: float) -> str:
    seen = _answer(actor.seen.remote(root, marks), deadline)
    if isinstance(seen, str):
        return seen
    missing = len(marks) - len(seen)
    return f"it does not see the files of {missing} other nodes there: the storage is not shared" if missing else ""


def _clock(actor: Any) -> tuple[float, float]:
    """Offset of the node's clock, from the reading with the shortest way; half that way is its error."""
    best = (0.0, float("inf"))
    for _ in range(CLOCK_READINGS):
        sent = time.time()
        read = ray.get(actor.clock.remote(), timeout=5)
        came = time.time()
        if (came - sent) / 2 < best[1]:
            best = (read - (sent + came) / 2, (came - sent) / 2)
    return best


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _storage_error(root: str, mark: str) -> str:
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / mark).write_text(mark)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _tracking_error(address: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
