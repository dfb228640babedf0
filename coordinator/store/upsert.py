"""Inserts rows, or renews those that are there."""

from __future__ import annotations

from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from fleetnas.coordinator.store.bulk_insert import BulkInsert
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.schema import Base


def upsert(database: Database, table: type[Base], *key: str) -> BulkInsert:
    """Return an insert that renews the rows which have the same key."""
    insert_or = postgresql_insert if database.dialect == "postgresql" else sqlite_insert
    rows = insert_or(table)
    renewed = {column.name: column for column in rows.excluded if column.name not in key}
    return BulkInsert(database, rows.on_conflict_do_update(index_elements=list(key), set_=renewed))
