"""``atdiff ui`` and ``doctor``: looking at what there is."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.jobs import NoToken
from pipeline.commands.studies import TrackingUri


def ui(
    root: Annotated[Path, typer.Option(help="Folder of the sweeps.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Start the MLflow server on the sweeps' database, on this machine only."""
    from pipeline.serving import leave_at_sigterm, serving

    database = (root / "mlflow.db").resolve()
    if not database.is_file():
        raise ValueError(f"there is no MLflow database at {database}; run a sweep first, or give --root")
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--default-artifact-root", (root / "mlartifacts").resolve().as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    typer.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    leave_at_sigterm()
    with serving(command, environment) as server:
        code = server.wait()
    raise typer.Exit(code)


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="Ask every node of the cluster instead.")] = False,
    address: Annotated[
        str | None, typer.Option(help="With --cluster: its dashboard (http://HEAD:8265); else RAY_ADDRESS.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="With --cluster: a folder that every node must write.")] = None,
    tracking: TrackingUri = None,
    no_token: NoToken = False,
) -> None:
    """Say what is installed, what is missing, and what to do about it."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.doctor import findings

    if cluster and address:
        raise typer.Exit(_doctor_as_job(address, root, tracking, no_token))
    if cluster:
        from pipeline.cluster_doctor import cluster_findings

        os.environ.setdefault("RAY_ADDRESS", "auto")
        found = list(cluster_findings(root, tracking))
    else:
        found = list(findings())
    table = Table("", "what", "found", "what to do", title="atdiff doctor")
    for finding in found:
        table.add_row(_MARKS[finding.state], finding.what, finding.found, finding.remedy)
    Console().print(table)
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(1)


def _doctor_as_job(address: str, root: Path | None, tracking: str | None, no_token: bool) -> int:
    """Ask from the head, which reaches every node, whatever this machine reaches."""
    import tempfile
    import uuid

    from pipeline.jobs import Submission, dashboard_address, exit_code, follow, open_cluster, submit
    from pipeline.working_tree import pack

    client = open_cluster(dashboard_address(address), may_be_open=no_token)
    words = ["python", "-m", "pipeline.cli", "doctor", "--cluster"]
    words += ["--root", str(root)] if root else []
    words += ["--tracking", tracking] if tracking else []
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "tree.zip"
        pack(Path.cwd(), package)
        name = f"atdiff-doctor-{uuid.uuid4().hex[:8]}"
        job = submit(client, Submission(name, shlex.join(words), package, {})).id
    for text in follow(client, job):
        typer.echo(text, nl=False)
    return exit_code(client, job)


_MARKS = {"good": "[green]✓[/]", "optional": "[yellow]○[/]", "broken": "[red]✗[/]"}
