"""A list of devices that no prior is learned from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create an empty list."""
    op.create_table("distrusted_devices", sa.Column("device", sa.String(64), primary_key=True))
