"""Device settings keep their place in a class of equal boards; earlier runs search every board by itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0011"


def upgrade() -> None:
    """Null: of no class."""
    op.add_column("devices", sa.Column("board", sa.JSON))
