"""``atdiff replay``: one trial again, compared with what it was."""

from typing import Annotated

import typer

from pipeline.commands.studies import Finished


def replay(
    folder: Finished,
    trial: Annotated[str, typer.Argument(help="The beginning of the trial's key; its folder has that name.")],
) -> None:
    """Run one trial again from its key, from its start, and compare every weight and figure with the first run."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.commands.studies import workspace_in
    from pipeline.replay import Replayed, trial_named
    from pipeline.replay import replay as replayed

    console, workspace = Console(), workspace_in(folder)
    record = trial_named(workspace, trial)
    with console.status(f"{record.assignment.role} {record.key[:8]}") as waiting:
        ended = None
        for event in replayed(workspace, record):
            if isinstance(event, Replayed):
                ended = event
            else:
                waiting.update(f"{record.key[:8]}: {event.kpass:.4g} of {event.budget_kpass:.4g} kpass")
    assert ended is not None
    table = Table("figure", "then", "now", title=f"{record.assignment.role} {record.key[:16]}", title_justify="left")
    for each in ended.figures:
        style = "" if each.before == each.now else "yellow"
        table.add_row(each.name, f"{each.before:.8g}", f"{each.now:.8g}", style=style)
    console.print(table)
    if ended.identical:
        console.print("the same to the last bit" + ("" if ended.largest_difference is None else ", weights included"))
    else:
        console.print(f"largest difference of a weight: {ended.largest_difference}")
    console.print(f"the replay lies in {ended.folder}")
