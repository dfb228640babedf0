"""A real PostgreSQL for tests: Debian's package as a private cluster in a temporary folder, on a unix socket only."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import OperationalError

from rigs import waiting

#: Tests that use a cluster stay on one worker, so that it is made once.
on_postgresql = pytest.mark.xdist_group("postgresql")
#: For whom the cluster asks for a password.
LOCKED_USER, LOCKED_PASSWORD = "locked", "correct-horse"


def programs() -> Path:
    """The folder of `initdb` and `postgres`, newest version first; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return found[-1].parent


@dataclass
class PostgreSQL:
    """A cluster that can be stopped and started again."""

    folder: Path
    user: str
    log: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"

    def url(self, database: str, user: str | None = None, password: str | None = None) -> str:
        login = (user or self.user) + (f":{password}" if password is not None else "")
        return f"postgresql+psycopg://{login}@/{database}?host={self.folder}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user=self.user, dbname=database, autocommit=True)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, gone at the end."""
        name = f"store{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            with self.connect() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def make(self) -> None:
        data = self.folder / "data"
        self._run(
            "initdb", "-D", str(data), "-U", self.user, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"
        )
        rules = data / "pg_hba.conf"
        rules.write_text(f"local all {LOCKED_USER} scram-sha-256\n{rules.read_text()}")
        self.start()
        with self.connect() as connection:
            connection.execute(f"CREATE ROLE {LOCKED_USER} LOGIN PASSWORD '{LOCKED_PASSWORD}'")

    def start(self) -> None:
        """Start it and wait until it lets clients in."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        # It ends with the tests, however these end.
        command = [
            "setpriv",
            "--pdeathsig",
            "INT",
            str(programs() / "postgres"),
            "-D",
            str(self.folder / "data"),
            *options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._as_user())
        # `pg_isready` waits for nothing by itself, and `pg_ctl --wait` polls the same way.
        waiting.until(self._lets_in, self.process, what=self.log.read_text)

    def stop(self) -> None:
        """Throw every client out and stop."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            waiting.ended(self.process)
            self.process = None

    def _lets_in(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"PostgreSQL does not start: {self.log.read_text()[-2000:]}"
        with contextlib.suppress(OperationalError), self.connect():
            return True
        return False

    def _run(self, program: str, *arguments: str) -> None:
        with self.log.open("ab") as log:
            subprocess.run(
                [str(programs() / program), *arguments], check=True, stdout=log, stderr=log, cwd=self.folder,
                **self._as_user(),
            )  # fmt: skip

    def _as_user(self) -> dict[str, object]:
        """The server refuses to run as root."""
        if os.geteuid() != 0:
            return {}
        entry = pwd.getpwnam(self.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def cluster() -> Iterator[PostgreSQL]:
    """A running cluster, gone at the end."""
    programs()
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    # Not under pytest's own folder, which only its owner may enter; and short, as the socket's path has to be.
    folder = Path(tempfile.mkdtemp(prefix="fleetnas-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, user, user)
        server = PostgreSQL(folder, user)
        server.log.touch()
        server.make()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
