"""Measurements keep the latency of each runtime session, tasks the precision that was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Earlier measurements are of one session; the precision of earlier tasks is that of the run's protocol."""
    op.add_column("measurements", sa.Column("sessions", sa.Integer, nullable=False, server_default="1"))
    op.add_column("measurements", sa.Column("session_medians_ms", sa.JSON))
    op.execute("UPDATE measurements SET session_medians_ms = '[]'")
    op.add_column("tasks", sa.Column("asked_half_width_percent", sa.Double))
    op.add_column("tasks", sa.Column("asked_sessions", sa.Integer))
