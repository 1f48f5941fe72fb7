"""Trials of several ranks on a Ray cluster of several nodes, which come and go."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster
from recovery import (
    FAST,
    Driver,
    Progress,
    assert_no_doubles,
    assert_nothing_lost_or_repeated,
    make_setting,
    until,
)
from rich.console import Console
from sweep_helpers import tiny_space, write_digits

from atdiff_core.data.stream import open_shards
from atdiff_core.snapshots import load_snapshot
from pipeline import capacity
from pipeline.places import Places
from pipeline.programme import FixedProgramme
from pipeline.records import SNAPSHOT, Assignment, declare, load_record
from pipeline.running import run_programme
from pipeline.trial import run_trial
from pipeline.tuning import tune_trials
from search_spaces.resources import Resources

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that offers no CPU, and two nodes of one CPU."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FAST.items():
            patch.setenv(name, value)
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", started.address)
        try:
            for _ in range(2):
                join(started)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


def join(cluster: Cluster) -> None:
    """Add a node of one CPU; Ray gives a busy machine half a minute for it."""
    for _ in range(3):
        try:
            cluster.add_node(num_cpus=1)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    raise AssertionError("no node came up")


@pytest.mark.namespaces  # Minutes, like the recovery between namespaces.
@pytest.mark.timeout(1500)
def test_a_trial_shrinks_grows_and_survives_its_driver(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    setting = make_setting(
        tmp_path, shards, minibatches=1200, workers=[1, 2], placement="SPREAD", checkpoint_sec=0.0, resize_sec=2.0
    )
    progress = Progress(setting)
    driver = Driver(setting, {"RAY_ADDRESS": cluster.address})
    try:
        until(lambda: progress.ranks() == 2 and progress.reached() > 100, "two ranks train", driver=driver)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        until(lambda: progress.ranks() == 1, "one rank goes on", driver=driver)
        join(cluster)
        until(lambda: progress.ranks() == 2, "two ranks go on", driver=driver)
        begun = len(progress.attempts())
        reached = progress.reached()
        until(lambda: progress.reached() > reached + 100, "two ranks train on", driver=driver)
        driver.kill()
        driver = Driver(setting, {"RAY_ADDRESS": cluster.address})
        # Ray keeps the first one's reservation for three minutes.
        until(lambda: len(progress.attempts()) > begun, "the second driver goes on", driver=driver, timeout_sec=600)
        driver.finish()
    finally:
        driver.kill()
    assert_nothing_lost_or_repeated(setting)
    assert_no_doubles(setting)
    ranks = [max(attempt.values()) for attempt in progress.attempts() if attempt]
    assert ranks[:3] == [2, 1, 2]
    assert len(progress.states()) <= setting.space.resources.keep_checkpoints


class _StopsAtRungs(FixedProgramme):
    """Ends what may be ended at its first judgement."""

    def report(self, key: str, kpass: float, metric: float) -> bool:
        return False


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server on this machine, and the address of a folder in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        import boto3

        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1").create_bucket(
            Bucket="atdiff"
        )
        yield f"s3://testing:testing@atdiff/states?scheme=http&endpoint_override=127.0.0.1:{port}"
    server.stop()


def test_trials_of_two_ranks_run_one_after_the_other_where_one_has_room(
    cluster: Cluster, bucket: str, shards: Path, tmp_path: Path
) -> None:
    space = tiny_space(shards)
    config = space.base_config(8, open_shards(shards / "8px").fingerprint)
    resources = Resources(audit=True, checkpoint_sec=0.0, placement="STRICT_SPREAD", checkpoints=bucket)
    stopped = Assignment(config.but(workers=2, rung=0.5, train=config.train.but(seed=1, budget_kpass=8.0)), "search")
    finished = Assignment(config.but(workers=2), "base")

    def places(assignment: Assignment) -> Places:
        folder = tmp_path / "tiny" / "trials" / assignment.key[:16]
        return Places(shards / "8px", folder, folder, tmp_path / "cache", resources=resources)

    folders = [places(each).folder for each in (stopped, finished)]
    ray.init(log_to_driver=False)
    run_programme(
        _StopsAtRungs([stopped, finished], {each.key: places(each).folder for each in (stopped, finished)}),
        places,
        lambda keeper: tune_trials(
            keeper, title="two", storage=tmp_path / "ray", cpus=float("inf"), workers=2, resources=resources
        ),
        title="two",
        on_change=lambda folder: None,
        console=Console(quiet=True),
    )
    one, two = map(load_record, folders)
    assert (one.status, two.status) == ("pruned", "complete")
    assert max(point.kpass for point in one.curves) < 8, "a stopped trial lets its ranks go early"
    assert max(point.time_ms for point in one.curves) <= min(point.time_ms for point in two.curves)
    alone = Assignment(config, "base")
    here = Places(shards / "8px", tmp_path / "alone", tmp_path, tmp_path / "cache")
    declare(here.folder, alone)
    list(run_trial(alone, here))
    assert two.result["metric"] == pytest.approx(load_record(here.folder).result["metric"], rel=1e-3)
    noisy, timesteps = torch.randn(4, 1, 8, 8), torch.tensor([0, 9, 99, 999])
    with torch.no_grad():
        pair = [load_snapshot(folder / SNAPSHOT).network(noisy, timesteps) for folder in (here.folder, folders[1])]
    assert pair[0].allclose(pair[1], atol=1e-4)  # Outputs: a bias before a group norm is free to differ.


def test_a_trial_too_large_for_the_cluster_is_told(
    cluster: Cluster, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "WAIT_SEC", 0.1)
    large = Assignment(tiny_space(shards).base_config(8, ""), "base")
    with pytest.raises(ValueError, match=r"3 workers, each with 1 CPU; the cluster has .*2 nodes with 1 CPU"):
        run_programme(
            FixedProgramme([large], {large.key: tmp_path}),
            lambda assignment: Places(shards, tmp_path, tmp_path, tmp_path),
            lambda keeper: tune_trials(keeper, title="large", storage=tmp_path, cpus=float("inf"), workers=3),
            title="large",
            on_change=lambda folder: None,
            console=Console(quiet=True),
        )
