"""``atdiff submit``, ``jobs`` and ``stop``: sweeps on a cluster, from anywhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.studies import Shards, TrackingUri

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from pipeline.extension import Declared

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard, say http://HEAD:8265; else RAY_API_SERVER_ADDRESS, else this machine."),
]
NoToken = Annotated[bool, typer.Option("--no-token", help="Take a cluster that lets in anybody.")]


def submit(
    space: Annotated[Path, typer.Argument(help="A search space or a comparison, inside the working tree.")],
    root: Annotated[Path, typer.Option(help="Folder of the sweeps on storage that every node of the cluster sees.")],
    further: Annotated[
        list[str] | None, typer.Argument(help="After --, further options of `atdiff sweep` or `compare`.")
    ] = None,
    address: Address = None,
    shards: Shards = None,
    tracking: TrackingUri = None,
    tree: Annotated[Path, typer.Option(help="The working tree to send, without its data.")] = Path(),
    wait: Annotated[bool, typer.Option(help="Show the job's output and end with its exit code.")] = True,
    no_token: NoToken = False,
) -> None:
    """Run a sweep or a comparison on a cluster; given again, join the job that runs or continue one that failed."""
    import shlex
    import tempfile

    from pipeline.jobs import Submission, dashboard_address, open_cluster
    from pipeline.jobs import submit as start
    from pipeline.listening import without_password
    from pipeline.working_tree import commit_of, pack

    if not root.is_absolute():
        raise ValueError(f"--root must be absolute, on storage that every node sees, got {root}")
    if tracking and without_password(tracking) != tracking:
        raise ValueError("a password in --tracking would be shown to all who list jobs; set it on the head instead")
    if not space.resolve().is_relative_to(tree.resolve()):
        raise ValueError(f"{space} is not in the working tree {tree.resolve()}; give --tree")
    cluster = open_cluster(dashboard_address(address), may_be_open=no_token)
    declared, verb = _declared(space)
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "tree.zip"
        count = pack(tree.resolve(), package)
        words = _command(verb, space.resolve().relative_to(tree.resolve()), root, shards, tracking, further or [])
        command = shlex.join(words)
        metadata = {"atdiff": declared.name, "commit": commit_of(tree), "key": declared.but(shards="").key[:16]}
        job = start(cluster, Submission(_job_name(declared, root, further or []), command, package, metadata))
    if job.fresh:
        typer.echo(f"job {job.id}: {count} files sent; {command}", err=True)
    else:
        typer.echo(f"job {job.id} is there already; nothing new was started", err=True)
    if wait:
        raise typer.Exit(_shown(cluster, job.id))


def jobs(address: Address = None, no_token: NoToken = False) -> None:
    """List the jobs of a cluster, the newest first."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from pipeline.jobs import dashboard_address, open_cluster

    cluster = open_cluster(dashboard_address(address), may_be_open=no_token)
    table = Table("job", "status", "started", "minutes", "command")
    for job in sorted(cluster.list_jobs(), key=lambda job: -(job.start_time or 0)):
        began, ended = (
            (job.start_time or 0) / 1000,
            (job.end_time / 1000 if job.end_time else datetime.now().timestamp()),
        )
        minutes = f"{(ended - began) / 60:.1f}" if began else ""
        started = f"{datetime.fromtimestamp(began):%Y-%m-%d %H:%M:%S}" if began else ""
        table.add_row(job.submission_id or job.job_id, str(job.status), started, minutes, job.entrypoint)
    Console().print(table)


def stop(
    job: Annotated[str, typer.Argument(help="The job, as `atdiff jobs` lists it.")],
    address: Address = None,
    no_token: NoToken = False,
) -> None:
    """Stop a job; the same `atdiff submit` continues it."""
    from pipeline.jobs import dashboard_address, open_cluster
    from pipeline.jobs import stop as end

    cluster = open_cluster(dashboard_address(address), may_be_open=no_token)
    typer.echo(f"job {job}: {end(cluster, job)}")


def _shown(cluster: "JobSubmissionClient", job: str) -> int:
    """Print a job's output as it comes; its exit code. Ctrl-C leaves the job alone."""
    from pipeline.jobs import exit_code, follow

    try:
        for text in follow(cluster, job):
            typer.echo(text, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on; `atdiff stop {job}` stops it", err=True)
        return 130
    code = exit_code(cluster, job)
    if code:
        typer.echo(f"job {job} ended with exit code {code}; the same command continues it", err=True)
    return code


def _declared(file: Path) -> "tuple[Declared, str]":
    """What a file declares, and the command that runs it."""
    from search_spaces.comparison import Comparison
    from search_spaces.loading import definitions
    from search_spaces.space import Space

    defined = definitions(file, "search space")
    space, comparison = defined.get("space"), defined.get("comparison")
    if isinstance(space, Space):
        return space, "sweep"
    if isinstance(comparison, Comparison):
        return comparison, "compare"
    raise ValueError(f"{file} must define `space = Space(...)` or `comparison = Comparison(...)`")


def _command(
    verb: str, file: Path, root: Path, shards: str | None, tracking: str | None, further: list[str]
) -> list[str]:
    words = ["python", "-m", "pipeline.cli", verb, str(file), "--root", str(root)]
    words += ["--shards", shards] if shards else []
    words += ["--tracking", tracking] if tracking else []
    return words + further


def _job_name(declared: "Declared", root: Path, further: list[str]) -> str:
    """One name for one configuration in one root: the same submission has the same name."""
    import hashlib
    import re

    digest = hashlib.sha256(f"{declared.but(shards='').key} {root} {further}".encode()).hexdigest()[:12]
    return f"atdiff-{re.sub(r'[^A-Za-z0-9_-]+', '-', declared.name)}-{digest}"
