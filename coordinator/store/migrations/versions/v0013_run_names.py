"""Runs have a name that their user chose."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0010"


def upgrade() -> None:
    """Earlier runs have none; a name is that of one run."""
    op.add_column("runs", sa.Column("name", sa.String(64)))
    op.create_index("ix_runs_name", "runs", ["name"], unique=True)
