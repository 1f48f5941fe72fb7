"""Ray jobs: a sweep handed to a cluster once, whatever how often it is submitted."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.listening import require_listener
from pipeline.tokens import accepted_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient
    from requests import Response

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REMEDY = "give --address http://HEAD:8265, and forward the port where a firewall hides it"
REQUEST_SEC, RECONNECT_SEC = 10.0, 1.0
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 200, 401, 403, 404
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_CODE = 143


def dashboard_address(given: str | None) -> str:
    """The address of a cluster's dashboard: given, from Ray's own variables, or on this machine."""
    candidates = (given, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
    chosen = next((each for each in candidates if each and (each == given or each.startswith("http"))), DEFAULT_ADDRESS)
    return (chosen if "//" in chosen else f"http://{chosen}").rstrip("/")


def open_cluster(address: str, *, may_be_open: bool = False) -> "JobSubmissionClient":
    """A client of a cluster that answers, knows our token and runs our version of Ray.

    Args:
        may_be_open: Also take a cluster that lets in anybody without a token.

    Raises:
        ValueError: Nothing answers, no token is asked for, ours is missing or wrong, or the versions differ.
    """
    require_listener(address, what="Ray cluster", remedy=REMEDY)
    token = accepted_token(f"the cluster at {address}", partial(_admits, address))
    if token is None and not may_be_open:
        raise ValueError(
            f"the cluster at {address} lets in anybody: it was started without RAY_AUTH_MODE=token; start it with a "
            "token, or add --no-token if the network is trusted"
        )
    return _client(address, token)


def _admits(address: str, token: str | None) -> bool:
    """Whether a dashboard lets us in with a token, or without one."""
    answer = _get(address, "/api/jobs/", token).status_code
    if answer == UNAUTHORIZED or (token is not None and answer == FORBIDDEN):
        return False
    if answer != OK:
        raise ValueError(f"{address} is no Ray dashboard (it answers with {answer}); {REMEDY}")
    return True


@dataclass(frozen=True)
class Submission:
    """A job that is to exist.

    Attributes:
        name: What it is recognised by. Submitted again while it runs or after it succeeded, nothing
            new starts; after it failed or was stopped, its next attempt does.
        command: The shell command, run inside the package.
        package: Zip of the working tree.
        metadata: Shown by the dashboard.
    """

    name: str
    command: str
    package: Path
    metadata: dict[str, str]


@dataclass(frozen=True)
class Submitted:
    """Attributes:
    id: Of the attempt that runs, or that succeeded.
    fresh: Whether this call started it.
    """

    id: str
    fresh: bool


def submit(client: "JobSubmissionClient", submission: Submission) -> Submitted:
    """Start a job, unless it runs or has succeeded already.

    Raises:
        ValueError: The cluster does not take it.
    """
    attempts = _attempts(client, submission.name)
    latest = max(attempts, default=0)
    if latest and attempts[latest] not in ("FAILED", "STOPPED"):
        return Submitted(_id(submission.name, latest), fresh=False)
    new = _id(submission.name, latest + 1)
    environment = {"PYTHONUNBUFFERED": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
    try:
        client.submit_job(
            entrypoint=submission.command,
            submission_id=new,
            runtime_env={"working_dir": str(submission.package), "env_vars": environment},
            metadata=submission.metadata,
        )
    except RuntimeError as error:
        if (latest + 1) in _attempts(client, submission.name):  # Somebody was faster, with the same id.
            return Submitted(new, fresh=False)
        raise ValueError(f"the cluster does not take the job {new}: {_first_line(error)}") from None
    return Submitted(new, fresh=True)


def follow(client: "JobSubmissionClient", job: str) -> Iterator[str]:
    """The job's output from its beginning to its end, however often the connection breaks."""
    shown = 0
    while True:
        received = 0
        for chunk in _tail(client, job):
            received += len(chunk)
            if received > shown:
                yield chunk[max(0, len(chunk) - (received - shown)) :]
                shown = received
        if str(details(client, job).status) in ENDED:
            return
        time.sleep(RECONNECT_SEC)


def exit_code(client: "JobSubmissionClient", job: str) -> int:
    """The exit code of a job that has ended."""
    ended = details(client, job)
    if str(ended.status) == "SUCCEEDED":
        return 0
    if str(ended.status) == "STOPPED":
        return STOPPED_CODE
    return ended.driver_exit_code or 1


def details(client: "JobSubmissionClient", job: str) -> "JobDetails":
    """What the cluster knows about a job.

    Raises:
        ValueError: It knows none of that name, or the connection is lost.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "does not exist" in str(error) or str(NOT_FOUND) in str(error):
            raise ValueError(f"the cluster knows no job {job!r}; `atdiff jobs` lists those it knows") from None
        raise ValueError(f"the cluster does not tell about {job!r}: {_first_line(error)}") from None
    except OSError as error:  # What requests raises.
        raise ValueError(f"the cluster no longer answers: {_first_line(error)}") from None


def stop(client: "JobSubmissionClient", job: str, patience_sec: float = 60.0) -> str:
    """Stop a job and wait for its end; its last status.

    Raises:
        ValueError: There is no such job, or it does not end.
    """
    if str(details(client, job).status) not in ENDED:
        client.stop_job(job)
    deadline = time.monotonic() + patience_sec
    while (status := str(details(client, job).status)) not in ENDED:
        if time.monotonic() > deadline:
            raise ValueError(f"the job {job!r} does not end ({status} after {patience_sec:.0f} s)")
        time.sleep(0.5)
    return status


def _client(address: str, token: str | None) -> "JobSubmissionClient":
    import ray
    from ray.job_submission import JobSubmissionClient

    version = _get(address, "/api/version", token).json()["ray_version"]
    if version != ray.__version__:
        raise ValueError(
            f"the cluster at {address} runs Ray {version}, here is {ray.__version__}; install the same on both"
        )
    try:
        client = JobSubmissionClient(address)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"the cluster at {address} does not take our request: {_first_line(error)}") from None
    for talkative in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(talkative).setLevel(logging.WARNING)  # They tell of uploads and of closed sockets.
    return client


def _attempts(client: "JobSubmissionClient", name: str) -> dict[int, str]:
    """Status of every attempt of a job, by its number."""
    known: dict[int, str] = {}
    for job in client.list_jobs():
        base, _, number = (job.submission_id or "").rpartition(".")
        if base == name and number.isdigit():
            known[int(number)] = str(job.status)
    return known


def _id(name: str, attempt: int) -> str:
    return f"{name}.{attempt}"


def _tail(client: "JobSubmissionClient", job: str) -> Iterator[str]:
    """Chunks of the log until the job or the connection ends."""
    from aiohttp import ClientError

    loop = asyncio.new_event_loop()
    chunks = client.tail_job_logs(job)
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(chunks))
            except (StopAsyncIteration, RuntimeError, OSError, ClientError):
                return
    finally:
        loop.run_until_complete(chunks.aclose())  # type: ignore[attr-defined]
        loop.close()


def _get(address: str, path: str, token: str | None) -> "Response":
    """What the dashboard answers, asked with or without a token."""
    import requests

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return requests.get(f"{address}{path}", headers=headers, timeout=REQUEST_SEC)
    except requests.RequestException as error:
        raise ValueError(f"what listens at {address} is no Ray dashboard ({_first_line(error)}); {REMEDY}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
