"""Recovery between real network stacks: a head and workers in namespaces, with links that fail."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import mistake
from hosts import Host, Network, can_make_hosts
from recovery import (
    FAST,
    Driver,
    Progress,
    assert_no_doubles,
    assert_nothing_lost_or_repeated,
    make_setting,
    until,
)
from sweep_helpers import write_digits

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.namespaces,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs iproute2, and the right to make network namespaces"),
]
PORT = 6379
LINK_DOWN_SEC = 25
SPACE = """
from pathlib import Path
from sweep_helpers import tiny_space
space = tiny_space(Path("data"))
"""
STARTED = "Ray runtime started"
ENVIRONMENT = FAST | {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-for-tests-0123456789abcdef",
}
"""A host that is cut off is given up within the 25 seconds; all hosts and the driver know one token."""


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a short name: paths of Unix sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="atd", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start_node(host: Host, head: Host, sockets: Path, *, before: str = "true", **environment: str) -> None:
    """Join the cluster, or start it; a node that was given up for dead joins again.

    Args:
        before: A command that is run first, which may change what the host sees of the file system.
    """
    command = f"{before}; {sys.executable} -m ray.scripts.scripts start --block --node-ip-address={host.address}"
    command += f" --object-store-memory=100000000 --temp-dir={sockets / str(host.number)}"  # No two share sockets.
    if host is head:
        command += f" --head --port={PORT} --num-cpus=0 --include-dashboard=false"
    else:
        command += f" --address={head.address}:{PORT} --num-cpus=1"
    host.supervise(command, logged(host, sockets), ENVIRONMENT | environment)


def logged(host: Host, sockets: Path) -> Path:
    """What its node says."""
    return sockets / f"{host.name}.log"


def test_a_node_is_lost_a_link_fails_and_the_driver_dies(network: Network, sockets: Path, tmp_path: Path) -> None:
    shards = write_digits(tmp_path / "digits", [8])
    setting = make_setting(
        tmp_path, shards, minibatches=900, workers=2, placement="STRICT_SPREAD", checkpoint_sec=0.0, max_failures=20
    )
    progress = Progress(setting)
    head, one, two = network.add(), network.add(), network.add()
    start_node(head, head, sockets)
    until(lambda: head.answers(PORT), "the head is up", log=logged(head, sockets))
    for host in (one, two):
        start_node(host, head, sockets)
    environment = ENVIRONMENT | {"RAY_ADDRESS": f"{head.address}:{PORT}", "GLOO_SOCKET_IFNAME": "eth0"}

    def advance(minibatches: int, what: str) -> float:
        """Wait until training is so far beyond where it ever was; seconds until its next step, old or new."""
        consumed, furthest = progress.consumed(), progress.furthest()
        stepped = until(lambda: progress.consumed() > consumed, what, driver=driver)
        until(lambda: progress.furthest() >= furthest + minibatches, what, driver=driver)
        return stepped

    for host in (one, two):
        until(lambda: STARTED in logged(host, sockets).read_text(), "a host has joined", log=logged(host, sockets))  # noqa: B023
    driver = Driver(setting, environment, head.prefix)
    try:
        advance(100, "two hosts train")
        two.kill()
        start_node(network.add(), head, sockets)
        lost = advance(100, "the host that joined trains")
        one.link("down")
        time.sleep(LINK_DOWN_SEC)
        one.link("up")
        cut = advance(100, "the host that was cut off trains again")
        driver.kill()
        driver = Driver(setting, environment, head.prefix)
        again = advance(1, "the second driver goes on")
        driver.finish()
    finally:
        driver.kill()
    print(f"\nseconds to the next step: node lost {lost:.1f}, link up {cut:.1f}, driver started {again:.1f}")
    assert_nothing_lost_or_repeated(setting)
    assert_no_doubles(setting)


def test_a_node_that_cannot_write_or_has_another_torch_is_told(network: Network, sockets: Path, tmp_path: Path) -> None:
    shards, space = write_digits(tmp_path / "digits", [8]), tmp_path / "space.py"
    space.write_text(SPACE)
    other = tmp_path / "other" / "torch-2.0.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    closed, open_to_all = tmp_path / "closed", tmp_path / "open"
    closed.mkdir()
    head, odd = network.add(), network.add()
    start_node(head, head, sockets)
    until(lambda: head.answers(PORT), "the head is up", log=logged(head, sockets))
    paths = f"{other.parent}:{ENVIRONMENT['PYTHONPATH']}"
    start_node(odd, head, sockets, before=f"mount -t tmpfs -o ro none {closed}", PYTHONPATH=paths)
    until(lambda: STARTED in logged(odd, sockets).read_text(), "the host has joined", log=logged(odd, sockets))

    def told(root: Path) -> str:
        given = ENVIRONMENT | {"RAY_ADDRESS": f"{head.address}:{PORT}"}
        began = time.monotonic()
        line = mistake("sweep", space, "--shards", shards, "--root", root, prefix=head.prefix, **given)
        print(f"\ntold after {time.monotonic() - began:.1f} s: {line}")
        return line

    assert f"({odd.address}) cannot use {closed / 'tiny'}: Read-only file system" in told(closed)
    line = told(open_to_all)
    assert "different versions of torch (" in line
    assert "2.0.0 on " in line
    assert odd.address in line
