"""Inserts many rows of one table with a statement that is compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic_core import to_json
from sqlalchemy import JSON, Connection
from sqlalchemy.sql.dml import Insert

from fleetnas.coordinator.store.database import Database


class BulkInsert:
    """An insert of whole rows: SQLAlchemy's own way through a statement takes longer than the database.

    Values are given as the driver takes them: texts, numbers, bytes, None. Values of JSON columns are converted here;
    those that are bytes are taken for JSON already.
    """

    def __init__(self, database: Database, statement: Insert) -> None:
        """Compile an `insert` of every column of its table; what it returns is not read."""
        columns = statement.table.columns
        names = [column.name for column in columns]
        compiled = statement.compile(dialect=database.engine_dialect, column_keys=names)
        self._sql = str(compiled)
        self._names: list[str] = list(compiled.positiontup) if compiled.positiontup is not None else names
        self._by_name = compiled.positiontup is None
        json = {
            column.name: _nullable_json_text if column.type.none_as_null else _json_text
            for column in columns
            if isinstance(column.type, JSON)
        }
        self._of: list[tuple[str, Callable[[Any], Any] | None]] = [(name, json.get(name)) for name in self._names]

    def execute(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert rows, each a value per column; none is no statement at all."""
        found = [[row[name] if convert is None else convert(row[name]) for name, convert in self._of] for row in rows]
        if not found:
            return
        if self._by_name:
            connection.exec_driver_sql(self._sql, [dict(zip(self._names, row, strict=True)) for row in found])
        else:
            connection.exec_driver_sql(self._sql, [tuple(row) for row in found])


def _json_text(value: Any) -> str:
    return (value if isinstance(value, bytes) else to_json(value)).decode()


def _nullable_json_text(value: Any) -> str | None:
    return None if value is None else _json_text(value)
