"""One driver a study: who drives it, told in the study itself, wherever the driver runs."""

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

import optuna

BEAT_SEC, DEAD_AFTER_SEC = 20.0, 120.0
DRIVER = "driver"


class Lease:
    """A sign of life that the driver of a study renews while its process lives.

    A study whose driver died is free at once on the same machine, and after two minutes without a
    sign of life on another; the clocks of the machines must agree to within that.
    """

    def __init__(self, study: optuna.Study) -> None:
        """Take the study.

        Raises:
            ValueError: A driver that lives has it.
        """
        self._study, self._token = study, uuid.uuid4().hex
        holder = study.user_attrs.get(DRIVER)
        if holder and _lives(holder):
            raise ValueError(
                f"the study {study.study_name!r} is already being driven by process {holder['pid']} on "
                f"{holder['host']} (last sign of life {time.time() - holder['time']:.0f} s ago); wait for its end, "
                "or end it first"
            )
        self._beat()
        self._ended = threading.Event()
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def release(self) -> None:
        """Leave the study to the next driver."""
        self._ended.set()
        with suppress(Exception):  # A storage that is gone has its own error already.
            self._study.set_user_attr(DRIVER, None)

    def _beat(self) -> None:
        sign = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token, "time": time.time()}
        self._study.set_user_attr(DRIVER, sign)

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SEC):
            with suppress(Exception):  # Whoever asks or tells next says that the storage is gone.
                self._beat()


def _lives(holder: dict[str, Any]) -> bool:
    if time.time() - holder["time"] > DEAD_AFTER_SEC:
        return False
    if holder["host"] != socket.gethostname():
        return True
    if holder["pid"] == os.getpid():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
