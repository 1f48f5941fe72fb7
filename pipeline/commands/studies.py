"""``atdiff sweep``, ``law`` and ``report``: the ladder of studies and what it taught."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

Root = Annotated[Path, typer.Option(help="Folder of the sweeps and of the MLflow database.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        envvar="MLFLOW_TRACKING_URI",
        help="An MLflow server (http://…) or database; without it a file in the root.",
    ),
]
Shards = Annotated[str | None, typer.Option(help="Where the shards lie here, whatever the file says.")]
Finished = Annotated[Path, typer.Argument(help="A sweep's folder, say runs/demo.")]


def sweep(
    space: Annotated[Path, typer.Argument(help="A search space: a Python file, say search_spaces/demo.py.")],
    root: Root = Path("runs"),
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs to use here; all of them without it.")] = None,
    tracking: TrackingUri = None,
    shards: Shards = None,
    storage: Annotated[
        str | None, typer.Option(help="Where Optuna keeps the studies: a URL of sqlite, journal or postgresql.")
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Let a sweep that is there grow: more trials, resolutions, leaders, seeds.")
    ] = False,
    inline: Annotated[bool, typer.Option("--inline", help="Without Ray: one trial after another, here.")] = False,
) -> None:
    """Search every resolution of the ladder, fit the law, predict, report. Continues what was interrupted."""
    import time

    from rich.console import Console

    from pipeline.budget import BudgetSpent
    from pipeline.finish import finish_sweep
    from pipeline.results import load_result
    from pipeline.running import Interrupted
    from pipeline.sweep import run_sweep
    from search_spaces.space import load_space

    console, began = Console(), time.monotonic()
    declared = load_space(space)
    if shards:
        declared = declared.but(shards=shards)
    try:
        result = run_sweep(
            declared,
            root,
            cpus=cpus,
            console=console,
            tracking=tracking,
            storage=storage,
            inline=inline,
            extend=extend,
        )
    except Interrupted:
        raise KeyboardInterrupt from None  # Told by main, with the way to continue.
    except BudgetSpent as spent:
        console.print(f"stopped by the budget of {spent}; raise it and give the same command again to continue")
        result = load_result(workspace_in(root / declared.name))
    workspace = workspace_in(root / declared.name, tracking)
    finish_sweep(result, workspace, f"atdiff sweep {space} --root {root}", console)
    console.print(f"[dim]{time.monotonic() - began:.0f} s in this call[/]")


def report(folder: Finished) -> None:
    """Write the report of a sweep again, finished or not."""
    from rich.console import Console

    from pipeline.report.page import write_report
    from pipeline.results import load_result

    workspace = workspace_in(folder)
    written = write_report(load_result(workspace), workspace, command=f"atdiff report {folder}")
    Console().print(f"report: {written}")


def workspace_in(folder: Path, tracking: str | None = None) -> "Workspace":
    """The workspace of a sweep's folder."""
    from pipeline.workspace import Workspace

    if not (folder / "sweep.json").is_file():
        raise ValueError(f"there is no sweep in {folder}; a sweep's folder holds a sweep.json")
    return Workspace(folder.parent, folder.name, tracking)
