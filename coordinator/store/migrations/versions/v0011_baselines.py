"""A table of the baselines that runs measure beside their winners."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"


def upgrade() -> None:
    """Create an empty table."""
    op.create_table(
        "baselines",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("setting_label", sa.String(700), primary_key=True),
        sa.Column("baseline", sa.String(64), primary_key=True),
        sa.Column("measurements", sa.JSON, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("predicted_accuracy", sa.Double),
        sa.Column("accuracy", sa.Double),
        sa.Column("accuracy_images", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
    )
