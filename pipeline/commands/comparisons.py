"""``atdiff compare``: training schemes against each other, from one base model."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.studies import Root, Shards, TrackingUri


def compare(
    file: Annotated[Path, typer.Argument(help="A comparison: a Python file, say search_spaces/fashion_arms.py.")],
    root: Root = Path("runs"),
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs to use here; all of them without it.")] = None,
    tracking: TrackingUri = None,
    shards: Shards = None,
) -> None:
    """Fine-tune one base model by every arm and seed, and tell the arms apart. Continues what was interrupted."""
    import time

    from rich.console import Console

    from pipeline.comparison import run_comparison
    from pipeline.finish import finish_comparison
    from pipeline.running import Interrupted
    from pipeline.workspace import Workspace
    from search_spaces.comparison import load_comparison

    console, began = Console(), time.monotonic()
    declared = load_comparison(file)
    if shards:
        declared = declared.but(shards=shards)
    try:
        result = run_comparison(declared, root, cpus=cpus, console=console, tracking=tracking)
    except Interrupted:
        raise KeyboardInterrupt from None  # Told by main, with the way to continue.
    workspace = Workspace(root, declared.name, tracking)
    finish_comparison(result, workspace, f"atdiff compare {file} --root {root}", console)
    console.print(f"[dim]{time.monotonic() - began:.0f} s in this call[/]")
