"""Alembic's own table tells the revision; the hand-made one goes."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drop it."""
    op.drop_table("schema_version")
