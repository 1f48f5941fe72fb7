"""Everything MLflow: one parent run a sweep, one child a trial, each found before it is created.

Trials write to their folders only. The driver copies the folders to MLflow, so the database has
one writer, and copying again changes nothing: a point is identified by its key, step and time.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from atdiff_core.data.index import ShardIndex
from atdiff_core.perturbations import PGD, FreeAT, RandomPerturbation
from atdiff_core.train_config import NO_TEACHER
from pipeline.extension import Declared
from pipeline.listening import without_password
from pipeline.records import RESULT, SAMPLES, TrialRecord, load_record
from pipeline.tracking_client import connect, is_server
from pipeline.workspace import Workspace, machine
from search_spaces.space import Space, TrialConfig

if TYPE_CHECKING:
    from pipeline.evaluations import Cell

PARENT = "mlflow.parentRunId"
SWEEP, TRIAL, COPIED = "atdiff.sweep", "atdiff.trial", "atdiff.copied"
MANIFEST = "atdiff.manifest"
EVALUATIONS, EVALUATED = "evaluations", "atdiff.evaluated"
BATCH = 900
OPENS_AS_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's pages take the experiment for one of language models."""


class Tracker:
    """The MLflow records of one sweep or comparison."""

    def __init__(self, workspace: Workspace, declared: Declared, sets: Iterable[ShardIndex] = ()) -> None:
        """Open or create the database, the experiment and the parent run.

        Args:
            sets: Of images on which the trials run; the runs name their manifests.
        """
        self._manifests = {index.fingerprint: index.key for index in sets}
        workspace.root.mkdir(parents=True, exist_ok=True)
        self._workspace = workspace
        self._client = connect(workspace.tracking_uri)
        self._experiment = _experiment_id(self._client, workspace, declared.name)
        self._runs: dict[str, Run] = {}
        self._copied: dict[str, int] = {}
        self._parent = self._find_or_create(SWEEP, declared.identity, declared.name, parent=None)
        self._describe_parent(declared)

    @property
    def parent_run_id(self) -> str:
        return str(self._parent.info.run_id)

    def copy_trial(self, folder: Path) -> None:
        """Bring a trial's MLflow run up to what its folder says."""
        record = load_record(folder)
        run = self._trial_run(record)
        if record.status != "running" and run.data.tags.get(COPIED) == record.status:
            return
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

    def log_ledger(self, figures: dict[str, float], *, step: int) -> None:
        """What has been spent once ``step`` trials have ended, on the parent run."""
        now = int(time.time() * 1000)
        metrics = [Metric(f"ledger/{name}", value, now, step) for name, value in figures.items()]
        self._client.log_batch(self.parent_run_id, metrics=metrics)

    def log_outcome(self, figures: dict[str, float], artifacts: Iterable[Path]) -> None:
        """What the trials taught, in figures and pictures, on the parent run.

        The figures bear the time of the last result, so that logging them again changes nothing.

        Raises:
            ValueError: MLflow does not take them.
        """
        results = (folder / RESULT for folder in self._workspace.trial_folders())
        time_ms = max((int(file.stat().st_mtime * 1000) for file in results if file.is_file()), default=0)
        metrics = [Metric(name, value, time_ms, 0) for name, value in figures.items()]
        try:
            for start in range(0, len(metrics), BATCH):
                self._client.log_batch(self.parent_run_id, metrics=metrics[start : start + BATCH])
            for artifact in artifacts:
                self._client.log_artifact(self.parent_run_id, str(artifact))
        except (MlflowException, OSError) as error:
            raise ValueError(f"MLflow at {without_password(self._workspace.tracking_uri)}: {error}") from None

    def finish(self, status: str = "FINISHED") -> None:
        self._client.set_terminated(self.parent_run_id, status)

    def _find_or_create(self, tag: str, value: str, name: str, parent: str | None) -> Run:
        return _found_or_created(self._client, self._experiment, tag, value, name, parent)

    def _describe_parent(self, declared: Declared) -> None:
        self._client.update_run(self.parent_run_id, status="RUNNING")
        facts = machine() | _facts(declared)
        known = self._parent.data.params
        new = [Param(name, value) for name, value in facts.items() if name not in known]
        self._client.log_batch(self.parent_run_id, params=new)

    def _trial_run(self, record: TrialRecord) -> Run:
        if record.key in self._runs:
            return self._runs[record.key]
        name = f"{record.resolution}px-{_part(record)}-{record.key[:6]}"
        run = self._find_or_create(TRIAL, record.key, name, parent=self.parent_run_id)
        if not run.data.params:
            params = [Param(key, str(value)) for key, value in parameters_of(record.assignment.config).items()]
            tags = [RunTag("atdiff.role", record.assignment.role), RunTag("atdiff.of", record.assignment.of)]
            if manifest := self._manifests.get(record.assignment.config.train.dataset):
                tags.append(RunTag(MANIFEST, manifest))
            self._client.log_batch(run.info.run_id, params=params, tags=tags)
        self._runs[record.key] = run
        return run

    def _close(self, record: TrialRecord, run: Run) -> None:
        run_id = run.info.run_id
        samples = record.folder / SAMPLES
        if samples.is_file():
            self._client.log_artifact(run_id, str(samples))
        status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[record.status]
        self._client.set_terminated(run_id, status)
        self._client.set_tag(run_id, COPIED, record.status)
        self._runs[record.key] = self._client.get_run(run_id)


def _facts(declared: Declared) -> dict[str, str]:
    """What a sweep or a comparison is, at a glance."""
    facts = {"finetuning_kpass": str(declared.finetuning.budget_kpass), "space_key": declared.identity}
    if isinstance(declared, Space):
        ladder = {"ladder": str(declared.ladder), "predict_at": str(declared.predict_at)}
        return facts | ladder | {"trials_per_resolution": str(declared.trials)}
    arms = ", ".join(arm.name for arm in declared.arms)
    return facts | {"resolution": str(declared.resolution), "arms": arms, "seeds": str(declared.seeds)}


def _part(record: TrialRecord) -> str:
    """The part a trial plays: its role, or its arm and seed."""
    if record.assignment.role == "arm":
        return f"{record.assignment.of}-seed{record.seed}"
    return record.assignment.role


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
        "objective": train.objective.kind,
        "precision": train.precision,
        "eval_samples": config.evaluation.samples,
        "eval_features": config.evaluation.features,
        "eval_seed": config.evaluation.seed,
        "dataset": train.dataset[:16],
        "start_from": train.start_from[:16],
    }
    parameters |= train.objective.settings()
    if train.teacher != NO_TEACHER:
        parameters["teacher"] = train.teacher[:16]
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
        suffix = f"/{sampler.name}"
        for name, value in record.result.items():
            if name.endswith(suffix):
                curves.append(Metric(f"nfe/{name.removesuffix(suffix)}/{sampler.label}", value, time_ms, sampler.nfe))
    return curves


def track_evaluation(
    root: Path,
    *,
    key: str,
    name: str,
    parameters: dict[str, str],
    cells: "Iterable[Cell]",
    tracking: str | None = None,
    pictures: Iterable[Path] = (),
) -> str:
    """Curves over NFE of one model that was judged outside a sweep; the id of its MLflow run.

    Args:
        root: Folder of the database.
        key: What the run is found by; judged again, the same model adds to its curves.
        tracking: Address of another MLflow than the root's own.
        pictures: Files to show with the run.
    """
    workspace = Workspace(root, EVALUATIONS, tracking)
    root.mkdir(parents=True, exist_ok=True)
    client = connect(workspace.tracking_uri)
    run = _found_or_created(client, _experiment_id(client, workspace, EVALUATIONS), EVALUATED, key, name, None)
    run_id = str(run.info.run_id)
    new = [Param(param, value) for param, value in parameters.items() if param not in run.data.params]
    curves = [
        Metric(f"nfe/{figure}/{cell.sampler.label}", value, cell.time_ms, cell.sampler.nfe)
        for cell in cells
        for figure, value in cell.figures.items()
    ]
    client.log_batch(run_id, params=new)
    for start in range(0, len(curves), BATCH):
        client.log_batch(run_id, metrics=curves[start : start + BATCH])
    for picture in pictures:
        client.log_artifact(run_id, str(picture))
    client.set_terminated(run_id)
    return run_id


def _experiment_id(client: MlflowClient, workspace: Workspace, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    own = None if is_server(workspace.tracking_uri) else (workspace.root / "mlartifacts").resolve().as_uri()
    # A server has a store of its own.
    return str(client.create_experiment(name, artifact_location=own, tags=OPENS_AS_TRAINING))


def _found_or_created(
    client: MlflowClient, experiment: str, tag: str, value: str, name: str, parent: str | None
) -> Run:
    found = client.search_runs(
        [experiment], filter_string=f"tags.`{tag}` = '{value}'", run_view_type=ViewType.ACTIVE_ONLY
    )
    if found:
        return found[0]
    tags = {tag: value} | ({PARENT: parent} if parent else {})
    return client.create_run(experiment, tags=tags, run_name=name)
