"""Names of runs and devices in a store's file, for a shell that completes them: read at once, or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

#: Names that a shell is given, at most.
_MOST_NAMES = 200
#: Time to wait for another process that writes, seconds: somebody waits at the keyboard.
_WAIT_S = 0.2


def run_ids(location: str) -> list[str]:
    """Return the ids of the runs, the newest first; empty where the store is no file, or cannot be read."""
    return _column(location, "SELECT run_id FROM runs ORDER BY created_unix_s DESC LIMIT ?")


def run_names(location: str) -> list[str]:
    """Return the names that runs were given, the newest first; empty where the store is no file, or cannot be read."""
    return _column(location, "SELECT name FROM runs WHERE name IS NOT NULL ORDER BY created_unix_s DESC LIMIT ?")


def device_names(location: str) -> list[str]:
    """Return the names of the devices of all runs; empty where the store is no file, or cannot be read."""
    return _column(location, "SELECT DISTINCT device FROM devices ORDER BY device LIMIT ?")


def open_to_look(location: str) -> sqlite3.Connection | None:
    """Open a store's file without loading SQLAlchemy, only to read; None where it is no file that can be opened."""
    if "://" in location:
        return None
    try:
        path = Path(location).expanduser().absolute()
        return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_WAIT_S)
    except (OSError, RuntimeError, ValueError, sqlite3.Error):
        return None


def _column(location: str, query: str) -> list[str]:
    connection = open_to_look(location)
    if connection is None:
        return []
    try:
        rows: Sequence[tuple[object]] = connection.execute(query, (_MOST_NAMES,)).fetchall()
    except sqlite3.Error:
        return []
    finally:
        connection.close()
    return [str(name) for (name,) in rows if isinstance(name, str) and name.isprintable()]
