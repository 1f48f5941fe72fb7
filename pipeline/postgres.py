"""A PostgreSQL server of one's own, in a folder, reachable by a Unix socket and by nothing else."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEBIAN_FOLDERS = Path("/usr/lib/postgresql")
UNPRIVILEGED = "postgres"
START_SEC, STOP_SEC = 60, 60
SOCKET_PATH_BYTES = 100
SETTINGS = "listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 100\nlog_timezone = 'UTC'\n"


@dataclass(frozen=True)
class Postgres:
    """A folder with a database cluster and the socket of its server.

    Only the user who owns the folder can enter it, and there is no TCP port, so that the server
    asks for no password. PostgreSQL refuses to run as root: root runs it as ``postgres``.

    Attributes:
        folder: Made on first use, mode 0700.
    """

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database, for MLflow and for Optuna."""
        return f"postgresql+psycopg://{_role()}@/{database}?host={self.folder.resolve()}"

    def check_installed(self) -> None:
        """Raise a ``ValueError`` where PostgreSQL's programs are missing."""
        _binary("initdb")

    def start(self) -> None:
        """Start the server, making the cluster first where there is none.

        Raises:
            ValueError: PostgreSQL is not installed, the folder is no place for it, or it does not
                start; with what its log says.
        """
        self.check_installed()
        socket = str(self.folder.resolve() / ".s.PGSQL.5432")
        if len(socket.encode()) > SOCKET_PATH_BYTES:
            raise ValueError(f"the path of a Unix socket has at most {SOCKET_PATH_BYTES} bytes, got {socket}")
        self._make()
        log = self.folder / "server.log"
        began = self._run("pg_ctl", "start", "--wait", "-t", str(START_SEC), "-D", str(self.data), "-l", str(log))
        if began.returncode and not self.runs():
            said = [line for line in log.read_text().splitlines() if line.strip()] if log.is_file() else []
            raise ValueError(
                f"PostgreSQL does not start in {self.folder}: {said[-1] if said else began.stderr.strip()}"
            )

    def stop(self) -> None:
        """Stop the server, closing its connections; nothing happens where none runs."""
        self._run("pg_ctl", "stop", "--wait", "-t", str(STOP_SEC), "-m", "fast", "-D", str(self.data))

    def runs(self) -> bool:
        return self._run("pg_ctl", "status", "-D", str(self.data)).returncode == 0

    def ensure_database(self, name: str) -> str:
        """The address of a database, which is created where it is missing.

        Raises:
            ValueError: The server refuses.
        """
        made = self._run("createdb", "-h", str(self.folder.resolve()), name)
        if made.returncode and "already exists" not in made.stderr:
            raise ValueError(f"PostgreSQL in {self.folder} does not create {name!r}: {made.stderr.strip()}")
        return self.url(name)

    def _make(self) -> None:
        if (self.data / "PG_VERSION").is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if user := _unprivileged():
            shutil.chown(self.folder, user)
        made = self._run("initdb", "-D", str(self.data), "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
        if made.returncode:
            raise ValueError(f"PostgreSQL makes no cluster in {self.folder}: {made.stderr.strip().splitlines()[-1]}")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(folder=self.folder.resolve()))

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Files, not pipes: the server inherits them and would keep a pipe open for ever.
        errors = self.folder / f"{program}.err"
        with errors.open("w") as file:
            done = subprocess.run(
                [_binary(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                cwd="/",
                user=_unprivileged(),
                check=False,
            )
        return subprocess.CompletedProcess(done.args, done.returncode, "", errors.read_text())


@contextmanager
def running(folder: Path) -> Iterator[Postgres]:
    """A server for the length of a block; one that ran before is used and left running."""
    server = Postgres(folder)
    ran = (server.data / "PG_VERSION").is_file() and server.runs()
    if not ran:
        server.start()
    try:
        yield server
    finally:
        if not ran:
            server.stop()


def _unprivileged() -> str | None:
    return UNPRIVILEGED if os.geteuid() == 0 else None


def _role() -> str:
    return _unprivileged() or getpass.getuser()


def _binary(name: str) -> str:
    found = shutil.which(name)
    if found:
        return found
    versions = sorted(DEBIAN_FOLDERS.glob(f"*/bin/{name}"), key=lambda path: float(path.parent.parent.name))
    if not versions:
        raise ValueError(f"PostgreSQL is not installed ({name} not found); run: apt-get install postgresql")
    return str(versions[-1])
