"""``atdiff ui`` and ``doctor``: looking at what there is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def ui(
    root: Annotated[Path, typer.Option(help="Folder of the sweeps.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Start the MLflow server on the sweeps' database, on this machine only."""
    database = (root / "mlflow.db").resolve()
    if not database.is_file():
        raise ValueError(f"there is no MLflow database at {database}; run a sweep first, or give --root")
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--default-artifact-root", (root / "mlartifacts").resolve().as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    typer.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


def doctor() -> None:
    """Say what is installed, what is missing, and what to do about it."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.doctor import findings

    table = Table("", "what", "found", "what to do", title="atdiff doctor")
    found = list(findings())
    for finding in found:
        table.add_row(_MARKS[finding.state], finding.what, finding.found, finding.remedy)
    Console().print(table)
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(1)


_MARKS = {"good": "[green]✓[/]", "optional": "[yellow]○[/]", "broken": "[red]✗[/]"}
