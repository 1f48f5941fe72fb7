"""The moments at which ``benchmarks.faults`` kills a driver: places in the real functions.

A moment names a function as the code that calls it finds it, and whether the process dies before
the call or after it. Nothing in the product knows of them.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class Moment:
    """Where a driver dies.

    Attributes:
        name: In words.
        when: Before or after the call.
        where: ``module:name`` or ``module:Class.method``.
        first: The call at which the first seed dies, counted from 1.
        step: How many calls later each further seed dies.
        reports: Whether the sweep must go on to its report for the moment to come.
        sqlite_only: Whether other storages do not have the moment.
    """

    name: str
    when: Literal["before", "after"]
    where: str
    first: int = 1
    step: int = 1
    reports: bool = False
    sqlite_only: bool = False

    def call_of(self, seed: int) -> int:
        """Number of the fatal call."""
        return self.first + seed * self.step


MOMENTS = (
    Moment("while the folder is claimed", "before", "pipeline.workspace:write_json", step=0),
    Moment("while the base model trains", "after", "pipeline.trial:append_curve"),
    Moment("before the study is opened", "before", "pipeline.sweep:StudyProgramme", step=0),
    Moment("before a point of the spread is asked for", "after", "optuna.study:Study.enqueue_trial", step=0),
    Moment("after ask, before the trial is written", "after", "optuna.study:Study.ask"),
    Moment(
        "in the middle of writing a trial",
        "before",
        "optuna.storages:RDBStorage._set_trial_attr_without_commit",
        first=3,
        step=5,
        sqlite_only=True,
    ),
    Moment("after the trial is written, before its folder", "after", "pipeline.keyed_study:KeyedStudy.enrol"),
    Moment("after the folder, before training", "after", "pipeline.inline:declare", 2),
    Moment("in the middle of training", "after", "pipeline.trial:append_curve", 9, 7),
    Moment("during an evaluation", "after", "atdiff_core.metrics.evaluation:features_of", 5, 2),
    Moment("during a checkpoint", "after", "atdiff_core.checkpoints:save_file", step=1),
    Moment("before the first report", "before", "pipeline.study:StudyProgramme.report"),
    Moment("after a report, before its decision", "after", "pipeline.keyed_study:KeyedStudy.report"),
    Moment("after a rung's decision", "after", "pipeline.keyed_study:KeyedStudy.note", step=0),
    Moment("after a stopped trial's status, before tell", "after", "pipeline.bookkeeping:set_status", step=0),
    Moment("after the snapshot, before the result", "after", "pipeline.trial:save_snapshot", 2),
    Moment("after the result, before tell", "after", "pipeline.trial:write_json", 2),
    Moment("after tell, before MLflow", "after", "pipeline.study:StudyProgramme.tell"),
    Moment("in the middle of MLflow's copy", "after", "mlflow:MlflowClient.create_run", 2),
    Moment("before MLflow's run is closed", "before", "mlflow:MlflowClient.set_terminated"),
    Moment("before the law is fitted", "before", "pipeline.sweep:load_result", step=0),
    Moment("after the law's fit, before it is written", "after", "pipeline.finish:law_json", step=0, reports=True),
)


def arm(moment: Moment, seed: int) -> None:
    """Have this process kill itself at the moment; found or not, the function goes on to do its work."""
    owner, name = _owner(moment.where)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @wraps(original, updated=())
    def fatal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.call_of(seed) and moment.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(*args, **kwargs)
        if calls == moment.call_of(seed):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, fatal)


def _owner(where: str) -> tuple[Any, str]:
    module, path = where.split(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name
