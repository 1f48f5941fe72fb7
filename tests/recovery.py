"""What the recovery tests share: a driver to kill, waiting for conditions, and the proof that nothing was lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import optuna
from one_search_trial import BATCH_SIZE, Setting
from optuna.trial import TrialState

from atdiff_core.data.stream import ShardSet, open_shards
from pipeline.audit import load_audit
from pipeline.records import load_record

TESTS = Path(__file__).parent
FAST = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 lets ranks starve beside any other work.
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
}
"""Environment of every process of a test cluster: what takes minutes in production takes seconds."""


def until(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout_sec: float = 300,
    driver: "Driver | None" = None,
    log: Path | None = None,
) -> float:
    """Wait for a condition; the seconds it took. If it never holds, the driver's words or a log say why."""

    def said() -> str:
        return driver.said() if driver else log.read_text()[-3000:] if log else ""

    began = time.monotonic()
    while not condition():
        if driver is not None and driver.process.poll() is not None:
            raise AssertionError(f"the driver ended (exit code {driver.process.returncode}) before {what}:\n{said()}")
        if time.monotonic() - began > timeout_sec:
            raise AssertionError(f"waited {timeout_sec} s in vain until {what}:\n{said()}")
        time.sleep(0.5)
    return time.monotonic() - began


class Driver:
    """The study's driver in a process group of its own."""

    def __init__(self, setting: Setting, environment: Mapping[str, str], prefix: Sequence[str] = ()) -> None:
        """Start it; ``prefix`` may put it somewhere else, say into a network namespace."""
        self._log = setting.root / f"driver-{time.monotonic_ns()}.log"
        command = [
            *prefix,
            sys.executable,
            str(TESTS / "one_search_trial.py"),
            str(setting.root),
            str(setting.shards.parent),
        ]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        return self._log.read_text()[-3000:]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self, timeout_sec: float = 800) -> None:
        assert self.process.wait(timeout_sec) == 0, self.said()


class Progress:
    """How far the study's one trial is, as its audit tells."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    @property
    def folder(self) -> Path:
        (folder,) = self._setting.trials
        return folder

    def attempts(self) -> list[dict[int, int]]:
        """Ranks by number of minibatch, for each attempt."""
        if not self._setting.trials:
            return []
        return [{number: done.ranks for number, done in attempt.items()} for attempt in load_audit(self.folder)]

    def reached(self) -> int:
        """The furthest minibatch of the latest attempt; -1 before the first."""
        attempts = self.attempts()
        return max(attempts[-1], default=-1) if attempts else -1

    def furthest(self) -> int:
        """The furthest minibatch of any attempt; -1 before the first."""
        return max((number for attempt in self.attempts() for number in attempt), default=-1)

    def consumed(self) -> int:
        """Minibatches of all attempts together."""
        return sum(map(len, self.attempts()))

    def ranks(self) -> int:
        """Ranks of the latest attempt; 0 before its first minibatch."""
        attempts = self.attempts()
        return next(iter(attempts[-1].values()), 0) if attempts else 0

    def states(self) -> list[int]:
        """Numbers of minibatches after which a state is kept."""
        return sorted(int(folder.name.split("-")[1]) for folder in self.folder.glob("states/**/minibatch-*"))


def assert_nothing_lost_or_repeated(setting: Setting) -> None:
    """The study's trial is complete, and its weights have seen the stream itself."""
    (folder,) = setting.trials
    assert load_record(folder).status == "complete"
    minibatches = json.loads((setting.root / "setting.json").read_text())["minibatches"]
    assert_stream_consumed(folder, open_shards(setting.shards), batch_size=BATCH_SIZE, minibatches=minibatches)


def assert_stream_consumed(folder: Path, shards: ShardSet, *, batch_size: int, minibatches: int) -> None:
    """Each attempt of a trial goes on at a kept state, and what the final weights have seen is the stream itself."""
    attempts = [attempt for attempt in load_audit(folder) if attempt]
    seen: dict[int, dict[int, str]] = {}
    for number, attempt in enumerate(attempts):
        first = min(attempt)
        assert sorted(attempt) == list(range(first, max(attempt) + 1))
        assert (first == 0) == (number == 0), "every later attempt starts from a state"
        assert first <= len(seen), "minibatches were left out"
        seen = {place: samples for place, samples in seen.items() if place < first}
        seen |= {place: done.samples for place, done in attempt.items()}
    assert sorted(seen) == list(range(minibatches))
    for place, batch in enumerate(islice(shards.batches(seed=0, batch_size=batch_size), minibatches)):
        assert seen[place] == dict(sorted(zip(batch.positions, batch.keys, strict=True)))


def assert_no_doubles(setting: Setting) -> None:
    """One trial in the study, told once, complete; one folder."""
    study = optuna.load_study(study_name="tiny/8px", storage=setting.storage)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    assert len({trial.user_attrs["key"] for trial in study.trials}) == len(setting.trials) == 1
    (folder,) = setting.trials
    finals = [point for point in load_record(folder).curves if "eval/kd_efflite0_64/ddim_3" in point.values]
    assert len(finals) == 1


def make_setting(root: Path, shards: Path, *, minibatches: int, workers: object, **resources: object) -> Setting:
    """Write down what the driver shall run."""
    given = {"minibatches": minibatches, "workers": workers, "resources": {"audit": True, **resources}}
    (root / "setting.json").write_text(json.dumps(given))
    return Setting(root, shards)
