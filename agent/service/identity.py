"""Claim an agent's name on this host: its folder, locked, the session number and the instance."""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from fleetnas.fleet_protocol.errors import DuplicateAgentError, StoreError


@dataclass(frozen=True, slots=True)
class Identity:
    """One agent process. Its lock is held until the process ends, however it ends."""

    name: str
    #: Grows with every start, so that messages of an earlier process are recognised.
    session: int
    #: Random per process: tells two agents of one name apart.
    instance: str
    _lock_handle: int

    @classmethod
    def claim(cls, folder: Path, name: str, now_unix_s: float) -> Identity:
        """Lock `folder` for `name` and begin its next session.

        Raises `DuplicateAgentError` if another process of this host has locked it, `StoreError` if the folder cannot be
        written or locked.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(folder / "session", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"the state folder {folder} cannot be written ({error}); choose another with --state-dir"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise DuplicateAgentError(
                f"an agent called {name!r} already runs on this host (it holds {folder}); stop it, or start this one "
                "with another --name"
            ) from None
        except OSError as error:
            os.close(handle)
            raise StoreError(
                f"the state folder {folder} cannot be locked ({error.strerror}), and without a lock two agents could "
                "use one name; choose another with --state-dir, on a disk of this device: many network file systems "
                "give no locks"
            ) from error
        try:
            # Never backwards, even on a board without a battery-backed clock that boots in 1970.
            session = max(_stored_session(handle) + 1, round(1000 * now_unix_s))
            os.pwrite(handle, f"{session:<20d}\n".encode(), 0)
            os.fsync(handle)
        except OSError as error:
            os.close(handle)
            raise StoreError(
                f"the state folder {folder} cannot be written ({error}); free some space, or choose another with "
                "--state-dir"
            ) from error
        return cls(name, session, secrets.token_hex(8), handle)

    def release(self) -> None:
        """Unlock the folder, so that another process can take the name."""
        os.close(self._lock_handle)


def _stored_session(handle: int) -> int:
    try:
        return min(int(os.pread(handle, 32, 0)), 2**52)
    except ValueError:
        return 0
