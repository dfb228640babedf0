"""Alembic's own table holds the revision; the hand-made one is dropped."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drop the hand-made table."""
    op.drop_table("schema_version")
