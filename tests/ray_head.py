"""A real Ray head on free ports, with a token."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from servers import ROOT, fetched, free_port

TOKEN = "a-token-for-tests-0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """Attributes:
    dashboard: Its URL.
    gcs: ``host:port`` where drivers join.
    """

    dashboard: str
    gcs: str


@contextmanager
def ray_head() -> Iterator[Head]:
    """``ray start --head`` in the foreground; every process of it is ended, by its id."""
    folder = Path(tempfile.mkdtemp(prefix="rh"))  # Short: Ray puts Unix sockets there.
    dashboard, gcs = free_port(), free_port()
    ports = {"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": free_port()}
    ports |= {"dashboard-agent-listen-port": free_port(), "metrics-export-port": free_port()}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--num-cpus=2"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats", *(f"--{k}={v}" for k, v in ports.items())]
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # Where jobs find their `python`.
    usual = {"PYTHONPATH": str(ROOT / "tests"), "PATH": path, "RAY_worker_niceness": "0"}
    inherited = os.environ | usual | asked
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=inherited, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        try:
            fetched(f"http://127.0.0.1:{dashboard}/api/jobs/", headers=headers)
        except OSError as error:
            raise AssertionError((folder / "head.log").read_text()) from error
        yield Head(f"http://127.0.0.1:{dashboard}", gcs=f"127.0.0.1:{gcs}")
    finally:
        _end(head, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
    ours = _with_descendants({head.pid} | {pid for pid in _parents() if str(folder) in _command_line(pid)})
    head.send_signal(signal.SIGTERM)
    for pid in ours - {head.pid}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait(timeout=60)


def _with_descendants(roots: set[int]) -> set[int]:
    parents, found = _parents(), set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parents() -> dict[int, int]:
    """The parent of every process."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    return parents


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
