"""Targets may be percentiles, rates, energies and accuracies: their text becomes part of a decided target's key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_KEPT = (
    *("run_id", "device", "setting_label", "target_ms", "subnet", "status", "architecture"),
    *("predicted_ms", "measured_ms", "verified_ms", "typical_ms", "predicted_accuracy", "accuracy"),
    *("accuracy_images", "parameters", "macs", "peak_activation_bytes", "sha256", "reason", "note"),
)


def upgrade() -> None:
    """Earlier targets are latencies, and earlier measurements have neither means nor percentiles."""
    op.add_column("measurements", sa.Column("mean_ms", sa.Double))
    op.add_column("measurements", sa.Column("percentiles", sa.JSON))
    op.execute("UPDATE measurements SET percentiles = '[]'")
    op.add_column("tasks", sa.Column("target", sa.String(64), nullable=False, server_default=sa.text("''")))
    op.add_column("tasks", sa.Column("asked_percentiles", sa.JSON))
    op.add_column("devices", sa.Column("targets", sa.JSON))
    _move_winners()


def _move_winners() -> None:
    """Move the winners to a table with the longer key: SQLite cannot change one in place."""
    op.create_table(
        "winners_of_0009",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("setting_label", sa.String(700), primary_key=True),
        sa.Column("target_ms", sa.Double, primary_key=True),
        sa.Column("subnet", sa.String(12), primary_key=True),
        sa.Column("target", sa.String(64), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("architecture", sa.JSON(none_as_null=True)),
        *(sa.Column(name, sa.Double) for name in _KEPT[7:13]),
        *(sa.Column(name, sa.BigInteger) for name in _KEPT[13:17]),
        sa.Column("sha256", sa.String(64)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("value", "value_low", "value_high", "typical_value")),
    )
    kept = ", ".join(_KEPT)
    op.execute(f"INSERT INTO winners_of_0009 ({kept}, target) SELECT {kept}, '' FROM winners")
    op.drop_table("winners")
    op.rename_table("winners_of_0009", "winners")
