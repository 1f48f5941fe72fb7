"""Real servers for tests: free ports, and waiting until something answers."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetched(address: str, *, headers: dict[str, str] | None = None, within_sec: float = 240) -> str:
    """The page at an address, once the server is up."""
    deadline = time.monotonic() + within_sec
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=headers or {}), timeout=10) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def refusal(address: str, headers: dict[str, str]) -> int:
    """HTTP status of a request that must fail."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20).close()
    except urllib.error.HTTPError as error:
        return error.code
    raise AssertionError(f"{address} answered")


def wait_until(condition: Callable[[], bool], what: str, within_sec: float = 120) -> None:
    deadline = time.monotonic() + within_sec
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_sec:.0f} s for {what}"
        time.sleep(0.1)


def start_atdiff(arguments: Sequence[str | Path], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A command in a process group of its own, its output in a file."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    inherited = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | environment
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=inherited, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """End a process as a service manager does, and its group where that does not help."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        end(process)
