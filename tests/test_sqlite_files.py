"""The write-ahead log of a study's SQLite file, and a file that goes away."""

import sqlite3
from pathlib import Path

import optuna
import pytest
from sweep_helpers import tiny_space

from pipeline import sqlite_files
from pipeline.storage import StorageLost, close_storage, open_storage
from pipeline.study import StudyProgramme


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def pragma(url: str, name: str) -> str:
    with open_storage(url).engine.connect() as connection:  # type: ignore[attr-defined]
        return str(connection.exec_driver_sql(f"PRAGMA {name}").scalar())


def test_commits_go_to_a_log_that_others_can_read(file: Path) -> None:
    url = f"sqlite:///{file}"
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="one")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert file.with_name("study.db-wal").stat().st_size > 0
    assert optuna.load_study(study_name="one", storage=url).best_value == 1.0  # Optuna's own way, as its dashboard.
    assert (pragma(url, "journal_mode"), pragma(url, "synchronous")) == ("wal", "1")


def test_a_study_that_is_left_is_one_whole_file(file: Path, tmp_path: Path) -> None:
    space = tiny_space(tmp_path)
    programme = StudyProgramme(space, space.base_config(8, "d" * 64), f"sqlite:///{file}")
    asked = programme.ask()
    programme.close()
    assert {each.name for each in tmp_path.glob("study.db*")} == {"study.db"}
    connection = sqlite3.connect(file)
    keys = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'key'").fetchall()
    connection.close()
    assert asked is not None
    assert keys == [(f'"{asked.key}"',)]


@pytest.mark.parametrize("moved_there", [False, True])
def test_a_disk_of_the_network_has_the_defaults(file: Path, moved_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{file}"
    if moved_there:
        close_storage(open_storage(url))
    monkeypatch.setattr(sqlite_files, "LOCAL_DISKS", frozenset())
    assert (pragma(url, "journal_mode"), pragma(url, "synchronous")) == ("delete", "2")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_deleted_is_one_line_and_nothing_is_written_into_the_void(
    file: Path, tmp_path: Path, replaced: bool
) -> None:
    space = tiny_space(tmp_path)
    programme = StudyProgramme(space, space.base_config(8, "d" * 64), f"sqlite:///{file}")
    asked = programme.ask()
    assert asked is not None
    content = file.read_bytes()
    file.unlink()
    if replaced:
        file.write_bytes(content)
    with pytest.raises(StorageLost, match="was deleted, or replaced") as told:
        programme.tell(asked.key, "complete", 1.0)
    assert "\n" not in str(told.value)
