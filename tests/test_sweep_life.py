"""The life of a sweep: stopped by its budget, continued, extended, looked at, one trial run again."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from sweep_helpers import tiny_space, write_digits
from typer.testing import CliRunner

from atdiff_core.optimization import Optimization
from pipeline.budget import BudgetSpent
from pipeline.cli import app
from pipeline.history import events_of
from pipeline.ledger import Ledger
from pipeline.records import load_records
from pipeline.replay import Replayed, replay, trial_named
from pipeline.status import SweepStatus, status_of
from pipeline.sweep import run_sweep
from pipeline.workspace import Workspace
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.operation import Budget, Price
from search_spaces.space import Phase, Replication, Space, Stopping

pytestmark = pytest.mark.slow
SPENT_AT_FIRST = 0.064 + 4 * 0.128


def space_of(shards: Path, **changes: object) -> Space:
    """A base model, two controls, three of a search, a random control: seven trials."""
    return tiny_space(
        shards,
        domains=ReachDomains(eta=log_range(0.003, 0.3), num_replays=choice(2)),
        trials=3,
        stopping=Stopping(rung=1.0),
        replication=Replication(leaders=1, seeds=1),
        price=Price(per_device_hour=3.6),
    ).but(**changes)


@dataclass(frozen=True)
class Life:
    """What was seen at each station."""

    space: Space
    root: Path
    stopped: str
    at_budget: SweepStatus
    at_end: SweepStatus
    keys_at_end: set[str]
    extended: SweepStatus

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root, self.space.name)


def run(space: Space, root: Path, *, extend: bool = False) -> None:
    run_sweep(space, root, inline=True, extend=extend, console=Console(quiet=True))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8])


@pytest.fixture(scope="module")
def life(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    root, space = tmp_path_factory.mktemp("runs"), space_of(shards)
    workspace = Workspace(root, space.name)
    with pytest.raises(BudgetSpent) as stopped:
        run(space.but(budget=Budget(kpass=SPENT_AT_FIRST + 0.1)), root)
    at_budget = status_of(workspace)
    run(space, root)
    at_end, keys = status_of(workspace), {record.key for record in load_records(workspace.folder / "trials")}
    run(space.but(trials=4, replication=Replication(leaders=1, seeds=2)), root, extend=True)
    return Life(space, root, str(stopped.value), at_budget, at_end, keys, status_of(workspace))


def test_a_budget_stops_before_the_trial_that_it_does_not_pay_for(life: Life) -> None:
    assert life.at_budget.spent.kpass == pytest.approx(SPENT_AT_FIRST)
    assert life.stopped == "0.676 kpass (0.576 spent, a trial trains 0.128)"
    (study,) = life.at_budget.studies
    assert study.states == {"complete": 5}
    assert study.planned == 7
    assert not life.at_budget.finished
    assert life.at_budget.driver is None
    assert life.at_budget.remaining_sec is not None
    assert life.at_budget.remaining_sec > 0


def test_with_the_budget_raised_the_same_sweep_ends(life: Life) -> None:
    assert life.at_end.finished
    assert life.at_end.remaining_sec == 0
    (study,) = life.at_end.studies
    assert study.best is not None
    assert study.states["complete"] + study.states["pruned"] == study.planned == 7


def test_an_extension_adds_trials_and_keeps_those_there_were(life: Life) -> None:
    records = load_records(life.workspace.folder / "trials")
    keys = {record.key for record in records}
    assert life.keys_at_end < keys
    assert sum(record.assignment.role == "search" for record in records) == 4
    assert {record.seed for record in records if record.assignment.role == "replay"} == {0, 1}
    assert life.extended.finished


def test_the_audit_trail_tells_every_station(life: Life) -> None:
    events = list(events_of(life.workspace.folder))
    assert [event["event"] for event in events] == ["started", "budget", "changed", "ended", "extended", "ended"]
    assert events[4]["changes"]["trials"] == [3, 4]
    assert {"user", "host", "pid", "time"} <= set(events[0])


def test_an_extension_is_asked_for_and_takes_nothing_away(life: Life) -> None:
    grown = life.space.but(trials=4, replication=Replication(leaders=1, seeds=2))
    with pytest.raises(ValueError, match=r"different: trials\); add --extend"):
        run(grown.but(trials=5), life.root)
    with pytest.raises(ValueError, match="has trials=4, an extension takes none away, got 3"):
        run(grown.but(trials=3), life.root, extend=True)
    with pytest.raises(ValueError, match="different: batch_size"):
        run(grown.but(batch_size=8), life.root, extend=True)


def test_the_ledger_is_the_sum_of_what_the_trials_trained(life: Life) -> None:
    total = Ledger(life.workspace).refresh()
    records = load_records(life.workspace.folder / "trials")
    assert total.kpass == pytest.approx(sum(record.curves[-1].kpass for record in records))
    seconds = sum(record.sec for record in records if record.status == "complete")
    assert total.device_hours * 3600 >= 0.5 * seconds
    client = MlflowClient(tracking_uri=life.workspace.tracking_uri)
    experiment = client.get_experiment_by_name(life.space.name)
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`atdiff.sweep` != ''")
    spent = client.get_metric_history(parent.info.run_id, "ledger/kpass")
    assert spent[-1].value == pytest.approx(total.kpass)
    assert parent.data.metrics["ledger/money"] == pytest.approx(3.6 * total.device_hours, rel=1e-6)


def test_the_status_is_the_same_words_and_numbers_for_people_and_programs(life: Life) -> None:
    folder = str(life.workspace.folder)
    seen = CliRunner().invoke(app, ["status", folder], env={"COLUMNS": "200"})
    assert seen.exit_code == 0
    assert "finished" in seen.output
    assert "spent: " in seen.output
    told = json.loads(CliRunner().invoke(app, ["status", folder, "--json"]).stdout)
    assert told["finished"]
    assert told["ledger"]["kpass"] == pytest.approx(life.extended.spent.kpass)
    assert told["studies"][0]["best"]["key"] in {r.key for r in load_records(life.workspace.folder / "trials")}


def test_the_status_names_the_process_that_drives(life: Life) -> None:
    with life.workspace.locked(), (life.workspace.folder / "driver.lock").open() as held:
        assert status_of(life.workspace).driver == int(held.read())
        with pytest.raises(OSError, match="temporarily unavailable"):
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert status_of(life.workspace).driver is None


def test_a_trial_run_again_from_its_key_is_the_same_to_the_last_bit(life: Life) -> None:
    records = load_records(life.workspace.folder / "trials")
    search = next(r for r in records if r.assignment.role == "search" and r.status == "complete")
    again = list(replay(life.workspace, trial_named(life.workspace, search.key[:12])))[-1]
    assert isinstance(again, Replayed)
    assert again.identical
    assert again.largest_difference == 0
    assert {each.name for each in again.figures} == set(search.result)


def test_a_key_that_names_no_trial_or_several_is_refused(life: Life) -> None:
    with pytest.raises(ValueError, match=r"no trial of .* begins with 'xyz'"):
        trial_named(life.workspace, "xyz")
    with pytest.raises(ValueError, match=r"trials of .* begins with ''"):
        trial_named(life.workspace, "")


def test_a_budget_below_one_trial_is_refused_before_anything_starts(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a trial takes 0.128 kpass, got 0.1; raise it"):
        run(space_of(shards, budget=Budget(kpass=0.1)), tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_hours_that_run_out_leave_the_trials_at_their_checkpoints(shards: Path, tmp_path: Path) -> None:
    space = space_of(shards, budget=Budget(device_hours=1e-9))
    with pytest.raises(BudgetSpent, match="1e-09 device hours"):
        run(space, tmp_path)
    left = load_records(tmp_path / "tiny" / "trials")
    assert {record.status for record in left} <= {"running", "complete"}
    assert len(left) == 1


def test_trials_that_all_diverge_end_the_sweep_with_their_own_words(shards: Path, tmp_path: Path) -> None:
    wild = Phase(budget_kpass=0.128, optimization=Optimization(learning_rate=1e30, ema_half_life_kpass=0.05))
    with pytest.raises(ValueError, match=r"all 3 search trials at 8 px failed; .* is nan after") as told:
        run(space_of(shards, finetuning=wild, replication=Replication(leaders=1, seeds=2)), tmp_path)
    assert "\n" not in str(told.value)
    stands = status_of(Workspace(tmp_path, "tiny"))
    assert len(stands.failed) >= 5
    assert "Diverged: train/loss is nan" in stands.failed[0].reason
