"""Run by Alembic: revisions go through the connection, and so into the transaction, that opens the store."""

from __future__ import annotations

from alembic import context

from fleetnas.coordinator.store.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # SQLite too, where `BEGIN` is sent explicitly
    render_as_batch=True,  # SQLite changes a table by making a new one
)
with context.begin_transaction():
    context.run_migrations()
