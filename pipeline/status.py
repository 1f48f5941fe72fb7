"""How a sweep stands, read from its folder: the same while its driver runs and when it is dead."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from atdiff_core.costs import network_costs
from atdiff_core.files import read_json
from pipeline.history import events_of
from pipeline.ledger import Ledger, figures_of
from pipeline.plan import KIND_OF, SEC_BETWEEN_TRIALS, PlannedTrials, makespan, planned
from pipeline.records import Status, TrialRecord, load_record
from pipeline.spending import Spent
from pipeline.workspace import Workspace
from search_spaces.space import Space


@dataclass(frozen=True)
class StudyStatus:
    """One resolution.

    Attributes:
        planned: Trials of the whole study, the base model included.
        states: How many trials are in each state; asked for and not yet begun is in none.
        best: The search trial with the smallest final metric.
    """

    resolution: int
    planned: int
    states: Counter[Status]
    best: TrialRecord | None


@dataclass(frozen=True)
class SweepStatus:
    """A sweep.

    Attributes:
        driver: Process that drives it; ``None`` where nobody does.
        slots: Trials at once, of the driver there is or was.
        spent: By all attempts at all trials.
        remaining_sec: Wall-clock seconds to the end, as fast as so far; ``None`` where nothing is known.
        failed: Trials that are left out.
        plan: What ``atdiff plan`` foresaw, if it was asked.
        finished: Whether the last driver came to the end of all there was.
    """

    space: Space
    driver: int | None
    slots: int
    studies: tuple[StudyStatus, ...]
    spent: Spent
    flops: float
    remaining_sec: float | None
    failed: tuple[TrialRecord, ...]
    plan: dict[str, Any] | None
    finished: bool

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        studies = [
            {
                "resolution": study.resolution,
                "planned": study.planned,
                "states": dict(study.states),
                "best": None if study.best is None else {"key": study.best.key, "metric": study.best.result["metric"]},
            }
            for study in self.studies
        ]
        return {
            "space": self.space.name,
            "driver": self.driver,
            "finished": self.finished,
            "slots": self.slots,
            "studies": studies,
            "ledger": figures_of(self.spent, self.space.price) | {"flops": self.flops},
            "remaining_sec": self.remaining_sec,
            "failed": {record.key: record.reason for record in self.failed},
        }


def status_of(workspace: Workspace) -> SweepStatus:
    """Read how a sweep stands."""
    space = workspace.space()
    records = [load_record(folder) for folder in workspace.trial_folders()]
    ledger = Ledger(workspace)
    spent = ledger.refresh()
    slots = read_json(workspace.driver)["slots"] if workspace.driver.is_file() else 1
    rows = planned(space, slots=slots, device="").rows
    driver = workspace.driver_process()
    finished = driver is None and [event["event"] for event in events_of(workspace.folder)][-1:] == ["ended"]
    studies = tuple(_study(resolution, rows, records) for resolution in space.ladder)
    return SweepStatus(
        space=space,
        driver=driver,
        slots=slots,
        studies=studies,
        spent=spent,
        flops=sum(1000 * ledger.at(r).kpass * network_costs(space.network.at(r)).pass_flops for r in space.ladder),
        remaining_sec=0.0 if finished else _remaining_sec(space, rows, records, ledger, slots),
        failed=tuple(record for record in records if record.status == "failed"),
        plan=read_json(workspace.plan) if workspace.plan.is_file() else None,
        finished=finished,
    )


def _study(resolution: int, rows: tuple[PlannedTrials, ...], records: list[TrialRecord]) -> StudyStatus:
    here = [record for record in records if record.resolution == resolution]
    complete = [each for each in here if each.assignment.role == "search" and each.status == "complete"]
    return StudyStatus(
        resolution,
        sum(row.trials for row in rows if row.resolution == resolution),
        Counter(record.status for record in here),
        min(complete, key=lambda record: record.result["metric"], default=None),
    )


def _remaining_sec(
    space: Space, rows: tuple[PlannedTrials, ...], records: list[TrialRecord], ledger: Ledger, slots: int
) -> float | None:
    total = 0.0
    for stage in dict.fromkeys(row.stage for row in rows):
        seconds: list[float] = []
        for row in (row for row in rows if row.stage == stage):
            left = list(_left_of(row, records))
            pace = _pace(space, ledger, row)
            if left and pace is None:
                return None
            seconds += [share * row.kpass * (pace or 0.0) / row.workers + SEC_BETWEEN_TRIALS for share in left]
        total += makespan(seconds, slots) if seconds else 0.0
    return total


def _left_of(row: PlannedTrials, records: list[TrialRecord]) -> Iterator[float]:
    """Share of its work that each trial of a row still has to do."""
    here = [each for each in records if each.resolution == row.resolution and KIND_OF[each.assignment.role] == row.kind]
    for record in here:
        if record.status == "running":
            done = record.curves[-1].kpass if record.curves else 0.0
            yield max(0.0, 1 - done / record.assignment.config.train.budget_kpass)
    yield from (1.0 for _ in range(row.trials - len(here)))


def _pace(space: Space, ledger: Ledger, row: PlannedTrials) -> float | None:
    """Device seconds a thousand passes, from this resolution or else, by its operations, from another."""
    base = row.kind == "base"
    if (known := ledger.sec_per_kpass(row.resolution, base=base)) is not None:
        return known
    flops = {resolution: network_costs(space.network.at(resolution)).pass_flops for resolution in space.ladder}
    others = {
        resolution: pace
        for resolution in space.ladder
        for kind in (base, not base)
        if (pace := ledger.sec_per_kpass(resolution, base=kind)) is not None
    }
    if not others:
        return None
    nearest = min(others, key=lambda resolution: abs(resolution - row.resolution))
    return others[nearest] * flops[row.resolution] / flops[nearest]
