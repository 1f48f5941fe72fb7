"""What is told where no cluster can be talked to, and before anything is sent to one."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from servers import ROOT, free_port

from pipeline.cluster import ray_session
from pipeline.commands.jobs import submit
from pipeline.jobs import dashboard_address, open_cluster

SPACE = ROOT / "search_spaces" / "demo_tiny.py"


def test_a_dead_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {dead}"), ray_session():
        pass
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {dead}"):
        open_cluster(f"http://{dead}")


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers whoever asks whatever, and its address."""

    class Always(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Always)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_no_ray_dashboard_is_refused() -> None:
    with answering(404) as address, pytest.raises(ValueError, match="is no Ray dashboard"):
        open_cluster(address)


def test_what_is_no_ray_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as address:
        monkeypatch.setenv("RAY_ADDRESS", address.removeprefix("http://"))
        with pytest.raises(ValueError, match="does not answer as the head of a Ray cluster"), ray_session():
            pass


def test_a_cluster_that_lets_in_anybody_is_refused() -> None:
    with answering(200) as address, pytest.raises(ValueError, match=r"lets in anybody.*--no-token"):
        open_cluster(address)


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ("http://head:8265/", {}, "http://head:8265"),
        ("head:8265", {}, "http://head:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://there:1"}, "http://there:1"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_the_dashboards_address_is_the_given_one_or_rays_own(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variables: dict[str, str], expected: str
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dashboard_address(given) == expected


def test_wrong_submissions_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--root must be absolute"):
        submit(SPACE, Path("runs"), tree=ROOT)
    with pytest.raises(ValueError, match="not in the working tree"):
        submit(SPACE, tmp_path, tree=tmp_path)
    with pytest.raises(ValueError, match="a password in --tracking") as told:
        submit(SPACE, tmp_path, tree=ROOT, tracking="http://me:secret@there:5000")
    assert "secret" not in str(told.value)
