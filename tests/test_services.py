"""``atdiff serve``: a real MLflow server on a real PostgreSQL, and a sweep that outlives its stops."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient
from rich.console import Console
from servers import ROOT, end, fetched, free_port, refusal, start_atdiff, wait_until
from sweep_helpers import write_digits
from synthetic_sweep import write_sweep

from pipeline.background_copy import copying
from pipeline.finish import copy_again
from pipeline.postgres import Postgres
from pipeline.records import TrialRecord, load_records
from pipeline.serving import Service
from pipeline.storage import open_storage
from pipeline.tracking import TRIAL, Tracker
from pipeline.tracking_client import connect
from pipeline.workspace import Workspace

OUTAGES = [
    pytest.param(4.0, 0.128, id="seconds"),
    pytest.param(60.0, 4.0, id="a-minute", marks=pytest.mark.namespaces),  # What a rollout takes.
]
"""How long the server is away in the middle of a sweep, in s, and what each trial trains, in kpass."""
SPACE = """
from pathlib import Path
from sweep_helpers import tiny_space
space = tiny_space(Path({shards!r}))
space = space.but(name={name!r}, finetuning=space.finetuning.but(budget_kpass={kpass}))
"""


@dataclass
class Server:
    """``atdiff serve`` in a folder, which can be stopped and started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        return (self.folder / "server" / "admin-password").read_text().strip()

    @property
    def credentials(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.password}

    def start(self) -> None:
        self.process = start_atdiff(["serve", "--folder", self.folder, "--port", str(self.port)], self.log)
        fetched(f"{self.url}/health")

    def stop(self) -> None:
        end(self.process)

    @property
    def log(self) -> Path:
        return self.folder / "serve.log"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        Postgres(Path("unused")).check_installed()
    except ValueError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="atdiff-serve-"))  # Not pytest's: PostgreSQL's user must get there.
    folder.chmod(0o755)
    arguments = ["serve", "--folder", folder, "--port", str(port := free_port())]
    running = Server(folder, port, start_atdiff(arguments, folder / "serve.log"))
    try:
        fetched(f"{running.url}/health")
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


@pytest.fixture
def _credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)


def each_point_once(client: MlflowClient, experiment: str, records: list[TrialRecord]) -> None:
    """Every trial has one run, and every point of its folder is in that run once."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], f"tags.`{TRIAL}` != ''")
    assert Counter(run.data.tags[TRIAL] for run in runs) == Counter(record.key for record in records)
    assert len(client.search_runs([found.experiment_id], "tags.`atdiff.sweep` != ''")) == 1
    by_key = {run.data.tags[TRIAL]: run for run in runs}
    for record in records:
        expected = Counter(name for point in record.curves for name in point.values)
        run = by_key[record.key]
        logged = {name: client.get_metric_history(run.info.run_id, name) for name in expected}
        assert {name: len(points) for name, points in logged.items()} == expected
        for name, points in logged.items():
            told = [(point.time_ms, point.values[name]) for point in record.curves if name in point.values]
            assert sorted((point.timestamp, point.value) for point in points) == sorted(told)


@pytest.mark.slow
def test_nobody_comes_in_without_the_password(server: Server) -> None:
    listing = f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1"
    known = base64.b64encode(f"admin:{server.password}".encode()).decode()
    wrong = base64.b64encode(b"admin:guessed").decode()
    assert refusal(listing, {}) == 401
    assert refusal(listing, {"Authorization": f"Basic {wrong}"}) == 401
    assert refusal(listing, {"Authorization": f"Basic {known}", "Host": "attacker.example"}) == 403
    assert "experiments" in fetched(listing, headers={"Authorization": f"Basic {known}"})
    with pytest.raises(ValueError, match=r"refuses us \(no user given\); set MLFLOW_TRACKING_USERNAME"):
        connect(server.url)


@pytest.mark.slow
def test_secrets_are_for_their_owner_and_the_database_has_no_port(server: Server) -> None:
    assert (server.folder / "server").stat().st_mode & 0o777 == 0o700
    for name in ("admin-password", "cookie-secret", "auth.ini"):
        assert (server.folder / "server" / name).stat().st_mode & 0o077 == 0
    assert (server.folder / "postgres").stat().st_mode & 0o777 == 0o700
    engine = sqlalchemy.create_engine(Postgres(server.folder / "postgres").url("mlflow"))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("show listen_addresses")).scalar() == ""
        assert connection.execute(sqlalchemy.text("select count(*) from experiments")).scalar()
    engine.dispose()
    assert open_storage(Postgres(server.folder / "postgres").url("optuna")).get_all_studies() == []
    command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert server.password.encode() not in command


@pytest.mark.slow
@pytest.mark.usefixtures("_credentials")
def test_a_sweep_moves_to_the_server_and_moving_it_again_changes_nothing(server: Server, tmp_path: Path) -> None:
    own = write_sweep(tmp_path)
    for folder in own.trial_folders()[5:]:
        shutil.rmtree(folder)
    workspace = Workspace(own.root, own.name, server.url)
    records = load_records(workspace.folder / "trials")
    assert copy_again(workspace) == len(records)
    copy_again(workspace)
    each_point_once(MlflowClient(server.url), own.name, records)


@pytest.mark.slow
@pytest.mark.timeout(900)  # A sweep, and two starts of a server: minutes beside other work.
@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(("outage_sec", "kpass"), OUTAGES)
def test_a_server_that_stops_in_the_middle_of_a_sweep_loses_and_doubles_nothing(
    server: Server, tmp_path: Path, outage_sec: float, kpass: float
) -> None:
    shards = write_digits(tmp_path / "digits", [8])
    space, log = tmp_path / "space.py", tmp_path / "sweep.log"
    name = f"away-for-{outage_sec:.0f}-s"
    space.write_text(SPACE.format(shards=str(shards), name=name, kpass=kpass))
    arguments = ["sweep", space, "--root", tmp_path / "runs", "--inline", "--tracking", server.url]
    sweep, trials = start_atdiff(arguments, log), tmp_path / "runs" / name / "trials"

    def complete() -> int:
        return len(list(trials.glob("*/result.json")))

    try:
        wait_until(lambda: complete() >= 2 or sweep.poll() is not None, "two trials", 240)
        assert sweep.poll() is None, log.read_text()
        server.stop()
        before, stopped = complete(), time.monotonic()
        wait_until(
            lambda: time.monotonic() > stopped + outage_sec and complete() > before, "a trial in the outage", 240
        )
        server.start()
        assert sweep.wait(timeout=400) == 0, log.read_text()
    finally:
        end(sweep)
    records = load_records(trials)
    assert len(records) == 15
    client = MlflowClient(server.url)
    each_point_once(client, name, records)
    (parent,) = client.search_runs([client.get_experiment_by_name(name).experiment_id], "tags.`atdiff.sweep` != ''")
    assert parent.info.status == "FINISHED"
    assert "report.html" in {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}


class Away(Tracker):
    """A tracker whose MLflow does not answer until it is told to."""

    back = threading.Event()
    asked = 0

    def copy_trial(self, folder: Path) -> None:
        self.asked += 1
        if not self.back.is_set():
            raise ConnectionError("connection refused")
        super().copy_trial(folder)


def test_what_waited_is_copied_when_mlflow_is_back(tmp_path: Path) -> None:
    workspace = write_sweep(tmp_path)
    folders = workspace.trial_folders()[:3]
    tracker = Away(workspace, workspace.space())
    tracker.back = threading.Event()
    console = Console(record=True, width=200)
    with copying(tracker.copy_trial, console) as copy:
        copy.copy_all(folders)
        wait_until(lambda: tracker.asked >= 2, "two tries")
        assert copy.settle(0.0) == 3
        tracker.back.set()
        assert copy.settle(60.0) == 0
    said = console.export_text()
    assert said.count("connection refused") == 1
    assert said.count("answers again") == 1
    records = [record for record in load_records(workspace.folder / "trials") if record.folder in folders]
    each_point_once(MlflowClient(workspace.tracking_uri), workspace.name, records)


def test_a_sweep_that_ends_without_mlflow_says_how_to_copy_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.background_copy.PATIENCE_SEC", 0.1)
    workspace = write_sweep(tmp_path)
    for folder in workspace.trial_folders()[4:]:
        shutil.rmtree(folder)
    tracker = Away(workspace, workspace.space())
    tracker.back = threading.Event()
    console = Console(record=True, width=200)
    with copying(tracker.copy_trial, console) as copy:
        copy.copy_all(workspace.trial_folders()[:2])
    assert "2 trials are not in MLflow yet (connection refused)" in console.export_text()
    records = load_records(workspace.folder / "trials")
    assert copy_again(workspace) == len(records) == 4
    each_point_once(MlflowClient(workspace.tracking_uri), workspace.name, records)


@pytest.mark.slow
def test_several_servers_that_start_at_once_make_the_tables_once(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    program = (
        "import sys; from pathlib import Path; from pipeline.serving import Service; "
        "Service(Path(sys.argv[1]), sys.argv[2], sys.argv[1]).prepare(upgrade=False)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "server"), database]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    starts = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for start in starts:
        _, errors = start.communicate(timeout=240)
        assert start.returncode == 0, errors
    assert connect(database).search_experiments(max_results=1)


def test_a_database_of_another_mlflow_is_not_migrated_unasked(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    connect(database)
    engine = sqlalchemy.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("update alembic_version set version_num = '451aebb31d03'"))
    engine.dispose()
    with pytest.raises(ValueError, match="back it up, then add --upgrade"):
        Service(tmp_path / "server", database, str(tmp_path)).prepare(upgrade=False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": "0.0.0.0", "auth": False}, "without a password the server listens on this machine only"),
        ({"host": "0.0.0.0"}, "needs --allowed-hosts"),
        (
            {"database": "postgresql://nobody:secret@127.0.0.1:1/none"},
            r"nobody:\*\*\*@127.0.0.1:1/none does not answer",
        ),
    ],
)
def test_an_open_door_or_a_missing_database_is_refused(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    settings = {"database": f"sqlite:///{tmp_path / 'mlflow.db'}"} | changes
    service = Service(tmp_path / "server", artifacts=str(tmp_path), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=expected):
        service.prepare(upgrade=False)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:{port}", "no MLflow server answers at 127.0.0.1:{port}"),
        ("http://no-such-host.invalid:5000", "no MLflow server answers at no-such-host.invalid:5000"),
        ("file:///mlruns", "starts with one of sqlite, postgresql, http, https"),
    ],
)
def test_a_wrong_tracking_address_is_told_at_once(uri: str, expected: str) -> None:
    port = free_port()
    with pytest.raises(ValueError) as told:  # noqa: PT011
        connect(uri.format(port=port))
    assert expected.format(port=port) in str(told.value)
