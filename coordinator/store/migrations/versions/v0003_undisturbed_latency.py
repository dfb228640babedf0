"""Latency at undisturbed speed takes the place of the sentinel's drift; `throttled` becomes `slowed`.

Device settings keep their targets, so that every target that was asked for is counted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Divide the drift out of the latencies; the undisturbed latency of a throttled measurement is unknown."""
    op.add_column("measurements", sa.Column("undisturbed_ms", sa.Double))
    op.add_column(
        "measurements", sa.Column("undisturbed_half_width_percent", sa.Double, nullable=False, server_default="0")
    )
    op.add_column("measurements", sa.Column("reference", sa.String(12)))
    op.add_column("measurements", sa.Column("reference_ms", sa.Double))
    op.add_column("measurements", sa.Column("levels_ms", sa.JSON))
    op.execute("UPDATE measurements SET levels_ms = '[]'")
    op.add_column("measurements", sa.Column("condition", sa.String(16), nullable=False, server_default="as-is"))
    op.add_column("measurements", sa.Column("regime_unix_s", sa.Double, nullable=False, server_default="0"))
    op.execute(
        "UPDATE measurements SET undisturbed_ms = median_ms / drift, "
        "undisturbed_half_width_percent = half_width_percent WHERE quality <> 'throttled'"
    )
    op.execute("UPDATE measurements SET quality = 'slowed' WHERE quality = 'throttled'")
    op.drop_column("measurements", "drift")
    op.add_column("devices", sa.Column("targets_ms", sa.JSON))
    op.add_column("devices", sa.Column("targets_note", sa.Text))
