"""Keep results on disk until the coordinator has acknowledged them: an agent that is killed at any time loses none."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import TaskKey

#: Acknowledged results that are kept, so that a repeated task is answered instead of measured again.
MAX_ACKNOWLEDGED = 512

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    payload BLOB NOT NULL,
    acknowledged INTEGER NOT NULL DEFAULT 0,
    UNIQUE (task_id, attempt)
)
"""


class Outbox:
    """Stores encoded `Result` and `Failed` messages by task and attempt. Every method may raise `StoreError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            # FULL: a result is on the disk, not only with the kernel, before it is sent.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def put(self, key: TaskKey, payload: bytes) -> bool:
        """Store a result durably; return False, and change nothing, if this attempt already has one."""
        row = (key.task_id, key.attempt, payload)
        sql = "INSERT OR IGNORE INTO results (task_id, attempt, payload) VALUES (?, ?, ?)"
        return self._execute(sql, row).rowcount == 1

    def find(self, key: TaskKey) -> bytes | None:
        """Return the stored result of an attempt, acknowledged or not; None if there is none."""
        sql = "SELECT payload FROM results WHERE task_id = ? AND attempt = ?"
        row = self._execute(sql, (key.task_id, key.attempt)).fetchone()
        return bytes(row[0]) if row else None

    def pending(self) -> list[tuple[TaskKey, bytes]]:
        """Return the attempts and results that are not acknowledged, oldest first."""
        sql = "SELECT task_id, attempt, payload FROM results WHERE acknowledged = 0 ORDER BY sequence"
        rows = self._execute(sql).fetchall()
        return [(TaskKey(task_id=row[0], attempt=row[1]), bytes(row[2])) for row in rows]

    def acknowledge(self, key: TaskKey) -> bool:
        """Mark a result as acknowledged; return False if there was none to acknowledge."""
        sql = "UPDATE results SET acknowledged = 1 WHERE task_id = ? AND attempt = ? AND acknowledged = 0"
        changed = self._execute(sql, (key.task_id, key.attempt)).rowcount == 1
        if changed:
            self._execute(
                "DELETE FROM results WHERE acknowledged = 1 AND sequence <= "
                "(SELECT sequence FROM results WHERE acknowledged = 1 ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
                (MAX_ACKNOWLEDGED,),
            )
        return changed

    def drop_oldest(self, keep: int) -> list[TaskKey]:
        """Delete all but the newest `keep` unacknowledged results; return their attempts."""
        dropped = [key for key, _ in self.pending()[: max(0, len(self) - keep)]]
        for key in dropped:
            self._execute("DELETE FROM results WHERE task_id = ? AND attempt = ?", (key.task_id, key.attempt))
        return dropped

    def __len__(self) -> int:
        """Return the number of unacknowledged results."""
        return int(self._execute("SELECT count(*) FROM results WHERE acknowledged = 0").fetchone()[0])

    def close(self) -> None:
        """Close the database; stored results are safe without it."""
        self._database.close()

    def _execute(self, sql: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(sql, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> StoreError:
        action = "move it away to begin a new one" if isinstance(error, sqlite3.DatabaseError) else "check the folder"
        if isinstance(error, sqlite3.OperationalError):
            action = "free some space or make the folder writable, or choose another with --state-dir"
        return StoreError(f"the outbox {self._path} cannot be used: {error}; {action}")
