"""Know that a store in a file holds no run, without opening it as a store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fleetnas.coordinator.store.stored_names import open_to_look

_MIGRATIONS = Path(__file__).parent / "migrations" / "versions"


def is_empty_file(location: str) -> bool:
    """Whether a store is a file that is not there, or one of this version that holds no run.

    Loads neither SQLAlchemy nor Alembic. False where that is not certain, as with a URL or a damaged file.
    """
    if "://" in location:
        return False
    try:
        if not Path(location).expanduser().exists():
            return True
    except (OSError, RuntimeError, ValueError):
        return False
    connection = open_to_look(location)
    if connection is None:
        return False
    try:
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        is_current = versions == [(_newest_revision(),)]
        return is_current and connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is None
    except sqlite3.Error:
        return False
    finally:
        connection.close()


def _newest_revision() -> str:
    """Return the number of the newest migration, by the names of the files."""
    return max(file.name[1:5] for file in _MIGRATIONS.glob("v[0-9][0-9][0-9][0-9]_*.py"))
