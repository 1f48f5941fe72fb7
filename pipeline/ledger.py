"""What a sweep has spent: the sum of what its trials have written down."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atdiff_core.files import read_json
from pipeline.records import TRIAL, Role
from pipeline.spending import SPENT, Spent, spent_in, total_of
from pipeline.workspace import Workspace
from search_spaces.operation import Price
from search_spaces.resources import worker_range


@dataclass(frozen=True)
class TrialSpent:
    """What one trial has cost.

    Attributes:
        role: The part it plays.
        size: Of its file, when it was read.
    """

    resolution: int
    role: Role
    spent: Spent
    size: int


class Ledger:
    """Reads each trial's file again only where it has grown."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._facts: dict[Path, dict[str, Any]] = {}
        self._trials: dict[Path, TrialSpent] = {}

    def refresh(self) -> Spent:
        """Read what is new in all folders; the total."""
        for file in (self._workspace.folder / "trials").glob(f"*/{SPENT}"):
            self._read(file.parent, file.stat().st_size)
        return self.total

    def refresh_trial(self, folder: Path) -> Spent:
        """Read what is new in one folder; what its trial has cost."""
        file = folder / SPENT
        if file.is_file():
            self._read(folder, file.stat().st_size)
        return self._trials[folder].spent if folder in self._trials else Spent()

    @property
    def trials(self) -> int:
        """How many have cost anything."""
        return len(self._trials)

    @property
    def total(self) -> Spent:
        return total_of(each.spent for each in self._known())

    def at(self, resolution: int) -> Spent:
        """What the trials of one resolution have cost, the base model included."""
        return total_of(each.spent for each in self._known() if each.resolution == resolution)

    def sec_per_kpass(self, resolution: int, *, base: bool) -> float | None:
        """Device seconds of training and judging for a thousand passes of the base model, or of trials.

        ``None`` where nothing is known.
        """
        here = total_of(
            each.spent for each in self._trials.values() if (each.resolution, each.role == "base") == (resolution, base)
        )
        return (here.train_sec + here.judge_sec) / here.kpass if here.kpass else None

    def _known(self) -> tuple[TrialSpent, ...]:
        return tuple(self._trials.values())  # A copy: a thread that copies to MLflow may add to it.

    def _read(self, folder: Path, size: int) -> None:
        known = self._trials.get(folder)
        if known is not None and known.size == size:
            return
        if folder not in self._facts:
            self._facts[folder] = read_json(folder / TRIAL)
        declared = self._facts[folder]
        config = declared["config"]
        resolution = config["train"]["network"]["resolution"]
        self._trials[folder] = TrialSpent(
            resolution, declared["role"], spent_in(folder, worker_range(config["workers"])[1]), size
        )


def figures_of(spent: Spent, price: Price) -> dict[str, float]:
    """The totals by name."""
    return {
        "kpass": spent.kpass,
        "device_hours": spent.device_hours,
        "judging_share": spent.judge_sec / (spent.train_sec + spent.judge_sec or 1.0),
        "money": spent.device_hours * price.per_device_hour,
    }
