"""Read the status of this host's agents from their state folder: whether they run, and their results."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Status of one agent."""

    fleet: str
    name: str
    running: bool
    #: Results that no coordinator has acknowledged; None if the outbox cannot be read.
    unacknowledged: int | None
    acknowledged: int | None
    #: Partial files: hash and bytes so far.
    partial: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Status of every agent of one state folder, and of the blob cache."""

    agents: tuple[AgentStatus, ...]
    blobs: int
    blob_bytes: int


def read_host_status(root: Path) -> HostStatus:
    """Return the status of every agent below the state folder `root`; an empty one if there is nothing."""
    agents = tuple(_read_agent(session.parent) for session in sorted(root.glob("fleets/*/*/session")))
    sizes = [path.stat().st_size for path in root.glob("blobs/*")]
    return HostStatus(agents, len(sizes), sum(sizes))


def _read_agent(folder: Path) -> AgentStatus:
    pending, delivered = _counts(folder / "outbox.sqlite")
    return AgentStatus(
        fleet=folder.parent.name,
        name=folder.name,
        running=_is_locked(folder / "session"),
        unacknowledged=pending,
        acknowledged=delivered,
        partial=tuple((path.stem, path.stat().st_size) for path in sorted(folder.glob("partial/*.partial"))),
    )


def _is_locked(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, where no agent can run either
        return False
    finally:
        os.close(handle)
    return False


def _counts(outbox: Path) -> tuple[int | None, int | None]:
    try:
        database = sqlite3.connect(f"file:{outbox}?mode=ro", uri=True)
        try:
            rows = dict(database.execute("SELECT acknowledged, count(*) FROM results GROUP BY acknowledged").fetchall())
        finally:
            database.close()
    except sqlite3.Error:
        return None, None
    return rows.get(0, 0), rows.get(1, 0)
