"""`fleetnas-agent status`: what the agents of this host are and hold, from their state folders."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """One agent's state folder."""

    fleet: str
    name: str
    running: bool
    #: Results that no coordinator has acknowledged; None where the outbox cannot be read.
    unacknowledged: int | None
    acknowledged: int | None
    #: Blobs on their way in: hash and bytes so far.
    partial: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Everything under one state folder."""

    agents: tuple[AgentStatus, ...]
    blobs: int
    blob_bytes: int


def host_standing(root: Path) -> HostStatus:
    """What lies under `root`; an empty standing where there is nothing."""
    agents = tuple(_agent_standing(session.parent) for session in sorted(root.glob("fleets/*/*/session")))
    sizes = [path.stat().st_size for path in root.glob("blobs/*")]
    return HostStatus(agents, len(sizes), sum(sizes))


def standing_lines(standing: HostStatus) -> list[str]:
    """For people."""
    lines = []
    for agent in standing.agents:
        state = "running" if agent.running else "stopped"
        held = "outbox unreadable" if agent.unacknowledged is None else f"{agent.unacknowledged} results to deliver"
        fetching = "".join(f", fetching {sha256[:12]} ({size:,} bytes so far)" for sha256, size in agent.partial)
        lines.append(f"{agent.fleet}/{agent.name}: {state}, {held}, {agent.acknowledged or 0} delivered{fetching}")
    lines = lines or ["no agent has run here yet; start one with: fleetnas-agent run --broker HOST"]
    return [*lines, f"cache: {standing.blobs} blobs, {standing.blob_bytes / 1e6:,.1f} MB"]


def _agent_standing(folder: Path) -> AgentStatus:
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
