"""Measurements keep the times of the model's layers, where a profile was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Earlier measurements have none."""
    op.add_column("measurements", sa.Column("layers", sa.JSON))
    op.execute("UPDATE measurements SET layers = '[]'")
