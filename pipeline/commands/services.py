"""``atdiff serve`` and ``sync``: MLflow for a team, and bringing it up to date."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.studies import TrackingUri


def serve(
    folder: Annotated[Path, typer.Option(help="For the database, the users, the password and the artifacts.")] = Path(
        "tracking"
    ),
    database: Annotated[
        str | None,
        typer.Option(envvar="ATDIFF_DATABASE", help="postgresql://… or sqlite:///…; without it, see --postgres."),
    ] = None,
    postgres: Annotated[
        bool, typer.Option(help="Run a PostgreSQL of our own in the folder; otherwise a SQLite file there.")
    ] = True,
    artifacts: Annotated[
        str | None, typer.Option(help="A folder or a bucket (s3://…) for pictures and reports; else in the folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    allowed_hosts: Annotated[
        str, typer.Option(help="Names by which people call the server, separated by commas, with ports.")
    ] = "",
    auth: Annotated[bool, typer.Option(help="Ask for a user and a password.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Server processes.")] = 1,
    upgrade: Annotated[bool, typer.Option(help="Migrate a database of an older MLflow; back it up first.")] = False,
) -> None:
    """Run MLflow for a team: a database, an artifact store, a password, and no open door."""
    from contextlib import nullcontext

    from pipeline.postgres import running
    from pipeline.serving import ADMIN, Service, leave_at_sigterm

    folder.mkdir(parents=True, exist_ok=True)
    hosts = tuple(filter(None, (name.strip() for name in allowed_hosts.split(","))))
    store = artifacts or str((folder / "artifacts").resolve())

    def service(address: str) -> Service:
        return Service(folder / "server", address, store, host, port, hosts, auth, workers)

    service("").check()

    leave_at_sigterm()  # So that a service manager's stop also stops PostgreSQL.
    with running(folder / "postgres") if postgres and not database else nullcontext() as own:
        if own:
            typer.echo(f"for sweeps on this machine: --storage '{own.ensure_database('optuna')}'")
        address = own.ensure_database("mlflow") if own else database or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        ready = service(address)
        ready.prepare(upgrade=upgrade)
        with ready.running() as server:
            typer.echo(f"MLflow on http://{host}:{port} (Ctrl-C ends it)")
            if auth:
                kept = ready.password_file
                typer.echo(f"user {ADMIN}, password in {kept if kept.is_file() else 'the environment'}")
            code = server.wait()
    raise typer.Exit(code)


def sync(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep or a comparison, say runs/demo.")],
    tracking: TrackingUri = None,
) -> None:
    """Copy a sweep to MLflow, again or to another one; what is there already is left alone."""
    from pipeline.finish import copy_again
    from pipeline.listening import without_password
    from pipeline.workspace import Workspace

    workspace = Workspace(folder.parent, folder.name, tracking)
    count = copy_again(workspace)
    typer.echo(f"{count} trials of {folder} are in MLflow at {without_password(workspace.tracking_uri)}")
