"""Claims of runs: a coordinator holds a lock on its run, which ends with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import zlib
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from fleetnas.fleet_protocol.errors import StoreError

#: Errors of a lock that another process holds; POSIX allows either.
_TAKEN = (errno.EACCES, errno.EAGAIN)


class Claims(Protocol):
    """The claims of one open store."""

    def take(self, run_id: str) -> bool:
        """Claim a run; False where another process has it, `StoreError` where locks do not work."""

    def close(self) -> None:
        """Release every run."""


class FileClaims:
    """Claims beside an SQLite file, for the processes of this machine: one byte of a lock file for each run."""

    def __init__(self, store: Path | None) -> None:
        """Take the path of the store; None for one in memory, which only this process has."""
        self._path = store.with_name(store.name + "-claims") if store is not None else None
        self._file: int | None = None

    def take(self, run_id: str) -> bool:
        """Claim a run; False where another process has it."""
        if self._path is None:
            return True
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, zlib.crc32(run_id.encode()))
        except OSError as error:
            if self._file is not None and error.errno in _TAKEN:
                return False
            raise StoreError(
                f"run {run_id} cannot be claimed with a lock on {self._path} ({error.strerror}): without one, two "
                "coordinators could work on it at once. Put the store on a disk of this machine that can be written, "
                "as many network file systems give no locks, or into PostgreSQL"
            ) from error
        return True

    def close(self) -> None:
        """Release every run."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class ServerClaims:
    """Claims as advisory locks of PostgreSQL, for all clients of the database; they end with their connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def take(self, run_id: str) -> bool:
        """Claim a run; False where another process has it."""
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        lock = text("SELECT pg_try_advisory_lock(hashtext('fleetnas run'), hashtext(:run_id))")
        return bool(self._connection.execute(lock, {"run_id": run_id}).scalar())

    def close(self) -> None:
        """Release every run."""
        if self._connection is not None:
            # Not handed back to the pool: the locks end with it. The server may have gone first.
            with contextlib.suppress(SQLAlchemyError):
                self._connection.invalidate()
            self._connection.close()
            self._connection = None
