"""The tables that the first stores had, before revisions were counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, primary_key=True))
    op.execute("INSERT INTO schema_version (version) VALUES (1)")
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("fleet", sa.String(64), nullable=False),
        sa.Column("supernet", sa.Text, nullable=False),
        sa.Column("bundle_sha256", sa.String(64), nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("created_unix_s", sa.Double, nullable=False, index=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("finished_unix_s", sa.Double),
    )
    op.create_table(
        "devices",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("setting_label", sa.String(700), primary_key=True),
        sa.Column("setting", sa.JSON, nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("learning", sa.JSON, nullable=False),
        sa.Column("wire_bytes", sa.BigInteger, nullable=False),
    )
    _create_tasks()
    _create_outcomes()
    op.create_table(
        "winners",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("setting_label", sa.String(700), primary_key=True),
        sa.Column("target_ms", sa.Double, primary_key=True),
        sa.Column("met", sa.Boolean, nullable=False),
        sa.Column("fields", sa.JSON, nullable=False),
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), nullable=False, index=True),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("setting_label", sa.String(700), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("architecture", sa.JSON, nullable=False),
        sa.Column("target_ms", sa.Double),
        sa.Column("predicted_ms", sa.Double),
        sa.Column("predicted_std_ms", sa.Double),
        sa.Column("predicted_accuracy", sa.Double),
        sa.Column("model_sha256", sa.String(64)),
        sa.Column("calibration", sa.LargeBinary),
        sa.Column("attempt", sa.Integer, nullable=False),
    )


def _create_outcomes() -> None:
    op.create_table(
        "outcomes",
        sa.Column("outcome_id", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.task_id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("stored_unix_s", sa.Double, nullable=False),
        sa.UniqueConstraint("task_id", "attempt"),
    )
    op.create_table(
        "measurements",
        sa.Column("outcome_id", _SERIAL, sa.ForeignKey("outcomes.outcome_id"), primary_key=True),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("model_bytes", sa.BigInteger, nullable=False),
        sa.Column("median_ms", sa.Double, nullable=False),
        sa.Column("mad_ms", sa.Double, nullable=False),
        sa.Column("p90_ms", sa.Double, nullable=False),
        sa.Column("min_ms", sa.Double, nullable=False),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("inner_loops", sa.Integer, nullable=False),
        sa.Column("half_width_percent", sa.Double, nullable=False),
        sa.Column("quality", sa.String(16), nullable=False),
        sa.Column("drift", sa.Double, nullable=False),
        sa.Column("times_us", sa.JSON, nullable=False),
        sa.Column("block_medians_ms", sa.JSON, nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("build_ms", sa.Double, nullable=False),
        sa.Column("load_ms", sa.Double, nullable=False),
        sa.Column("before", sa.JSON, nullable=False),
        sa.Column("after", sa.JSON, nullable=False),
        sa.Column("energy_mj", sa.Double),
        sa.Column("finished_unix_s", sa.Double, nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("outcome_id", _SERIAL, sa.ForeignKey("outcomes.outcome_id"), primary_key=True),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
