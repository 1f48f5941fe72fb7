"""A plan for the terminal."""

from datetime import timedelta

from rich.console import Console
from rich.table import Table

from pipeline.plan import Plan, row_flops, step_bytes


def print_plan(plan: Plan, console: Console) -> None:
    """A row for each kind of trial, the totals, and what they rest on."""
    table = Table(title=f"{plan.space.name}: what the sweep will cost", title_justify="left")
    for heading in ("resolution", "trials", "of", "kpass each", "evaluations each", "operations", "device hours"):
        table.add_column(heading, justify="left" if heading in ("resolution", "of") else "right")
    for row in plan.rows:
        hours = "" if row.sec is None else f"{row.trials * row.workers * row.sec / 3600:.3g}"
        name = f"{row.resolution} px"
        table.add_row(
            name, str(row.trials), row.kind, f"{row.kpass:.4g}", f"{1000 * row.knfe:,.0f}",
            f"{row_flops(plan.space, row):.3g}", hours,
        )  # fmt: skip
    console.print(table)
    for line in lines_of(plan):
        console.print(line, highlight=False)


def lines_of(plan: Plan) -> list[str]:
    """The totals in words."""
    lines = [
        f"{plan.trials} trials, {plan.kpass:,.4g} kpass expected ({plan.at_most_kpass:,.4g} if none is stopped early), "
        f"{plan.flops:.3g} operations."
    ]
    if plan.device_hours is None or plan.wall_clock_sec is None:
        lines.append("No hours: nothing was measured.")
    else:
        price = plan.price
        money = f", {plan.money:,.2f} {price.currency}" if price.per_device_hour else " (no price is declared)"
        lines.append(f"{plan.device_hours:.3g} hours of a {plan.device}{money}.")
        lines.append(
            f"About {duration(plan.wall_clock_sec)} from start to end, {plan.slots} trials at once of "
            f"{plan.rows[0].workers} worker{'s' if plan.rows[0].workers > 1 else ''}."
        )
    memory = ", ".join(f"{step_bytes(plan.space, r) / 1e9:.2g} GB at {r} px" for r in plan.space.ladder)
    return [*lines, f"A training step needs about {memory}."]


def duration(sec: float) -> str:
    """Say ``2 min`` or ``1 day, 3:20 h``."""
    if sec < 90:
        return f"{sec:.0f} s"
    if sec < 5400:
        return f"{sec / 60:.0f} min"
    whole = timedelta(minutes=round(sec / 60))
    hours, minutes = divmod(whole.seconds // 60, 60)
    days = f"{whole.days} day{'s' if whole.days > 1 else ''}, " if whole.days else ""
    return f"{days}{hours}:{minutes:02d} h"
