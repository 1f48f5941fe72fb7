"""What a trial leaves in its folder: its declaration, its curves, its pictures, its result.

The folder is the truth about a trial. MLflow and the report are copies that can be made
again from it at any time.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atdiff_core.files import read_json, write_json
from search_spaces.space import TrialConfig

Role = Literal["base", "search", "repeat", "plain", "replay", "random", "arm"]
Status = Literal["complete", "pruned", "failed", "running"]

TRIAL, CURVES, RESULT, STATUS = "trial.json", "curves.jsonl", "result.json", "status.json"
CHECKPOINT, SNAPSHOT, SAMPLES = "checkpoint", "snapshot", "samples.png"
STOP = "stop"
"""Its presence asks a trial's ranks to end at their next report."""


@dataclass(frozen=True)
class Assignment:
    """A trial to be run and the part it plays in its study.

    Attributes:
        config: What to train.
        role: ``search``: sampled by the searcher. ``repeat``: a leader with another seed.
            ``plain``, ``replay``, ``random``: controls. ``arm``: a scheme of a comparison, with one
            seed. ``base``: the model they all start from.
        of: Key of the trial that it repeats or controls, name of the arm; empty for search and base.
    """

    config: TrialConfig
    role: Role
    of: str = ""

    @property
    def key(self) -> str:
        return self.config.key

    @property
    def may_stop_early(self) -> bool:
        return self.role == "search"


def rung_minibatches(config: TrialConfig) -> int | None:
    """Distinct minibatches after which a trial is judged before its end; ``None`` without a rung."""
    rung = max(1, round(config.train.minibatches * config.rung))
    return rung if rung < config.train.minibatches else None


def rung_kpass(config: TrialConfig) -> float | None:
    """The same in thousand passes."""
    rung = rung_minibatches(config)
    return None if rung is None else rung * config.train.kpass_per_minibatch


def declare(folder: Path, assignment: Assignment) -> None:
    """Write what the folder is for, before anything runs in it; how an attempt before ended is forgotten."""
    (folder / STATUS).unlink(missing_ok=True)
    content = {"key": assignment.key, "role": assignment.role, "of": assignment.of}
    write_json(folder / TRIAL, content | {"config": assignment.config.model_dump(mode="json")})


def append_curve(folder: Path, kpass: float, values: dict[str, float]) -> None:
    """Add one point of the trial's curves; the time is kept so that copying twice changes nothing."""
    line = {"kpass": kpass, "time_ms": int(time.time() * 1000), "values": values}
    with (folder / CURVES).open("a") as file:
        file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class CurvePoint:
    kpass: float
    time_ms: int
    values: dict[str, float]


@dataclass(frozen=True)
class TrialRecord:
    """A trial as its folder tells it.

    Attributes:
        assignment: What it was.
        status: How it ended, if it did.
        curves: Its points in order of ``kpass``; what an interrupted attempt wrote past its last
            checkpoint, and the next attempt wrote again, is there once.
        result: Final figures: ``metric`` (the trial metric) and those of every sampler; empty
            unless complete.
        sec: Seconds of training and evaluation.
        folder: Where it lies.
        reason: Why it failed or was stopped, in one line; empty otherwise.
    """

    assignment: Assignment
    status: Status
    curves: tuple[CurvePoint, ...]
    result: dict[str, float]
    sec: float
    folder: Path
    reason: str = ""

    @property
    def key(self) -> str:
        return self.assignment.key

    @property
    def resolution(self) -> int:
        return self.assignment.config.train.network.resolution

    @property
    def seed(self) -> int:
        return self.assignment.config.train.seed

    def metric_at(self) -> dict[float, float]:
        """Trial metric by ``kpass``, wherever it was judged."""
        return {round(p.kpass, 6): p.values["eval/metric"] for p in self.curves if "eval/metric" in p.values}

    def last(self, name: str) -> float | None:
        """The latest value of a curve."""
        values = [point.values[name] for point in self.curves if name in point.values]
        return values[-1] if values else None


def set_status(folder: Path, status: Status, reason: str = "") -> None:
    write_json(folder / STATUS, {"status": status, "reason": reason})


def load_record(folder: Path) -> TrialRecord:
    """Read one trial's folder."""
    declared = read_json(folder / TRIAL)
    assignment = Assignment(TrialConfig.model_validate(declared["config"]), declared["role"], declared["of"])
    finished = read_json(folder / RESULT) if (folder / RESULT).is_file() else {}
    status: Status = "complete" if finished else "running"
    reason = ""
    if not finished and (folder / STATUS).is_file():
        ended = read_json(folder / STATUS)
        status, reason = ended["status"], ended["reason"]
    return TrialRecord(
        assignment, status, _curves(folder), finished.get("values", {}), finished.get("sec", 0.0), folder, reason
    )


def load_records(trials: Path) -> list[TrialRecord]:
    """Every trial below a sweep's ``trials`` folder, in a fixed order."""
    return [load_record(file.parent) for file in sorted(trials.glob(f"*/{TRIAL}"))]


def metric_after(folder: Path, kpass: float) -> float | None:
    """The trial metric that was measured after ``kpass``, if it was."""
    judged = (point for point in _curves(folder) if abs(point.kpass - kpass) < 1e-6)
    return next((point.values["eval/metric"] for point in judged if "eval/metric" in point.values), None)


def is_complete(folder: Path) -> bool:
    return (folder / RESULT).is_file()


def _curves(folder: Path) -> tuple[CurvePoint, ...]:
    points: dict[tuple[float, bool], CurvePoint] = {}
    file = folder / CURVES
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            line: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:
            continue  # A kill in the middle of a write leaves a last line without its end.
        judged = any(name.startswith("eval/") for name in line["values"])
        point = CurvePoint(line["kpass"], line["time_ms"], line["values"])
        points.setdefault((round(point.kpass, 6), judged), point)
    return tuple(points[place] for place in sorted(points))
