"""What trials cost: each writes down its own passes and seconds, lost attempts included."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SPENT = "spent.jsonl"


class TrialMeter:
    """Appends what one attempt at a trial costs to the trial's folder, as it goes.

    Work that is done twice because a process died is written down twice: it was paid for twice.
    """

    def __init__(self, folder: Path) -> None:
        """Start the clock."""
        self._file = folder / SPENT
        self._mark = time.monotonic()

    def trained(self, kpass: float) -> None:
        """Note thousand passes, and the time since the last note."""
        self._note("train", kpass)

    def judged(self) -> None:
        """Note the time since the last note, as that of an evaluation."""
        self._note("judge", 0.0)

    def _note(self, kind: str, kpass: float) -> None:
        now = time.monotonic()
        line = {"kind": kind, "kpass": kpass, "sec": now - self._mark}
        self._mark = now
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Spent:
    """Passes and time of one or many trials.

    Attributes:
        kpass: Thousand passes of training.
        train_sec: Device seconds of training: wall-clock times the ranks.
        judge_sec: Device seconds of evaluation.
        judgements: How many evaluations.
    """

    kpass: float = 0.0
    train_sec: float = 0.0
    judge_sec: float = 0.0
    judgements: int = 0

    @property
    def device_hours(self) -> float:
        return (self.train_sec + self.judge_sec) / 3600

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.kpass + other.kpass,
            self.train_sec + other.train_sec,
            self.judge_sec + other.judge_sec,
            self.judgements + other.judgements,
        )


def spent_in(folder: Path, workers: int = 1) -> Spent:
    """What all attempts at a trial have cost so far."""
    file, total = folder / SPENT, Spent()
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # A kill in the middle of a write leaves a last line without its end.
        sec = line["sec"] * workers
        if line["kind"] == "train":
            total += Spent(kpass=line["kpass"], train_sec=sec)
        else:
            total += Spent(judge_sec=sec, judgements=1)
    return total


def total_of(parts: Iterable[Spent]) -> Spent:
    total = Spent()
    for part in parts:
        total += part
    return total
