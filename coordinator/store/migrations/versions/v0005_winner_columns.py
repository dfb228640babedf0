"""Winners get columns of their own; the purpose `spread` becomes `initial-design`, also in stored plans."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_NUMBERS = ("predicted_ms", "measured_ms", "verified_ms", "typical_ms", "predicted_accuracy", "accuracy")
_COUNTS = ("accuracy_images", "parameters", "macs", "peak_activation_bytes")
#: Mark at the beginning of a stored reason: the status of a target had no place of its own.
_INFEASIBLE = "infeasible: "


def upgrade() -> None:
    """Rewrite purposes, plans and winners."""
    op.execute("UPDATE tasks SET purpose = 'initial-design' WHERE purpose = 'spread'")
    # Of a purpose that no released version used. Its measurements counted as those of candidates do.
    op.execute("UPDATE tasks SET purpose = 'candidate' WHERE purpose = 'sentinel'")
    _rename_in_plans()
    _move_winners()


def _rename_in_plans() -> None:
    connection = op.get_bind()
    runs = sa.table("runs", sa.column("run_id", sa.String), sa.column("settings", sa.JSON))
    for run_id, text in connection.execute(sa.select(runs.c.run_id, sa.cast(runs.c.settings, sa.Text))).all():
        settings = _object(text)
        plan = settings.get("plan")
        if isinstance(plan, dict) and "spread" in plan:
            plan["initial_design"] = plan.pop("spread")
            connection.execute(runs.update().where(runs.c.run_id == run_id).values(settings=settings))


def _move_winners() -> None:
    connection = op.get_bind()
    before = sa.table(
        "winners",
        sa.column("run_id", sa.String),
        sa.column("device", sa.String),
        sa.column("setting_label", sa.String),
        sa.column("target_ms", sa.Double),
        sa.column("met", sa.Boolean),
        sa.column("fields", sa.JSON),
    )
    keys = (before.c.run_id, before.c.device, before.c.setting_label, before.c.target_ms)
    found = connection.execute(
        sa.select(
            *keys, sa.cast(before.c.met, sa.Integer).label("met"), sa.cast(before.c.fields, sa.Text).label("text")
        )
    )
    rows = [
        {
            "run_id": row.run_id,
            "device": row.device,
            "setting_label": row.setting_label,
            "target_ms": row.target_ms,
            **_columns(bool(row.met), _object(row.text)),
        }
        for row in found
    ]
    op.drop_table("winners")
    winners = op.create_table(
        "winners",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("setting_label", sa.String(700), primary_key=True),
        sa.Column("target_ms", sa.Double, primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        # SQL's NULL where there is none, and not the JSON text `null`.
        sa.Column("architecture", sa.JSON(none_as_null=True)),
        *(sa.Column(name, sa.Double) for name in _NUMBERS),
        *(sa.Column(name, sa.BigInteger) for name in _COUNTS),
        sa.Column("sha256", sa.String(64)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    if rows:
        connection.execute(winners.insert(), rows)


def _columns(met: bool, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a winner from the JSON that it was stored as; a damaged value is left out."""
    reason = _text(fields.get("reason"))
    missed = "infeasible" if reason.startswith(_INFEASIBLE) else "missed"
    architecture, sha256 = fields.get("architecture"), fields.get("sha256")
    return {
        "status": "met" if met else missed,
        "architecture": architecture if isinstance(architecture, dict) else None,
        **{name: _number(fields.get(name)) for name in _NUMBERS},
        **{name: _count(fields.get(name)) for name in _COUNTS},
        "sha256": sha256 if isinstance(sha256, str) and len(sha256) == 64 else None,
        "reason": reason.removeprefix(_INFEASIBLE),
        "note": _text(fields.get("note")),
    }


def _object(text: str | None) -> dict[str, Any]:
    """Return a JSON object; an empty one where the column is damaged."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
