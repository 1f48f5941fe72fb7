"""``atdiff ui``: the real MLflow server on a sweep's database."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from synthetic_sweep import write_sweep

from pipeline.results import load_result
from pipeline.tracking import Tracker

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_server_shows_the_sweep_on_this_machine_only(tmp_path: Path) -> None:
    workspace = write_sweep(tmp_path)
    result = load_result(workspace)
    tracker = Tracker(workspace, result.space)
    tracker.copy_all(trial.folder for trial in result.trials[:3])
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--root", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        body = fetched(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=synthetic")
        assert '"synthetic"' in body
        assert "<html" in fetched(f"http://127.0.0.1:{port}/")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def fetched(address: str) -> str:
    """The page at an address, once the server is up."""
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
