"""Brings a store's tables to the version that this fleetnas works with, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from coordinator.store import migrations
from coordinator.store.database import Database
from coordinator.store.schema import HEAD_REVISION
from fleet_protocol.errors import StoreError

if TYPE_CHECKING:
    from alembic.config import Config

#: The tables as they were before revisions were counted, marked by a table of its own.
FIRST_REVISION, _BEFORE_REVISIONS = "0001", "schema_version"


def bring_up_to_date(database: Database) -> None:
    """Make or upgrade the tables; a store that is up to date is only looked at.

    Two coordinators may open one store at once: one upgrades, the other waits and finds it done.

    Raises:
        StoreError: a newer fleetnas wrote it, or it cannot be used.
    """
    with database.reading() as session:
        if _revision(session.connection()) == HEAD_REVISION:
            return
    with database.changing_schema() as connection:
        _upgrade(connection, database.name)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def alembic_config(connection: Connection) -> Config:
    """Alembic on our revisions, through `connection` and inside its transaction."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return config


def _upgrade(connection: Connection, name: str) -> None:
    # Imported only here: it takes longer than opening a store that is up to date.
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    found = _revision(connection)
    if found is None and inspect(connection).has_table(_BEFORE_REVISIONS):
        version = connection.execute(text(f"SELECT max(version) FROM {_BEFORE_REVISIONS}")).scalar()
        found = FIRST_REVISION if version == 1 else f"version {version}"
        command.stamp(config, FIRST_REVISION)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"the store {name} was written by a newer fleetnas (schema {found}, and this one knows up to "
            f"{HEAD_REVISION}); upgrade fleetnas, or give another --store"
        )
    command.upgrade(config, "head")
