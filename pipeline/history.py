"""The audit trail of a sweep: when it was started, continued, extended, interrupted and ended, by whom."""

import getpass
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

HISTORY = "history.jsonl"
Event = Literal["started", "continued", "extended", "changed", "interrupted", "budget", "failed", "ended"]


def note_event(folder: Path, event: Event, **details: Any) -> None:
    """Append one line; lines are never changed or taken away."""
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **_who(), **details}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HISTORY).open("a") as file:
        file.write(json.dumps(line) + "\n")


def events_of(folder: Path) -> Iterator[dict[str, Any]]:
    """What has happened, oldest first."""
    file = folder / HISTORY
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue  # A kill in the middle of a write.


def _who() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container's number without a name.
        user = str(os.getuid())
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid()}
