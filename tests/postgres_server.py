"""A PostgreSQL server of Debian's package, started for the tests on a free port with its own data."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

PATIENCE_SEC = 60


def postgres_programs() -> Path | None:
    """Folder of ``initdb`` and ``postgres``; ``None`` where PostgreSQL is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = versions[-1] if versions else Path(shutil.which("initdb") or "")
    return found.resolve().parent if found.is_file() else None


class PostgresServer:
    """Runs until ``stop``; may be stopped and started again on the same data and port."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._home = Path(tempfile.mkdtemp(prefix="atdiff-pg-"))
        self._user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root.
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._home, account.pw_uid, account.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-D", str(self._home / "data"), "-U", "postgres", "--auth=trust", "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, database: str) -> str:
        """URL of a database, made where it does not exist."""
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone()
            if not known:
                connection.execute(f'CREATE DATABASE "{database}"')
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, database: str, statement: str) -> None:
        with psycopg.connect(self._address(database), autocommit=True) as connection:
            connection.execute(statement)

    def start(self) -> None:
        command = [self._programs / "postgres", "-D", self._home / "data", "-p", str(self.port), "-F"]
        self._process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-k", str(self._home)],
            user=self._user, cwd=self._home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_SEC
        while True:
            try:
                psycopg.connect(self._address("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """End it at once, connections included."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _address(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], user=self._user, cwd=self._home, check=True, capture_output=True
        )
