"""Waiting for what other processes and threads do in their own time."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, sec: float = 120.0) -> None:
    """Return once the condition holds; fail if it never does."""
    deadline = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
