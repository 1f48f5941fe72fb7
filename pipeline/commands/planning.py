"""``atdiff plan`` and ``status``: what a sweep will cost, and how it stands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.studies import Finished, Root

if TYPE_CHECKING:
    from pipeline.calibration import Rates
    from search_spaces.space import Space

Json = Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")]
WATCH_SEC = 2.0


def plan(
    space: Annotated[Path, typer.Argument(help="A search space: a Python file, say search_spaces/demo.py.")],
    root: Root = Path("runs"),
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs that trials may use; all of them without it.")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A Ray cluster file: trials run on the CPUs or GPUs that its workers declare.")
    ] = None,
    sustained_tflops: Annotated[
        float | None,
        typer.Option(help="Instead of measuring here: 10^12 operations a second that one device sustains.", min=1e-6),
    ] = None,
    measure: Annotated[bool, typer.Option(help="Train and judge here for a few seconds a resolution.")] = True,
    as_json: Json = False,
) -> None:
    """Say what a sweep will cost before anything starts: passes, operations, hours, money, wall-clock."""
    import json

    from rich.console import Console

    from atdiff_core.files import write_json
    from pipeline.plan import check_memory, planned
    from pipeline.report.plan_table import print_plan
    from pipeline.slots import slots_of
    from pipeline.workspace import Workspace
    from search_spaces.space import load_space

    console, declared = Console(), load_space(space)
    check_memory(declared)
    slots, device = slots_of(declared.workers, declared.resources, cpus=cpus, cluster=cluster)
    rates = _rates(declared, root, sustained_tflops, measure, Console(stderr=True))
    made = planned(declared, slots=slots, device=device, rates=rates)
    write_json(Workspace(root, declared.name).plan, made.as_json())
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        print_plan(made, console)


def _rates(space: "Space", root: Path, tflops: float | None, measure: bool, console: object) -> "dict[int, Rates]":
    from functools import partial

    from rich.console import Console

    from atdiff_core.perturbations import FreeAT
    from atdiff_core.train_state import Execution
    from pipeline.calibration import calibrate, sustained
    from pipeline.driver import open_rung

    if tflops is not None:
        return {resolution: sustained(space, resolution, tflops) for resolution in space.ladder}
    if not measure:
        return {}
    assert isinstance(console, Console)
    rates = {}
    for resolution in space.ladder:
        rung = open_rung(
            space.shards, space.network.at(resolution), partial(space.base_config, resolution), prompts=space.prompts
        )
        point = space.domains.drawn(lambda name, domain: domain.at(0.5))
        perturbation = space.domains.perturbation(point, space.dimension(resolution))
        assert isinstance(perturbation, FreeAT)
        with console.status(f"measuring at {resolution} px"):
            rates[resolution] = calibrate(rung, perturbation, root / "cache", Execution())
    return rates


def status(
    folder: Finished,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking, until the sweep ends or Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show how a sweep stands, from any terminal, whether its driver runs or is dead."""
    import json
    import time

    from rich.console import Console
    from rich.live import Live

    from pipeline.commands.studies import workspace_in
    from pipeline.report.status_table import status_view
    from pipeline.status import status_of

    workspace = workspace_in(folder)
    stands = status_of(workspace)
    if as_json:
        print(json.dumps(stands.as_json(), indent=2))
        return
    if not watch:
        Console().print(status_view(stands))
        return
    with Live(status_view(stands), auto_refresh=False) as live:
        while stands.driver is not None:
            time.sleep(WATCH_SEC)
            stands = status_of(workspace)
            live.update(status_view(stands), refresh=True)
