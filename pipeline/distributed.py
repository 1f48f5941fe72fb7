"""A trial of several ranks, under Ray Train: started, followed, stopped, started again."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.train import (
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from atdiff_core.files import read_json
from pipeline.places import Places
from pipeline.records import CURVES, RESULT, STOP, Assignment, is_complete, load_record
from pipeline.trial_events import Judged

LOOK_SEC = 0.5
GROUP_TIMEOUT_SEC = 120
"""How long the ranks wait for each other when they meet; torch's own default is half an hour."""


def run_distributed(assignment: Assignment, places: Places) -> Iterator[Judged]:
    """Train with as many ranks as the config asks for; yields judgements as they are made.

    Where its states are kept follows from the trial's folder, so that starting it again resumes it, with
    whatever number of ranks. All ranks must see that folder and the shards. Closing the iterator
    stops the training and waits for its end.

    Raises:
        RuntimeError: The ranks failed more often than the trial's budget allows.
    """
    (places.folder / STOP).unlink(missing_ok=True)
    attempt = _Attempt(assignment, places)
    attempt.start()
    try:
        told, read = 0.0, 0
        while attempt.is_alive():
            attempt.join(LOOK_SEC)
            if (written := _size(places.folder / CURVES)) == read:
                continue
            read = written
            for kpass, metric in _judgements(places.folder, assignment).items():
                if kpass > told:
                    told = kpass
                    yield Judged(kpass, metric, final=False)
    finally:
        if attempt.is_alive():
            (places.folder / STOP).touch()
            attempt.join()
    if attempt.error is not None and not is_complete(places.folder):
        raise RuntimeError(_in_one_line(attempt.error)) from attempt.error
    recorded = read_json(places.folder / RESULT)
    yield Judged(recorded["kpass"], recorded["values"]["metric"], final=True)


class _Attempt(threading.Thread):
    """Calls ``TorchTrainer.fit``, which blocks until training is over.

    Ray Train starts ranks again that die while they train, but gives up where one dies while they
    still get to know each other; then the whole run is begun again, from its latest state.
    """

    def __init__(self, assignment: Assignment, places: Places) -> None:
        super().__init__(name=f"trial-{assignment.key[:8]}", daemon=True)
        self._assignment, self._places = assignment, places
        self.error: Exception | None = None

    def run(self) -> None:
        for _ in range(1 + self._places.resources.max_failures):
            try:
                torch_trainer(self._assignment, self._places).fit()
            except ControllerError as error:
                self.error = error
            except Exception as error:  # Raised where the trial is followed.
                self.error = error
                return
            else:
                self.error = None
                return


def _on_rank(config: dict[str, Any]) -> None:
    # Takes seconds, which Ray Train's controller, who carries this function but never trains, need not wait.
    from pipeline.ranks import train_on_rank

    train_on_rank(config)


def torch_trainer(assignment: Assignment, places: Places) -> TorchTrainer:
    """The trial as Ray Train runs it."""
    resources = places.resources
    storage, name = places.states
    elastic: dict[str, Any] = {  # ray.train declares the types of its first version.
        "num_workers": assignment.config.workers,
        "elastic_resize_monitor_interval_s": resources.resize_sec,
    }
    return TorchTrainer(
        _on_rank,
        train_loop_config={"assignment": assignment, "places": places},
        scaling_config=ScalingConfig(
            use_gpu=resources.gpus > 0,
            resources_per_worker=resources.per_worker,
            placement_strategy=resources.placement,
            **elastic,
        ),
        torch_config=TorchConfig(timeout_s=GROUP_TIMEOUT_SEC),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=resources.keep_checkpoints),
        ),
    )


def _size(file: Path) -> int:
    """In bytes; 0 before it is there."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _judgements(folder: Path, assignment: Assignment) -> dict[float, float]:
    """Metric by kpass at the rungs, as rank 0 wrote it."""
    train = assignment.config.train
    budget = train.minibatches * train.kpass_per_minibatch
    return {kpass: metric for kpass, metric in load_record(folder).metric_at().items() if kpass < budget - 1e-6}


def _in_one_line(error: Exception) -> str:
    """The first rank's own words, without the tracebacks."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, cause = min(error.worker_failures.items())
        return f"rank {rank}: {_last_line(cause)}"
    return _last_line(error) if isinstance(error, TrainingFailedError) else f"{type(error).__name__}: {error}"


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
