"""``atdiff ui``: the real MLflow server on a sweep's database."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from servers import fetched, free_port
from synthetic_sweep import write_sweep

from pipeline.results import load_result
from pipeline.tracking import Tracker

pytestmark = pytest.mark.slow


def test_the_server_shows_the_sweep_on_this_machine_only(tmp_path: Path) -> None:
    workspace = write_sweep(tmp_path)
    result = load_result(workspace)
    tracker = Tracker(workspace, result.space)
    tracker.copy_all(trial.folder for trial in result.trials[:3])
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--root", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        body = fetched(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=synthetic")
        assert '"synthetic"' in body
        assert "<html" in fetched(f"http://127.0.0.1:{port}/")
    finally:
        server.terminate()
        server.wait(timeout=60)
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), timeout=30):
        pass  # The server's own processes have ended with the command.
