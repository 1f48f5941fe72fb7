"""How a sweep stands, for the terminal."""

from datetime import datetime, timedelta

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.records import TrialRecord
from pipeline.report.plan_table import duration
from pipeline.status import SweepStatus
from pipeline.tracking import parameters_of


def status_view(stands: SweepStatus) -> Group:
    """A row for each resolution; below, what has been spent, what failed and when the end is expected."""
    running = "at work" if stands.driver else "interrupted"
    table = Table(title=f"{escape(stands.space.name)}: {_driver(stands)}", title_justify="left")
    for heading in ("resolution", "planned", "complete", "stopped", "failed", running):
        table.add_column(heading, justify="left" if heading == "resolution" else "right")
    table.add_column("best so far")
    for study in stands.studies:
        counts = [str(study.states[state]) for state in ("complete", "pruned", "failed", "running")]
        best = "" if study.best is None else _best(study.best)
        table.add_row(f"{study.resolution} px", str(study.planned), *counts, best)
    lines = [_ledger(stands), *_planned(stands), *_failures(stands)]
    return Group(table, *(Text(line) for line in lines))


def _driver(stands: SweepStatus) -> str:
    if stands.driver is not None:
        return f"process {stands.driver} drives it"
    return "finished" if stands.finished else "nobody drives it; the same command continues"


def _best(record: TrialRecord) -> str:
    parameters = parameters_of(record.assignment.config)
    point = f"eta {parameters['eta']:.3g}, K {parameters['K']}, {parameters['norm']}"
    return f"{record.result['metric']:.4g} at {point} ({record.key[:8]})"


def _ledger(stands: SweepStatus) -> str:
    spent, price = stands.spent, stands.space.price
    money = f", {spent.device_hours * price.per_device_hour:,.2f} {price.currency}" if price.per_device_hour else ""
    line = (
        f"spent: {spent.kpass:,.4g} kpass, {stands.flops:.3g} operations, {spent.device_hours:.3g} device hours{money}"
    )
    if stands.finished:
        return line
    if stands.remaining_sec is None:
        return f"{line}; the end is not known yet"
    end = datetime.now().astimezone() + timedelta(seconds=stands.remaining_sec)
    when = f"{end:%H:%M}" if stands.remaining_sec < 43_200 else f"{end:%d %B %H:%M}"
    expected = f"the end is expected at {when}" if stands.driver else "work left for"
    return f"{line}; {expected} ({duration(stands.remaining_sec)}, {stands.slots} at once)"


def _planned(stands: SweepStatus) -> list[str]:
    if stands.plan is None:
        return []
    total = stands.plan["total"]
    hours = total["device_hours"]
    return [f"planned: {total['kpass']:,.4g} kpass" + (f", {hours:.3g} device hours" if hours is not None else "")]


def _failures(stands: SweepStatus) -> list[str]:
    return [f"left out: {record.assignment.role} {record.key[:8]}: {record.reason}" for record in stands.failed]
