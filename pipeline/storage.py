"""Where Optuna keeps studies: an SQLite file, a journal file or a PostgreSQL database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from atdiff_core.files import read_json, write_json
from pipeline.sqlite_files import keep_file

STORAGE = "storage.json"
JOURNAL = "journal:///"
SQLITE_PATIENCE_SEC = 60


class StorageLost(ValueError):  # noqa: N818
    """The storage cannot be opened, or cannot be reached any more."""


def open_storage(url: str) -> BaseStorage:
    """The storage behind a URL.

    Args:
        url: ``sqlite:////absolute/study.db``, ``journal:////absolute/study.log`` or
            ``postgresql://user@host:port/database``. The password of a database is best left to
            ``PGPASSWORD`` or ``~/.pgpass``.

    Raises:
        StorageLost: It cannot be opened.
    """
    with speaking_of(url):
        if url.startswith(JOURNAL):
            path = Path(url.removeprefix(JOURNAL))
            if not path.parent.is_dir():
                raise StorageLost(f"the journal's folder {path.parent} does not exist; make it, or give another one")
            return JournalStorage(JournalFileBackend(str(path)))
        return _opened_database(url)


def _opened_database(url: str) -> BaseStorage:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StorageLost(f"a storage is a URL of sqlite, journal or postgresql, got {url!r}") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        options: dict[str, Any] = {"connect_args": {"timeout": SQLITE_PATIENCE_SEC}}
    elif kind == "postgresql":
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
    else:
        raise StorageLost(f"a storage is a URL of sqlite, journal or postgresql, got one of {kind!r}")
    try:
        storage = RDBStorage(parsed.render_as_string(hide_password=False), engine_kwargs=options)
    except ModuleNotFoundError:
        raise StorageLost("PostgreSQL needs a driver; run: pip install 'atdiff[postgres]'") from None
    if kind == "sqlite" and parsed.database and Path(parsed.database).is_file():
        keep_file(storage.engine, Path(parsed.database).absolute())
    return storage


def close_storage(storage: BaseStorage) -> None:
    """Let go of a storage; an SQLite file is whole by itself then, without its write-ahead log."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def shown(url: str) -> str:
    """The URL without a password."""
    return url if url.startswith(JOURNAL) else make_url(url).render_as_string(hide_password=True)


def storage_of(folder: Path, given: str | None, default: str) -> str:
    """The storage of a sweep, the same as long as the sweep lives; noted in its folder without a password.

    Raises:
        ValueError: Another one is given than the sweep was started with.
    """
    noted = read_json(folder / STORAGE)["url"] if (folder / STORAGE).is_file() else None
    if given is None:
        return noted or default
    if noted is not None and noted != shown(given):
        raise ValueError(
            f"the sweep in {folder} keeps its studies in {noted}, got {shown(given)}; "
            "leave --storage away, or give the sweep another name"
        )
    write_json(folder / STORAGE, {"url": shown(given)})
    return given


@contextmanager
def speaking_of(url: str) -> Iterator[None]:
    """Turn whatever a storage raises into one line about it."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        said = str(cause).strip().splitlines() or [type(cause).__name__]
        raise StorageLost(
            f"the storage {shown(url)} cannot be used: {said[0]}; "
            "nothing is lost: once it can be written again, the same command continues"
        ) from None


class _Stored(Protocol):
    storage_url: str


Self = TypeVar("Self", bound=_Stored)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def reaching_storage(
    method: Callable[Concatenate[Self, Arguments], Result],
) -> Callable[Concatenate[Self, Arguments], Result]:
    """A method whose storage errors become ``StorageLost``."""

    @wraps(method)
    def reaching(self: Self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with speaking_of(self.storage_url):
            return method(self, *args, **kwargs)

    return cast(Callable[Concatenate[Self, Arguments], Result], reaching)
