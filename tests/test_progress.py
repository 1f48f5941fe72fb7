"""The bars of a programme, read by a thread while trials end."""

import threading
from pathlib import Path

import pytest
from rich.console import Console
from sweep_helpers import tiny_space

from pipeline import progress
from pipeline.progress import TrialBoard
from pipeline.records import Assignment, TrialRecord, append_curve, declare, load_record


def test_a_trial_may_end_while_its_curves_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assignment = Assignment(tiny_space(tmp_path).base_config(8, "d" * 64), "base")
    declare(tmp_path, assignment)
    append_curve(tmp_path, 0.032, {"train/loss": 1.0})
    reading, ended, again = threading.Event(), threading.Event(), threading.Event()

    def slowly(folder: Path) -> TrialRecord:
        if reading.is_set():
            again.set()
        reading.set()
        assert ended.wait(60)
        return load_record(folder)

    monkeypatch.setattr(progress, "load_record", slowly)
    monkeypatch.setattr(progress, "POLL_SEC", 0.01)
    board = TrialBoard("study", 2, Console(quiet=True))
    with board.shown():
        board.begin(assignment, tmp_path)
        assert reading.wait(60)
        board.end(tmp_path, "done")
        ended.set()
        board.begin(assignment, tmp_path)
        assert again.wait(60), "the thread that reads is dead"
