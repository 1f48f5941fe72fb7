"""``atdiff doctor --cluster``: whether every node of a cluster can do its part."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.cluster import ray_session
from pipeline.doctor import Finding, State
from pipeline.nodes import NodeReport, Silent, ask_nodes, differing

CLOCK_SEC = 2.0
SAME_SOFTWARE = "use one image, or the same pip install, on every node"


def cluster_findings(root: Path | None, tracking: str | None) -> Iterator[Finding]:
    """Joins the cluster of ``RAY_ADDRESS`` and yields what its nodes say.

    Args:
        root: Folder that every node must be able to write.
        tracking: Address of the MLflow server.

    Raises:
        ValueError: No cluster answers.
    """
    with ray_session():
        answers = ask_nodes(root, _server(tracking), with_gpus=True, with_clock=True)
        reports = [answer for answer in answers if isinstance(answer, NodeReport)]
        yield Finding("nodes", "good", f"{len(reports)} of {len(answers)} answer")
        for silent in (answer for answer in answers if isinstance(answer, Silent)):
            yield Finding(f"node {silent.name}", "broken", silent.reason, "look at its log: ray logs, or replace it")
        for report in reports:
            yield from _node(report, root, tracking)
        for package, versions in differing(reports).items():
            told = "; ".join(f"{version} on {', '.join(names)}" for version, names in versions.items())
            yield Finding(f"version of {package}", "broken", told, SAME_SOFTWARE)
        if not differing(reports) and reports:
            same = ", ".join(f"{name} {version}" for name, version in reports[0].versions.items())
            yield Finding("versions", "good", f"the same on all: {same}")
        yield _gpus(reports)
    if tracking:
        yield _tracking(tracking)


def _node(report: NodeReport, root: Path | None, tracking: str | None) -> Iterator[Finding]:
    if root is not None:
        remedy = "mount the same storage on every node, writable for the user that runs Ray"
        if report.storage_error:
            yield Finding(f"{report.name}: storage", "broken", report.storage_error, remedy)
        else:
            yield Finding(f"{report.name}: storage", "good", f"writes {root}")
    if report.tracking_error:
        remedy = "only the head must reach it; open the port if trials shall too"
        yield Finding(f"{report.name}: MLflow", "optional", f"{tracking}: {report.tracking_error}", remedy)
    if not report.token:
        remedy = "start Ray on every node with RAY_AUTH_MODE=token"
        yield Finding(f"{report.name}: token", "broken", "lets in anybody", remedy)
    if abs(report.clock_sec) > CLOCK_SEC + report.clock_error_sec:
        found = f"{report.clock_sec:+.1f} s (± {report.clock_error_sec:.2f} s) from here"
        yield Finding(f"{report.name}: clock", "broken", found, "run chrony or systemd-timesyncd")


def _gpus(reports: list[NodeReport]) -> Finding:
    names = [name for report in reports for name in report.gpus]
    if not names:
        return Finding("GPUs", "optional", "none on any node", "none needed up to 16 px; larger images want CUDA")
    counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    state: State = "good" if len(set(names)) == 1 else "optional"
    return Finding("GPUs", state, counted, "" if state == "good" else "trials of several workers wait for the slowest")


def _tracking(tracking: str) -> Finding:
    from pipeline.listening import without_password
    from pipeline.tracking_client import connect

    try:
        connect(tracking)
    except ValueError as error:
        return Finding("MLflow", "broken", str(error), "atdiff serve")
    return Finding("MLflow", "good", without_password(tracking))


def _server(tracking: str | None) -> str | None:
    return tracking if tracking and tracking.startswith("http") else None
