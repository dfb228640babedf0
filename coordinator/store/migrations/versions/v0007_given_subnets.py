"""Decided targets may be those of given subnets: the fingerprint of one becomes part of their key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_KEPT = (
    *("run_id", "device", "setting_label", "target_ms", "status", "architecture"),
    *("predicted_ms", "measured_ms", "verified_ms", "typical_ms", "predicted_accuracy", "accuracy"),
    *("accuracy_images", "parameters", "macs", "peak_activation_bytes", "sha256", "reason", "note"),
)


def upgrade() -> None:
    """Move the winners to a table with the longer key: SQLite cannot change one in place."""
    op.create_table(
        "winners_of_0007",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("setting_label", sa.String(700), primary_key=True),
        sa.Column("target_ms", sa.Double, primary_key=True),
        sa.Column("subnet", sa.String(12), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("architecture", sa.JSON(none_as_null=True)),
        *(sa.Column(name, sa.Double) for name in _KEPT[6:12]),
        *(sa.Column(name, sa.BigInteger) for name in _KEPT[12:16]),
        sa.Column("sha256", sa.String(64)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    kept = ", ".join(_KEPT)
    op.execute(f"INSERT INTO winners_of_0007 ({kept}, subnet) SELECT {kept}, '' FROM winners")
    op.drop_table("winners")
    op.rename_table("winners_of_0007", "winners")
