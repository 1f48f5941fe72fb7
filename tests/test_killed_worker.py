"""A rank is killed; the trial goes on with another number of ranks, at exactly the next sample."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
from recovery import FAST, assert_stream_consumed, until
from sweep_helpers import tiny_space, write_digits

from atdiff_core.data.stream import open_shards
from atdiff_core.train_state import Execution
from pipeline.audit import load_audit
from pipeline.cluster import ray_session
from pipeline.distributed import run_distributed
from pipeline.places import Places
from pipeline.records import Assignment, declare, is_complete
from search_spaces.resources import Resources

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.namespaces,  # Minutes on a busy machine, like the recovery between namespaces.
    pytest.mark.timeout(900),
]

BATCH_SIZE, MINIBATCHES = 12, 1200


def reached(folder: Path) -> tuple[int, int]:
    """Attempts that have begun, and the furthest minibatch of the last."""
    attempts = [attempt for attempt in load_audit(folder) if attempt]
    return len(attempts), max(attempts[-1]) if attempts else -1


def kill_a_rank() -> None:
    """SIGKILL to one of the processes that train for this one."""
    ranks = [each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(each.cmdline())]
    os.kill(ranks[-1].pid, signal.SIGKILL)


def test_no_sample_is_lost_or_repeated_on_two_three_and_one_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gloo ranks, one of which is killed, then three, one of which is killed, then one."""
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    shards = write_digits(tmp_path / "digits", [8]) / "8px"
    opened = open_shards(shards)
    base = tiny_space(shards.parent, batch_size=BATCH_SIZE).base_config(8, opened.fingerprint)
    config = base.but(train=base.train.but(budget_kpass=BATCH_SIZE * MINIBATCHES / 1000))
    places = Places(
        shards,
        tmp_path / "trial",
        tmp_path / "none",
        tmp_path / "cache",
        execution=Execution(data_workers=1),  # Processes that read ahead, inside Ray's workers.
        resources=Resources(audit=True, checkpoint_sec=0.0, max_failures=0),
    )
    declare(places.folder, Assignment(config, "base"))
    with ray_session(4):
        for attempt, workers in enumerate((2, 3, 1), start=1):
            assignment = Assignment(config.but(workers=workers), "base")
            outcome: list[object] = []
            training = threading.Thread(target=lambda: outcome.append(ended(assignment, places)))  # noqa: B023
            training.start()
            if workers > 1:
                begun = 0 if attempt == 1 else reached(places.folder)[1]
                until(
                    lambda: reached(places.folder)[0] == attempt and reached(places.folder)[1] > begun + 100,  # noqa: B023
                    f"{workers} ranks train",
                    timeout_sec=250,
                )
                kill_a_rank()
            training.join()
            assert is_complete(places.folder) == (workers == 1), outcome
    assert_stream_consumed(places.folder, opened, batch_size=BATCH_SIZE, minibatches=MINIBATCHES)
    assert [next(iter(attempt.values())).ranks for attempt in load_audit(places.folder) if attempt] == [2, 3, 1]


def ended(assignment: Assignment, places: Places) -> str:
    """How the trial ended: nothing, or the words of the error."""
    try:
        for _ in run_distributed(assignment, places):
            pass
    except RuntimeError as error:
        return str(error)
    return ""
