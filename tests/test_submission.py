"""``atdiff submit``, ``stop`` and ``doctor --cluster``: real jobs on a real Ray head."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from commands import atdiff, mistake
from ray_head import TOKEN, Head, ray_head
from servers import ROOT, end, fetched, free_port, start_atdiff, wait_until
from sweep_helpers import write_digits

from pipeline.jobs import open_cluster
from pipeline.records import load_records

pytestmark = pytest.mark.cluster
SPACE = """
from pathlib import Path
from search_spaces.space import Replication
from sweep_helpers import tiny_space
space = tiny_space(Path("data"), trials=2, replication=Replication(leaders=1, seeds=1))
"""
TRIALS = 7
"""The base model, plain training and two replay controls, two of the search, the leader's random control."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree of one's own: a space, and data that must stay at home."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "space.py").write_text(SPACE)
    (folder / "data").mkdir()
    (folder / "data" / "huge.tar").write_bytes(bytes(10_000))
    for package in ("atdiff_core", "search_spaces", "pipeline"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def jobs_with(head: Head, root: Path) -> dict[str, str]:
    """Status of every job that sweeps into a root, from the cluster itself."""
    listed = json.loads(fetched(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}))
    return {job["submission_id"]: job["status"] for job in listed if str(root) in job["entrypoint"]}


def freeze_driver(root: Path) -> None:
    """The job that sweeps into a root hangs from now on, so that it does not end before it is stopped."""
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"pipeline.cli sweep space.py --root {root}" in command:
            process.suspend()


def test_without_the_token_nothing_is_told_or_taken(head: Head, tmp_path: Path) -> None:
    address = ("--address", head.dashboard)
    home = {"HOME": str(tmp_path)}
    assert "asks for a token and none is known here" in mistake("jobs", *address, **home)
    assert "refuses our token;" in mistake("jobs", *address, **home, RAY_AUTH_TOKEN="guessed")
    space = ROOT / "search_spaces" / "demo_tiny.py"
    assert "none is known here" in mistake("submit", space, *address, "--root", tmp_path, **home)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN + "\n")
    listed = atdiff("jobs", *address, **home)
    assert listed.returncode == 0, listed.stderr


def test_a_cluster_of_another_version_is_refused(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Set by the call; undone with the test.
    monkeypatch.setattr("ray.__version__", "2.1.0")
    with pytest.raises(ValueError, match=r"runs Ray 2\.60\.\d+, here is 2\.1\.0"):
        open_cluster(head.dashboard)


@pytest.mark.timeout(900)  # Two jobs that each start a driver and its actors: minutes beside other work.
def test_a_sweep_is_submitted_stopped_continued_and_never_run_twice(
    head: Head, tree: Path, shards: Path, tmp_path: Path
) -> None:
    root, log = tmp_path / "runs", tmp_path / "submit.log"
    submit = ["submit", tree / "space.py", "--address", head.dashboard, "--tree", tree, "--root", root]
    submit += ["--shards", shards]
    first = start_atdiff(submit, log, RAY_AUTH_TOKEN=TOKEN)

    def results() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (root / "tiny" / "trials").glob("*/result.json")}

    try:
        wait_until(lambda: bool(results()) or first.poll() is not None, "a trial", 240)
        freeze_driver(root)
        (job,) = jobs_with(head, root)
        assert job.startswith("atdiff-tiny-")
        assert job.endswith(".1")
        stopped = atdiff("stop", job, "--address", head.dashboard, RAY_AUTH_TOKEN=TOKEN)
        assert "STOPPED" in stopped.stdout, stopped.stderr
        assert first.wait(timeout=60) != 0
    finally:
        end(first)
    assert "the same command continues it" in log.read_text()
    before = results()
    assert 0 < len(before) < TRIALS, log.read_text()

    second = start_atdiff(submit, log, RAY_AUTH_TOKEN=TOKEN)
    try:
        again = job.removesuffix(".1") + ".2"
        wait_until(lambda: again in jobs_with(head, root) or second.poll() is not None, "the second attempt")
        joined = atdiff(*submit, RAY_AUTH_TOKEN=TOKEN)
        assert second.wait(timeout=240) == 0, log.read_text()
    finally:
        end(second)
    assert joined.returncode == 0, joined.stderr
    assert f"{again} is there already; nothing new was started" in joined.stderr
    assert "report:" in joined.stdout
    after = results()
    assert {file: after[file] for file in before} == before
    records = load_records(root / "tiny" / "trials")
    assert len(records) == TRIALS
    assert {record.status for record in records} <= {"complete", "pruned"}

    third = atdiff(*submit, RAY_AUTH_TOKEN=TOKEN)
    assert third.returncode == 0, third.stderr
    assert "nothing new was started" in third.stderr
    assert jobs_with(head, root) == {job: "STOPPED", again: "SUCCEEDED"}


def test_the_jobs_exit_code_and_its_words_come_back(head: Head, tree: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    submit = ("submit", tree / "space.py", "--address", head.dashboard, "--tree", tree, "--root", tmp_path)
    done = atdiff(*submit, "--shards", nowhere, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(nowhere) in done.stdout
    assert "Traceback" not in done.stdout


def test_the_doctor_asks_every_node_from_the_head(head: Head, tmp_path: Path) -> None:
    below_a_file = tmp_path / "file"
    below_a_file.write_text("")
    doctor = ("doctor", "--cluster", "--address", head.dashboard, "--root")
    healthy = atdiff(*doctor, tmp_path / "runs", RAY_AUTH_TOKEN=TOKEN, COLUMNS="300")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "1 of 1 answer" in healthy.stdout
    assert f"ray {ray.__version__}" in healthy.stdout
    assert list((tmp_path / "runs").iterdir()) == []
    nobody = f"http://127.0.0.1:{free_port()}"
    sick = atdiff(*doctor, below_a_file / "runs", "--tracking", nobody, RAY_AUTH_TOKEN=TOKEN, COLUMNS="300")
    assert sick.returncode == 1, sick.stdout + sick.stderr
    assert "Not a directory" in sick.stdout
    assert "no MLflow server answers" in sick.stdout


def test_a_driver_without_the_right_token_gets_one_line(head: Head, shards: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    sweep = ("sweep", space, "--shards", shards, "--root", tmp_path / "runs")
    environment = {"RAY_ADDRESS": head.gcs, "HOME": str(tmp_path)}
    assert f"{head.gcs} asks for a token and none is known here" in mistake(*sweep, **environment)
    assert f"{head.gcs} refuses our token;" in mistake(*sweep, **environment, RAY_AUTH_TOKEN="guessed")
