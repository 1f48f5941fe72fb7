"""An S3-compatible server on this machine that fails and stalls on purpose."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "sets"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Faults:
    """Which requests for objects go wrong, counted from 1.

    Attributes:
        error_every: Each of these is answered with 500.
        stall_every: Each of these is answered ``stall_sec`` late.
        cut_every: Of each of these half of the bytes come, and the connection is closed.
        asked: Paths and byte ranges of all requests.
    """

    error_every: int = 0
    stall_every: int = 0
    cut_every: int = 0
    stall_sec: float = 0.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def around(self, application: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            if environ["REQUEST_METHOD"] != "GET":
                return application(environ, start_response)
            with self._lock:
                number = next(self._numbers)
                self.asked.append((environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
            if self.error_every and number % self.error_every == 0:
                self.failed += 1
                start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
                return [b"a fault on purpose"]
            if self.stall_every and number % self.stall_every == 0:
                self.failed += 1
                time.sleep(self.stall_sec)
            if self.cut_every and number % self.cut_every == 0:
                self.failed += 1
                whole = b"".join(application(environ, start_response))
                return [whole[: len(whole) // 2]]
            return application(environ, start_response)

        return faulty


@contextmanager
def serving(faults: Faults) -> Iterator[str]:
    """Yields the endpoint, ``http://127.0.0.1:port``."""
    application = DomainDispatcherApplication(create_backend_app)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, faults.around(application), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def upload(endpoint: str, folder: Path, prefix: str) -> None:
    """Put a set into the bucket, below a prefix."""
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET, ACL="public-read")
    for file in folder.iterdir():
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{file.name}", Body=file.read_bytes(), ACL="public-read")
