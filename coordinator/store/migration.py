"""Migration of a store's tables to the version that this fleetnas works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from fleetnas.coordinator.store import migrations
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.schema import HEAD_REVISION, Base
from fleetnas.fleet_protocol.errors import StoreError

if TYPE_CHECKING:
    from alembic.config import Config

#: The tables as they were before revisions were counted, marked by a table of its own.
FIRST_REVISION, _BEFORE_REVISIONS = "0001", "schema_version"
#: Alembic's own table.
_REVISIONS = "alembic_version"
_SCRIPTS = Path(migrations.__file__).parent


def bring_up_to_date(database: Database) -> None:
    """Make or upgrade the tables; a store that is up to date is only looked at.

    Two coordinators may open one store at once: one upgrades, the other waits and finds it done.

    Raises:
        StoreError: a newer fleetnas or another program wrote it, or it cannot be used.
    """
    with database.reading() as session:
        found = _revision(session.connection(), database.name)
        if found == HEAD_REVISION:
            return
    if database.read_only and found is None:
        raise StoreError(f"the store {database.name} holds no run, and can only be read here; give another --store")
    if database.read_only:
        raise StoreError(
            f"the store {database.name} can only be read here, and another version of fleetnas wrote it (schema "
            f"{found}, and this one reads {HEAD_REVISION}): copy it to a folder of yours, and give that as --store"
        )
    with database.changing_schema() as connection:
        _upgrade(connection, database.name)


def _revision(connection: Connection, name: str) -> str | None:
    """Return the revision of the tables, None where there are none; `StoreError` where it cannot be known."""
    inspector = inspect(connection)
    tables = set(inspector.get_table_names())
    ours = tables & set(Base.metadata.tables)
    for table, column in ((_REVISIONS, "version_num"), (_BEFORE_REVISIONS, "version")):
        if table not in tables:
            continue
        if column not in {found["name"] for found in inspector.get_columns(table)}:
            raise _foreign(name, tables)
        versions = connection.execute(text(f"SELECT {column} FROM {table}")).scalars().all()
        if not versions and tables == {table}:
            return None
        if len(versions) != 1 or not versions[0]:
            raise _unversioned(name, f"{table} holds {', '.join(map(repr, versions[:3])) or 'nothing'}")
        if table == _REVISIONS:
            if not ours and versions[0] not in _known():
                raise _foreign(name, tables)
            return str(versions[0])
        if str(versions[0]) != "1":
            return f"version {versions[0]}"
        if not ours:
            raise _foreign(name, tables)
        return FIRST_REVISION
    if len(ours) > 1:
        raise _unversioned(name, f"{_REVISIONS} is missing")
    # A server's database may be shared; a file belongs to one program.
    if ours or (tables and connection.dialect.name == "sqlite"):
        raise _foreign(name, tables)
    return None


def _unversioned(name: str, reason: str) -> StoreError:
    return StoreError(
        f"the store {name} does not say which version its tables have: {reason}. Restore it from a copy, or give "
        "another --store"
    )


def _foreign(name: str, tables: set[str]) -> StoreError:
    listed = ", ".join(sorted(tables)[:5])
    return StoreError(
        f"{name} is the database of another program (it has the tables {listed[:200]}) and is left alone; give another "
        "--store"
    )


def alembic_config(connection: Connection) -> Config:
    """Configure Alembic for our revisions, through `connection` and inside its transaction."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _known() -> set[str]:
    # Imported only here: it takes longer than opening a store that is up to date.
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory(str(_SCRIPTS)).walk_revisions()}


def _upgrade(connection: Connection, name: str) -> None:
    from alembic import command

    config = alembic_config(connection)
    found = _revision(connection, name)
    if found is not None and found not in _known():
        raise StoreError(
            f"the store {name} was written by a newer fleetnas (schema {found}, and this one knows up to "
            f"{HEAD_REVISION}); upgrade fleetnas, or give another --store"
        )
    if found == FIRST_REVISION and not inspect(connection).has_table(_REVISIONS):
        command.stamp(config, FIRST_REVISION)
    command.upgrade(config, "head")
