"""Measurements keep the latency of each runtime session, tasks the precision that was asked for."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Earlier measurements are of one session; earlier runs measure everything by their protocol."""
    op.add_column("measurements", sa.Column("sessions", sa.Integer, nullable=False, server_default="1"))
    op.add_column("measurements", sa.Column("session_medians_ms", sa.JSON))
    op.execute("UPDATE measurements SET session_medians_ms = '[]'")
    op.add_column("tasks", sa.Column("asked_half_width_percent", sa.Double))
    op.add_column("tasks", sa.Column("asked_sessions", sa.Integer))
    _fix_precision_of_plans()


def _fix_precision_of_plans() -> None:
    connection = op.get_bind()
    runs = sa.table("runs", sa.column("run_id", sa.String), sa.column("settings", sa.JSON))
    for run_id, text in connection.execute(sa.select(runs.c.run_id, sa.cast(runs.c.settings, sa.Text))).all():
        settings = _object(text)
        plan = settings.get("plan")
        if isinstance(plan, dict):
            plan["precision"] = "fixed"
            connection.execute(runs.update().where(runs.c.run_id == run_id).values(settings=settings))


def _object(text: str | None) -> dict[str, Any]:
    """Return a JSON object; an empty one where the column is damaged."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
