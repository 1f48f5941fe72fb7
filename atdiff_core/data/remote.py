"""Files in an object store or on a web server, read in byte ranges; every read is tried again."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from atdiff_core.data.addresses import Scheme, scheme_of

Value = TypeVar("Value")

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
MAX_CONTENT_BYTES = 2**28
PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ImportError, ValueError)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
PASSING_STATUS = (408, 425, 429)
"""Of the HTTP errors below 500 only these can be better the next time."""


@dataclass(frozen=True)
class Patience:
    """How long to insist.

    Attributes:
        attempts: Reads of the same bytes before giving up; of ``gs://`` gcsfs makes six of each.
        timeout_sec: Silence of the server after which an attempt has failed.
        first_delay_sec: Before the second attempt; doubled for each further one, and spread by a
            random half, so that many workers do not come back at once.
    """

    attempts: int = 7
    timeout_sec: float = 30.0
    first_delay_sec: float = 0.5

    def insisting(self, read: Callable[[], Value], *, what: str) -> Value:
        """What ``read`` gives in the end.

        Raises:
            ValueError: If it cannot succeed, or has not in any attempt; names what was read.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return read()
            except Exception as error:
                if _is_permanent(error):
                    raise ValueError(f"{what}: {_said(error)}") from error
                if attempt == self.attempts:
                    raise ValueError(f"{what}: {attempt} attempts failed, the last with {_said(error)}") from error
                time.sleep(self.first_delay_sec * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("at least one attempt is made")


class RemoteFolder:
    """The files below an ``http(s)://``, ``s3://`` or ``gs://`` address.

    Credentials and endpoints come from where the store's own tools look for them (environment,
    configuration files), or from fsspec's configuration.
    """

    def __init__(self, address: str, patience: Patience) -> None:
        scheme = scheme_of(address)
        assert scheme is not None
        self.address = address.rstrip("/")
        self._patience = patience
        self._files = _file_system(scheme, patience.timeout_sec)

    def content(self, name: str) -> bytes:
        """A whole file of at most ``MAX_CONTENT_BYTES``."""
        path = f"{self.address}/{name}"
        content: bytes = self._patience.insisting(
            lambda: self._files.cat_file(path, start=0, end=MAX_CONTENT_BYTES), what=path
        )
        if len(content) >= MAX_CONTENT_BYTES:
            raise ValueError(f"{path}: more than {MAX_CONTENT_BYTES} bytes, which no index or table has")
        return content

    def part(self, name: str, start: int, stop: int) -> bytes:
        """The bytes ``start`` to ``stop - 1`` of a file, all of them."""
        path = f"{self.address}/{name}"

        def read() -> bytes:
            content: bytes = self._files.cat_file(path, start=start, end=stop)
            if len(content) > stop - start:
                raise ValueError("the server ignores byte ranges; serve the set from one that knows them")
            if len(content) < stop - start:
                raise ConnectionError(f"{len(content)} of {stop - start} bytes came; is the file shorter than indexed?")
            return content

        return self._patience.insisting(read, what=f"{path}, bytes {start} to {stop - 1}")


def _file_system(scheme: Scheme, timeout_sec: float) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    try:
        if scheme == "s3":
            once = {"max_attempts": 0}  # The attempts are ours: theirs know no stalls.
            options = {"config_kwargs": {"connect_timeout": timeout_sec, "read_timeout": timeout_sec, "retries": once}}
        else:
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(None, sock_connect=timeout_sec, sock_read=timeout_sec)
            options = {"requests_timeout": timeout} if scheme == "gs" else {"client_kwargs": {"timeout": timeout}}
        system = fsspec.filesystem(scheme, **options)
    except ImportError:
        package = PACKAGES[scheme]
        raise ValueError(f"{scheme}:// addresses need {package}; run: pip install {package}") from None
    if scheme == "s3":
        system.retries = 1
    if scheme == "gs":
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # Prints a traceback before it raises the same error.
    return system


def _is_permanent(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in PASSING_STATUS
    return isinstance(error, PERMANENT) or type(error).__name__ in NO_CREDENTIALS


def _said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"{type(error).__name__}: {str(error) or 'no answer in time'}".replace("\n", " ")[:300]
