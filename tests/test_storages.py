"""The search's contract, held by every storage: SQLite, a journal file, PostgreSQL."""

import math
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from postgres_server import PostgresServer, postgres_programs
from sweep_helpers import tiny_space, write_digits

from pipeline.records import Assignment, load_records
from pipeline.storage import StorageLost, open_storage, storage_of
from pipeline.study import StudyProgramme
from search_spaces.space import Space, TrialConfig

DATASET = "d" * 64
KINDS = ("sqlite", "journal", "postgresql")
SPACE = """
from pathlib import Path
from search_spaces.space import Replication, Stopping
from sweep_helpers import tiny_space
space = tiny_space(Path({shards!r}), {changes})
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    server = PostgresServer(programs)
    yield server
    server.remove()


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return tiny_space(tmp_path)


@pytest.fixture
def base(space: Space) -> TrialConfig:
    return space.base_config(8, DATASET)


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("server")
        return server.url(f"t{uuid.uuid4().hex}")
    suffix = {"sqlite": f"sqlite:///{tmp_path / 'study.db'}", "journal": f"journal:///{tmp_path / 'study.log'}"}
    return suffix[request.param]


def metric_of(assignment: Assignment) -> float:
    """A response with its best radius at 0.03."""
    perturbation = assignment.config.train.perturbation
    return 10.0 if perturbation.kind != "free_at" else 9.0 + math.log(perturbation.ball.radius / 0.03) ** 2


def run(programme: StudyProgramme, enough: int = 1000) -> list[str]:
    """Keys in the order they were asked for; search trials are judged at their rung."""
    keys: list[str] = []
    while len(keys) < enough and (assignment := programme.ask()) is not None:
        keys.append(assignment.key)
        if programme.report(assignment.key, 0.064, metric_of(assignment) + 1):
            programme.report(assignment.key, 0.128, metric_of(assignment))
            programme.tell(assignment.key, "complete", metric_of(assignment))
        else:
            programme.tell(assignment.key, "pruned")
    return keys


def test_a_search_cut_anywhere_asks_for_what_the_uncut_one_asks_for(
    space: Space, base: TrialConfig, url: str, tmp_path: Path
) -> None:
    whole = run(StudyProgramme(space, base, f"sqlite:///{tmp_path / 'whole.db'}"))
    cut: list[str] = []
    for enough in (2, 3, 2):
        cut += run(StudyProgramme(space, base, url), enough)
    ending = StudyProgramme(space, base, url)
    assert cut + run(ending) == whole
    assert ending.finished


def test_everything_is_told_once_and_nothing_is_left_running(space: Space, base: TrialConfig, url: str) -> None:
    programme = StudyProgramme(space, base, url)
    keys = run(programme)
    again = StudyProgramme(space, base, url)
    assert again.finished
    assert again.ask() is None
    storage = open_storage(url)
    trials = [
        trial
        for name in ("tiny/8px", "tiny/8px/controls")
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    assert sorted(trial.user_attrs["key"] for trial in trials) == sorted(keys)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        assert set(trial.intermediate_values) == ({64, 128} if trial.state == TrialState.COMPLETE else {64})


def test_trials_that_somebody_else_queued_or_began_are_put_aside(space: Space, base: TrialConfig, url: str) -> None:
    StudyProgramme(space, base, url).close()
    study = optuna.load_study(study_name="tiny/8px", storage=open_storage(url))
    study.ask()
    study.enqueue_trial({"eta": 0.1})
    programme = StudyProgramme(space, base, url)
    keys = run(programme)
    assert programme.finished
    assert len(keys) == programme.planned_trials()
    foreign = [trial for trial in study.trials if "key" not in trial.user_attrs]
    assert [trial.state for trial in foreign] == [TrialState.FAIL] * 2
    assert {trial.user_attrs["discarded"] for trial in foreign} == {"not asked for by atdiff"}


def test_eight_trials_at_once_report_and_end_in_any_order(space: Space, base: TrialConfig, url: str) -> None:
    space = space.but(trials=12)
    programme = StudyProgramme(space, base, url)
    told: set[str] = set()
    while not programme.finished:
        batch = [assignment for _ in range(8) if (assignment := programme.ask()) is not None]
        threads = [
            threading.Thread(target=programme.report, args=(each.key, kpass, metric_of(each)))
            for each in batch
            for kpass in (0.032, 0.048)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in reversed(batch):
            programme.tell(each.key, "complete", metric_of(each))
        told |= {each.key for each in batch}
    assert len(told) == programme.planned_trials()
    assert set(programme.outcomes().values()) == {"complete"}


@pytest.mark.slow
@pytest.mark.cluster
def test_eight_real_trials_run_at_once_over_postgresql(server: PostgresServer, tmp_path: Path) -> None:
    """A sweep from the command line on a real Ray, its study in the server, looked at from outside while it runs."""
    url, file = server.url("eight"), tmp_path / "space.py"
    shards = write_digits(tmp_path / "digits", [8])
    changes = "trials=8, stopping=Stopping(rung=1.0), replication=Replication(leaders=1, seeds=1)"
    file.write_text(SPACE.format(shards=str(shards), changes=changes))
    command = [sys.executable, "-m", "pipeline.cli", "sweep", str(file), "--root", str(tmp_path), "--cpus", "8"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])}
    log, storage = (tmp_path / "log").open("w"), open_storage(url)
    sweep = subprocess.Popen([*command, "--storage", url], env=environment, stdout=log, stderr=log)
    most = 0
    try:
        while sweep.poll() is None:
            states = [trial.state for trial in trials_in(storage)]
            most = max(most, states.count(TrialState.RUNNING))
            time.sleep(0.2)
    finally:
        sweep.kill()
        sweep.wait()
    assert sweep.returncode == 0, (tmp_path / "log").read_text()
    assert most == 8
    records = load_records(tmp_path / "tiny" / "trials")
    told = trials_in(storage)
    assert sorted(trial.user_attrs["key"] for trial in told) == sorted(
        record.key for record in records if record.assignment.role != "base"
    )
    assert len(told) == 8 + 3 + 1  # The search, plain training and two replay controls, a random control.
    assert {trial.state for trial in told} == {TrialState.COMPLETE}


def trials_in(storage: BaseStorage) -> list[optuna.trial.FrozenTrial]:
    """Every trial of every study in a storage."""
    names = optuna.get_all_study_names(storage=storage)
    return [trial for name in names for trial in optuna.load_study(study_name=name, storage=storage).trials]


def test_a_study_of_another_direction_is_refused_by_name(space: Space, base: TrialConfig, url: str) -> None:
    optuna.create_study(storage=open_storage(url), study_name="tiny/8px", direction="maximize")
    with pytest.raises(ValueError, match="'tiny/8px' in the storage is one to maximize"):
        StudyProgramme(space, base, url)


def test_a_storage_that_goes_away_is_one_line_and_comes_back_whole(
    space: Space, base: TrialConfig, server: PostgresServer
) -> None:
    url = server.url("goes")
    programme = StudyProgramme(space, base, url)
    done = run(programme, 4)
    lost = programme.ask()
    assert lost is not None
    server.stop()
    with pytest.raises(StorageLost, match="nothing is lost") as told:
        programme.tell(lost.key, "complete", 1.0)
    assert "\n" not in str(told.value)
    server.start()
    rest = run(StudyProgramme(space, base, url))
    assert rest[0] == lost.key
    assert len({*done, *rest}) == programme.planned_trials()


def test_a_storage_that_cannot_be_written_is_one_line(space: Space, base: TrialConfig, server: PostgresServer) -> None:
    url = server.url("readonly")
    StudyProgramme(space, base, url).close()
    server.execute("postgres", 'ALTER DATABASE "readonly" SET default_transaction_read_only = on')
    with pytest.raises(StorageLost, match="read-only transaction"):
        StudyProgramme(space, base, url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "a URL of sqlite, journal or postgresql, got 'nonsense'"),
        ("mysql://host/db", "got one of 'mysql'"),
        ("journal:////nowhere/at/all/study.log", "/nowhere/at/all does not exist"),
        ("sqlite:////nowhere/at/all/study.db", "unable to open database file"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_is_one_line(url: str, message: str) -> None:
    with pytest.raises(StorageLost, match=message) as told:
        open_storage(url)
    assert "\n" not in str(told.value)


def test_a_sweep_keeps_its_storage_and_no_password(tmp_path: Path) -> None:
    given = "postgresql://me:secret@host/db"
    assert storage_of(tmp_path, None, "sqlite:///x") == "sqlite:///x"
    assert storage_of(tmp_path, given, "sqlite:///x") == given
    assert "secret" not in (tmp_path / "storage.json").read_text()
    assert storage_of(tmp_path, given, "sqlite:///x") == given
    with pytest.raises(ValueError, match="keeps its studies in postgresql://me:"):
        storage_of(tmp_path, "sqlite:///y", "sqlite:///x")
