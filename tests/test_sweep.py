"""A whole sweep through a real Ray, a real Optuna storage and a real MLflow database."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from sweep_helpers import tiny_space, write_digits

from atdiff_core.data.index import load_index
from atdiff_core.snapshots import load_snapshot
from pipeline.finish import finish_sweep
from pipeline.records import SNAPSHOT, load_records
from pipeline.results import load_result
from pipeline.sweep import run_sweep
from pipeline.workspace import Workspace
from search_spaces.space import Space

pytestmark = pytest.mark.cluster
SPACE = """
from pathlib import Path
from sweep_helpers import tiny_space
space = tiny_space(Path({shards!r}))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8, 16])


@pytest.fixture(scope="module")
def killed_and_resumed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Space, Path]:
    """A sweep whose driver was killed in the middle, twice, and then run to its end."""
    root = tmp_path_factory.mktemp("runs")
    file = root / "space.py"
    file.write_text(SPACE.format(shards=str(shards)))
    for enough in (2, 6):
        _kill_after(file, root, enough)
    space = tiny_space(shards)
    run_sweep(space, root, cpus=2, console=Console(quiet=True))
    return space, root


def _kill_after(file: Path, root: Path, complete: int) -> None:
    """Run the sweep from the command line and SIGKILL its whole process group."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pipeline.cli", "sweep", str(file), "--root", str(root), "--cpus", "2"]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((root / "tiny" / "trials").glob("*/result.json"))) >= complete:
                break
            time.sleep(0.05)
        assert process.poll() is None, "the sweep ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_sweep_ends_with_the_whole_programme(killed_and_resumed: tuple[Space, Path]) -> None:
    space, root = killed_and_resumed
    roles = Counter(record.assignment.role for record in load_records(root / "tiny" / "trials"))
    assert roles == {"base": 1, "search": 5, "plain": 2, "replay": 4, "repeat": 1, "random": 2}
    statuses = {record.status for record in load_records(root / "tiny" / "trials")}
    assert statuses <= {"complete", "pruned"}
    assert space.trials == roles["search"]


def test_no_finished_trial_was_run_twice(killed_and_resumed: tuple[Space, Path]) -> None:
    _, root = killed_and_resumed
    for record in load_records(root / "tiny" / "trials"):
        lines = (record.folder / "curves.jsonl").read_text().splitlines()
        finals = [line for line in lines if '"eval/kd_efflite0_64/ddim_3"' in line]
        assert len(finals) == (1 if record.status == "complete" else 0)


def test_mlflow_shows_each_trial_once_below_one_parent(killed_and_resumed: tuple[Space, Path]) -> None:
    space, root = killed_and_resumed
    client = MlflowClient(tracking_uri=Workspace(root, "tiny").tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "atdiff.sweep" in run.data.tags]
    children = [run for run in runs if "atdiff.trial" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    keys = [run.data.tags["atdiff.trial"] for run in children]
    assert sorted(keys) == sorted(record.key for record in load_records(root / "tiny" / "trials"))
    assert all(run.info.status in ("FINISHED", "KILLED") for run in children)
    assert {run.data.tags["atdiff.manifest"] for run in children} == {load_index(Path(space.shards) / "8px").key}


def test_mlflow_has_parameters_in_both_units_and_each_point_once(killed_and_resumed: tuple[Space, Path]) -> None:
    _, root = killed_and_resumed
    client = MlflowClient(tracking_uri=Workspace(root, "tiny").tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    for record in load_records(root / "tiny" / "trials"):
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`atdiff.trial` = '{record.key}'")
        if record.assignment.role == "search":
            params = run.data.params
            assert float(params["eta_raw"]) == pytest.approx(float(params["eta"]) * 8)
            assert float(params["alpha_raw"]) == pytest.approx(float(params["alpha"]) * 8)
        gains = client.get_metric_history(run.info.run_id, "train/attack_gain")
        assert len(gains) == sum("train/attack_gain" in point.values for point in record.curves)
        if record.status == "complete":
            curve = client.get_metric_history(run.info.run_id, "nfe/kd_efflite0_64/ddim")
            assert [point.step for point in curve] == [2, 3]


def test_base_snapshots_open_and_trials_start_from_them(killed_and_resumed: tuple[Space, Path]) -> None:
    _, root = killed_and_resumed
    result = load_result(Workspace(root, "tiny"))
    base = load_snapshot(result.studies[0].base.folder / SNAPSHOT)
    starts = {trial.assignment.config.train.start_from for trial in result.studies[0].trials}
    assert starts == {base.key}


def test_the_report_and_the_law_are_written_and_logged(killed_and_resumed: tuple[Space, Path]) -> None:
    _, root = killed_and_resumed
    workspace = Workspace(root, "tiny")
    result = load_result(workspace)
    finish_sweep(result, workspace, "atdiff sweep space.py", Console(quiet=True))
    assert workspace.report.stat().st_size > 10_000
    json.loads(workspace.law.read_text())
    client = MlflowClient(tracking_uri=workspace.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`atdiff.sweep` != ''")
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"law.png", "law.json", "report.html"} <= artifacts


def test_a_sweep_that_is_done_does_nothing_again(killed_and_resumed: tuple[Space, Path]) -> None:
    space, root = killed_and_resumed
    files = sorted((root / "tiny" / "trials").glob("*/result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    run_sweep(space, root, cpus=2, console=Console(quiet=True))
    assert [file.stat().st_mtime_ns for file in files] == before


def test_another_configuration_under_the_same_name_is_refused(killed_and_resumed: tuple[Space, Path]) -> None:
    space, root = killed_and_resumed
    with pytest.raises(ValueError, match=r"different: trials.*another name"):
        run_sweep(space.but(trials=7), root)
