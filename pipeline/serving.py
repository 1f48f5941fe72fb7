"""The MLflow server of a team: its database, who may come in, and where its files lie."""

import fcntl
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pipeline.listening import without_password

LOOPBACK = ("127.0.0.1", "localhost", "::1")
USERS_DATABASE = "users.db"
PASSWORD_FILE, SECRET_FILE, AUTH_FILE, LOCK_FILE = "admin-password", "cookie-secret", "auth.ini", "migrate.lock"
ADMIN = "admin"
STOP_SEC = 20
GIVEN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
"""Environment variable that gives the administrator's first password, say from a Kubernetes secret."""


@dataclass(frozen=True)
class Service:
    """What ``atdiff serve`` runs.

    Attributes:
        folder: For the password, the users and the lock, mode 0700.
        database: SQLAlchemy's address of the tracking database.
        artifacts: Folder or bucket (``s3://…``) of pictures and reports; clients send them through the server.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Names, with a port where it is not the standard one, by which browsers and
            clients may call the server; a request for another name is refused, against DNS rebinding.
        auth: Whether a user name and a password are asked for.
        workers: Server processes.
    """

    folder: Path
    database: str
    artifacts: str
    host: str = "127.0.0.1"
    port: int = 5000
    allowed_hosts: Sequence[str] = field(default_factory=tuple)
    auth: bool = True
    workers: int = 1

    def check(self) -> None:
        """Refuse a door that would be open to strangers.

        Raises:
            ValueError: Listening beyond this machine without a password, or without names.
        """
        if self.host in LOOPBACK:
            return
        if not self.auth:
            raise ValueError(
                f"without a password the server listens on this machine only, got --host {self.host}; "
                "leave --no-auth out"
            )
        if not self.allowed_hosts:
            raise ValueError(
                f"--host {self.host} needs --allowed-hosts, the names by which people call this server, "
                f"say tracking.example.org:{self.port}"
            )

    @property
    def password_file(self) -> Path:
        return self.folder / PASSWORD_FILE

    def command(self) -> list[str]:
        """The server's command line; what is secret is in its environment."""
        hosts = dict.fromkeys([*self.allowed_hosts, *(f"{name}:{self.port}" for name in LOOPBACK[:2])])
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--artifacts-destination", self.artifacts]
        command += ["--allowed-hosts", ",".join(hosts), "--uvicorn-opts", "--no-access-log"]
        return command + (["--app-name", "basic-auth"] if self.auth else [])

    def environment(self) -> dict[str, str]:
        settings = {
            "MLFLOW_BACKEND_STORE_URI": self.database,  # Not on the command line: it may hold a password.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        if not self.auth:
            return inherited | settings
        return (
            inherited
            | settings
            | {
                "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / AUTH_FILE),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": _kept_secret(self.folder / SECRET_FILE),
                "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
                "MLFLOW_AUTH_ADMIN_PASSWORD": _kept_secret(self.password_file),
            }
        )

    def prepare(self, *, upgrade: bool) -> None:
        """Make folder, secrets and tables; one process at a time, before any server process starts.

        Args:
            upgrade: Also migrate a database that an older MLflow made. That takes no way back.

        Raises:
            ValueError: The database does not answer, or is of another MLflow.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with _locked(self.folder / LOCK_FILE):
            _migrate(self.database, upgrade)
            if self.auth:
                users = (self.folder / USERS_DATABASE).resolve()
                _write_private(self.folder / AUTH_FILE, _auth_settings(f"sqlite:///{users}"))
                _migrate_users(f"sqlite:///{users}")

    def running(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The server, as prepared, for the length of a block; its worker processes end with it."""
        return serving(self.command(), self.environment())


@contextmanager
def serving(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the length of a block; its worker processes end with it."""
    server = subprocess.Popen(command, env=environment, process_group=0)
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=STOP_SEC)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def leave_at_sigterm() -> None:
    """Make SIGTERM leave open blocks as Ctrl-C does: what this process has started ends with it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _migrate(database: str, upgrade: bool) -> None:
    import mlflow.store.db.utils as store
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        engine = sqlalchemy.create_engine(database, **_connection_limits(database))
        empty = store._is_empty_database(engine)
    except Exception as error:  # SQLAlchemy and each database driver have their own.
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the database {without_password(database)} does not answer: {said}") from None
    try:
        if empty:
            store._initialize_tables(engine)
            return
        try:
            store._verify_schema(engine)
        except MlflowException:
            if not upgrade:
                raise ValueError(
                    f"another release of MLflow made {without_password(database)}; back it up, then add --upgrade"
                ) from None
            store._upgrade_db(engine)
    finally:
        engine.dispose()


def _connection_limits(database: str) -> dict[str, dict[str, int]]:
    return {"connect_args": {"connect_timeout": 10}} if database.startswith("postgresql") else {}


def _migrate_users(database: str) -> None:
    import sqlalchemy
    from mlflow.server.auth.db.utils import migrate_if_needed

    engine = sqlalchemy.create_engine(database)
    migrate_if_needed(engine, "head")
    engine.dispose()


def _auth_settings(users: str) -> str:
    return (
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        f"database_uri = {users}\n"
        f"admin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # A password is hashed once a minute, not at every request.
    )


def _kept_secret(file: Path) -> str:
    """A random word, made once and kept in a file that only its owner reads."""
    if not file.is_file():
        _write_private(file, secrets.token_urlsafe(24) + "\n")
    return file.read_text().strip()


def _write_private(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
