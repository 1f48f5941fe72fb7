"""Where a sweep or a comparison keeps its files, and what it was run on."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atdiff_core.config import Config
from atdiff_core.files import read_json, write_json
from pipeline.extension import Declared, check_changes
from pipeline.history import note_event
from pipeline.records import TRIAL
from search_spaces.comparison import Comparison
from search_spaces.space import EXTENDABLE, Space

LOCK = "driver.lock"
MIN_FREE_BYTES = 500_000_000
DECLARATIONS: dict[type[Declared], str] = {Space: "sweep.json", Comparison: "comparison.json"}


@dataclass(frozen=True)
class Workspace:
    """The folder of one sweep or comparison, inside a root that several share.

    Attributes:
        root: Holds the MLflow database, the cache of reference features, and one folder a name.
        name: Of the sweep or the comparison.
        tracking: Address of an MLflow server or database; the root's own file without it.
    """

    root: Path
    name: str
    tracking: str | None = None

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def tracking_uri(self) -> str:
        return self.tracking or f"sqlite:///{(self.root / 'mlflow.db').resolve()}"

    @property
    def study_uri(self) -> str:
        return f"sqlite:///{(self.folder / 'study.db').resolve()}"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def law(self) -> Path:
        return self.folder / "law.json"

    @property
    def plan(self) -> Path:
        """What ``atdiff plan`` foresaw."""
        return self.folder / "plan.json"

    @property
    def driver(self) -> Path:
        """How many trials the driver runs at once."""
        return self.folder / "driver.json"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def trial(self, key: str) -> Path:
        """Folder of the trial with this key; the key's first 16 digits name it."""
        return self.folder / "trials" / key[:16]

    def trial_folders(self) -> list[Path]:
        """Folders of all trials that were ever declared, in a fixed order."""
        return sorted(file.parent for file in (self.folder / "trials").glob(f"*/{TRIAL}"))

    def claim(self, declared: Declared, *, extend: bool = False) -> None:
        """Take the folder for a declaration, or continue in it; what happens is noted in its history.

        Args:
            extend: Whether a sweep may grow: more trials, resolutions, leaders or seeds.

        Raises:
            ValueError: The name was used for another configuration.
        """
        other = next(file for kind, file in DECLARATIONS.items() if kind is not type(declared))
        if (self.folder / other).exists():
            raise ValueError(
                f"the name {self.name!r} is taken in {self.root} (it holds a {other}); choose another name"
            )
        declaration = self.folder / DECLARATIONS[type(declared)]
        content = declared.model_dump(mode="json")
        if not declaration.exists():
            write_json(declaration, content)
            note_event(self.folder, "started", identity=declared.identity)
            return
        earlier = type(declared).model_validate(read_json(declaration))
        changes = {name: [getattr(earlier, name), value] for name, value in _fields(declared) if name != "shards"}
        changes = {name: change for name, change in changes.items() if change[0] != change[1]}
        check_changes(
            f"{declaration.stem} {self.name!r} in {self.root}", earlier, declared, sorted(changes), extend=extend
        )
        told = {name: [_plain(value) for value in change] for name, change in changes.items()}
        if changes:
            grown = any(name in EXTENDABLE for name in changes)
            note_event(self.folder, "extended" if grown else "changed", changes=told)
            write_json(declaration, content)
        else:
            note_event(self.folder, "continued")

    def check_disk(self) -> None:
        """Refuse to start on a disk that the sweep would fill."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if free < MIN_FREE_BYTES:
            raise ValueError(
                f"only {free / 1e6:.0f} MB are free at {self.root}, a sweep wants {MIN_FREE_BYTES / 1e6:.0f}; "
                "make room or give another --root"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one driver; the lock goes with the process, however it ends.

        Raises:
            ValueError: Another process runs it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ValueError(
                    f"{self.name!r} in {self.root} is already being run by process {file.read()}"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def declared(self) -> Declared:
        """The sweep or the comparison that this folder was claimed for.

        Raises:
            ValueError: It was claimed for neither.
        """
        if (self.folder / DECLARATIONS[Space]).is_file():
            return self.space()
        if (self.folder / DECLARATIONS[Comparison]).is_file():
            return self.comparison()
        raise ValueError(f"{self.folder} holds neither a sweep.json nor a comparison.json")

    def driver_process(self) -> int | None:
        """The process that holds the folder; ``None`` where nobody does."""
        lock = self.folder / LOCK
        if not lock.is_file():
            return None
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0)
        return None

    def space(self) -> Space:
        """The space that this folder was claimed for."""
        return Space.model_validate(read_json(self.folder / DECLARATIONS[Space]))

    def comparison(self) -> Comparison:
        """The comparison that this folder was claimed for."""
        return Comparison.model_validate(read_json(self.folder / DECLARATIONS[Comparison]))


def _fields(declared: Declared) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(declared, name)) for name in type(declared).model_fields)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Config) else value


def machine() -> dict[str, str]:
    """What the sweep runs on, for the report and MLflow."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "accelerator": accelerator,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
