"""Everything MLflow: one parent run a sweep, one child a trial, each found before it is created.

Trials write to their folders only. The driver copies the folders to MLflow, so the database has
one writer, and copying again changes nothing: a point is identified by its key, step and time.
"""

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from atdiff_core.perturbations import PGD, FreeAT, RandomPerturbation
from pipeline.records import SAMPLES, TrialRecord, load_record
from pipeline.workspace import Workspace, machine
from search_spaces.space import Space, TrialConfig

PARENT = "mlflow.parentRunId"
SWEEP, TRIAL, COPIED = "atdiff.sweep", "atdiff.trial", "atdiff.copied"
BATCH = 900


class Tracker:
    """The MLflow records of one sweep."""

    def __init__(self, workspace: Workspace, space: Space) -> None:
        """Open or create the database, the experiment and the sweep's parent run."""
        workspace.root.mkdir(parents=True, exist_ok=True)
        self._workspace = workspace
        self._client = _client(workspace.tracking_uri)
        self._experiment = self._experiment_id(space.name)
        self._runs: dict[str, Run] = {}
        self._copied: dict[str, int] = {}
        self._parent = self._find_or_create(SWEEP, space.key, space.name, parent=None)
        self._describe_parent(space)

    @property
    def parent_run_id(self) -> str:
        return str(self._parent.info.run_id)

    def copy_trial(self, folder: Path) -> None:
        """Bring a trial's MLflow run up to what its folder says."""
        record = load_record(folder)
        run = self._trial_run(record)
        done = self._copied.get(record.key, 0)
        points = [
            Metric(name, value, point.time_ms, round(point.kpass))
            for point in record.curves[done:]
            for name, value in point.values.items()
        ]
        points += _nfe_curves(record)
        for start in range(0, len(points), BATCH):
            self._client.log_batch(run.info.run_id, metrics=points[start : start + BATCH])
        self._copied[record.key] = len(record.curves)
        if record.status != "running":
            self._close(record, run)

    def copy_all(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            self.copy_trial(folder)

    def log_law(self, law: dict[str, float], artifacts: Iterable[Path]) -> None:
        """Figures and pictures of the law, on the parent run."""
        for name, value in law.items():
            self._client.log_metric(self.parent_run_id, name, value)
        for artifact in artifacts:
            self._client.log_artifact(self.parent_run_id, str(artifact))

    def finish(self, status: str = "FINISHED") -> None:
        self._client.set_terminated(self.parent_run_id, status)

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (self._workspace.root / "mlartifacts").resolve().as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def _find_or_create(self, tag: str, value: str, name: str, parent: str | None) -> Run:
        found = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{tag}` = '{value}'", run_view_type=ViewType.ACTIVE_ONLY
        )
        if found:
            return found[0]
        tags = {tag: value} | ({PARENT: parent} if parent else {})
        return self._client.create_run(self._experiment, tags=tags, run_name=name)

    def _describe_parent(self, space: Space) -> None:
        self._client.update_run(self.parent_run_id, status="RUNNING")
        facts = machine() | {
            "ladder": str(space.ladder),
            "predict_at": str(space.predict_at),
            "trials_per_resolution": str(space.trials),
            "finetuning_kpass": str(space.finetuning.budget_kpass),
            "space_key": space.key,
        }
        known = self._parent.data.params
        new = [Param(name, value) for name, value in facts.items() if name not in known]
        self._client.log_batch(self.parent_run_id, params=new)

    def _trial_run(self, record: TrialRecord) -> Run:
        if record.key in self._runs:
            return self._runs[record.key]
        name = f"{record.resolution}px-{record.assignment.role}-{record.key[:6]}"
        run = self._find_or_create(TRIAL, record.key, name, parent=self.parent_run_id)
        if not run.data.params:
            params = [Param(key, str(value)) for key, value in parameters_of(record.assignment.config).items()]
            tags = [RunTag("atdiff.role", record.assignment.role), RunTag("atdiff.of", record.assignment.of)]
            self._client.log_batch(run.info.run_id, params=params, tags=tags)
        self._runs[record.key] = run
        return run

    def _close(self, record: TrialRecord, run: Run) -> None:
        run_id = run.info.run_id
        if self._client.get_run(run_id).data.tags.get(COPIED) == record.status:
            return
        samples = record.folder / SAMPLES
        if samples.is_file():
            self._client.log_artifact(run_id, str(samples))
        status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[record.status]
        self._client.set_terminated(run_id, status)
        self._client.set_tag(run_id, COPIED, record.status)


def parameters_of(config: TrialConfig) -> dict[str, Any]:
    """A trial's parameters, in our unit (amplitude per element) and in the papers' (raw norms)."""
    train = config.train
    dimension = train.network.dimension
    parameters: dict[str, Any] = {
        "scheme": train.perturbation.kind,
        "resolution": train.network.resolution,
        "dimension": dimension,
        "K": train.perturbation.steps_per_minibatch,
        "seed": train.seed,
        "budget_kpass": train.budget_kpass,
        "batch_size": train.batch_size,
        "learning_rate": train.optimization.learning_rate,
        "attack_sees_target": train.objective.attack_sees_target,
        "eval_samples": config.evaluation.samples,
        "eval_features": config.evaluation.features,
        "eval_seed": config.evaluation.seed,
        "dataset": train.dataset[:16],
        "start_from": train.start_from[:16],
    }
    if isinstance(train.perturbation, FreeAT | PGD | RandomPerturbation):
        ball, step_size = train.perturbation.ball, train.perturbation.step_size
        parameters |= {
            "norm": ball.norm,
            "eta": ball.radius,
            "eta_raw": ball.raw(ball.radius, dimension),
            "alpha": step_size,
            "alpha_raw": ball.raw(step_size, dimension),
        }
    if isinstance(train.perturbation, PGD):
        parameters["K"] = train.perturbation.num_steps
    if isinstance(train.perturbation, FreeAT):
        parameters["reach"] = train.perturbation.reach
    return parameters


def _nfe_curves(record: TrialRecord) -> list[Metric]:
    """Distance against network evaluations: the step of these curves is the NFE."""
    if record.status != "complete":
        return []
    time_ms = record.curves[-1].time_ms
    curves = []
    for sampler in record.assignment.config.evaluation.samplers:
        suffix = f"/{sampler.kind}_{sampler.nfe}"
        for name, value in record.result.items():
            if name.endswith(suffix):
                curves.append(Metric(f"nfe/{name.removesuffix(suffix)}/{sampler.kind}", value, time_ms, sampler.nfe))
    return curves


def _client(uri: str) -> MlflowClient:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)  # The first use creates or migrates the database.
        except (MlflowException, OSError) as error:
            raise ValueError(f"MLflow cannot use {uri}: {error}") from None
    return client
