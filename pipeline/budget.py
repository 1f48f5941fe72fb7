"""A programme that begins no trial which the budget does not pay for."""

import time
from dataclasses import dataclass
from pathlib import Path

from atdiff_core.checkpoints import INDEX
from atdiff_core.files import read_json
from pipeline.ledger import Ledger
from pipeline.programme import Programme
from pipeline.records import CHECKPOINT, Assignment
from pipeline.study import Outcome
from pipeline.workspace import Workspace
from search_spaces.operation import Budget, Price

POLL_SEC = 2.0


class BudgetSpent(Exception):  # noqa: N818
    """The budget does not pay for another trial; the sweep continues once it is raised."""


@dataclass(frozen=True)
class _AtWork:
    """A trial that has begun: what it had spent by then, and the passes it still had to train."""

    assignment: Assignment
    spent_before: float
    remaining_kpass: float


class Budgeted:
    """Stands between a programme and whoever runs it, and counts.

    Passes are reserved for the trials at work, so that the limit on them is kept to the
    minibatch. Hours and money are reserved by the speed seen so far, and trials at work are left
    at their checkpoints when a limit is reached all the same.
    """

    def __init__(
        self,
        programme: Programme,
        ledger: Ledger,
        workspace: Workspace,
        *,
        budget: Budget,
        price: Price,
        kpass_of_a_trial: float,
        resolution: int | None = None,
    ) -> None:
        """Wrap a programme.

        Args:
            kpass_of_a_trial: Thousand passes that the dearest of its trials trains.
            resolution: Of its trials; ``None`` for the base models of all resolutions.
        """
        self._resolution = resolution
        self._programme, self._ledger, self._workspace = programme, ledger, workspace
        self._budget, self._price = budget, price
        self._kpass_of_a_trial = kpass_of_a_trial
        self._at_work: dict[str, _AtWork] = {}
        self._refreshed = 0.0
        self.reached = ""
        """Which limit does not pay for another trial, in words; empty while all do."""

    def ask(self) -> Assignment | None:
        if self._budget.limited:
            self._refresh(POLL_SEC / 10)
            self.reached = self._unpaid()
        if self.reached:
            return None
        assignment = self._programme.ask()
        if assignment is not None:
            folder = self._workspace.trial(assignment.key)
            spent = self._ledger.refresh_trial(folder).kpass
            self._at_work[assignment.key] = _AtWork(assignment, spent, _remaining_kpass(assignment, folder))
        return assignment

    @property
    def finished(self) -> bool:
        return self._programme.finished or bool(self.reached and not self._at_work)

    @property
    def must_stop(self) -> bool:
        """Whether a limit has been reached while trials are at work."""
        if self._programme.must_stop or not self._budget.limited:
            return self._programme.must_stop
        self._refresh(POLL_SEC)
        total = self._ledger.total
        if over := self._over(total.device_hours, 0.0):
            self.reached = over
        return bool(over)

    def planned_trials(self) -> int:
        return self._programme.planned_trials()

    def report(self, key: str, kpass: float, metric: float) -> bool:
        return self._programme.report(key, kpass, metric)

    def tell(self, key: str, outcome: Outcome, metric: float | None = None, reason: str = "") -> None:
        self._programme.tell(key, outcome, metric, reason)
        self._at_work.pop(key, None)

    def _refresh(self, every_sec: float) -> None:
        if time.monotonic() - self._refreshed > every_sec:
            self._ledger.refresh()
            self._refreshed = time.monotonic()

    def _unpaid(self) -> str:
        """The limit that another trial would pass; empty where there is none."""
        total = self._ledger.total
        kpass = total.kpass + self._kpass_of_a_trial + sum(map(self._still_to_train, self._at_work.values()))
        if self._budget.kpass and kpass > self._budget.kpass * (1 + 1e-9):
            return f"{self._budget.kpass:g} kpass ({total.kpass:g} spent, a trial trains {self._kpass_of_a_trial:g})"
        hours = sum(self._hours(each.assignment, self._still_to_train(each)) for each in self._at_work.values())
        return self._over(total.device_hours + hours, self._hours_of_a_trial())

    def _over(self, hours: float, another: float) -> str:
        if self._budget.device_hours and hours + another > self._budget.device_hours:
            return f"{self._budget.device_hours:g} device hours ({self._ledger.total.device_hours:.3g} spent)"
        price, currency = self._price.per_device_hour, self._price.currency
        if self._budget.money and (hours + another) * price > self._budget.money:
            spent = self._ledger.total.device_hours * price
            return f"{self._budget.money:g} {currency} ({spent:.3g} spent)"
        return ""

    def _still_to_train(self, at_work: _AtWork) -> float:
        now = self._ledger.refresh_trial(self._workspace.trial(at_work.assignment.key))
        return max(0.0, at_work.remaining_kpass - (now.kpass - at_work.spent_before))

    def _hours(self, assignment: Assignment, kpass: float) -> float:
        """Device hours of so many passes of a trial, as fast as the trials before; zero for the very first."""
        resolution = assignment.config.train.network.resolution
        pace = self._ledger.sec_per_kpass(resolution, base=assignment.role == "base")
        return (pace or 0.0) * kpass / 3600

    def _hours_of_a_trial(self) -> float:
        """Of the next one, as fast as those before it at this resolution; a base model is the first of its kind."""
        if self._resolution is None:
            return 0.0
        pace = self._ledger.sec_per_kpass(self._resolution, base=False)
        return (pace or 0.0) * self._kpass_of_a_trial / 3600


def check_pays_for_one(budget: Budget, needed: dict[str, float]) -> None:
    """Refuse a limit on passes that does not pay for the dearest single trial.

    Args:
        needed: Thousand passes by what they are for.
    """
    dearest = max(needed, key=lambda what: needed[what])
    if budget.kpass and budget.kpass < needed[dearest]:
        raise ValueError(
            f"budget.kpass must pay for one trial at least: {dearest} takes {needed[dearest]:g} kpass, "
            f"got {budget.kpass:g}; raise it, or leave it at 0 for no limit"
        )


def _remaining_kpass(assignment: Assignment, folder: Path) -> float:
    train = assignment.config.train
    index = folder / CHECKPOINT / INDEX
    done = read_json(index)["minibatches"] if index.is_file() else 0
    return (train.minibatches - done) * train.kpass_per_minibatch
