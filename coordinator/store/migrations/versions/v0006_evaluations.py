"""A table of what model files answered to selection and evaluation images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create an empty table."""
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("fingerprint", sa.String(12), primary_key=True),
        sa.Column("runtime", sa.String(64), primary_key=True),
        sa.Column("precision", sa.String(16), primary_key=True),
        sa.Column("part", sa.String(16), primary_key=True),
        sa.Column("classes", sa.Integer, nullable=False),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.Column("answers", sa.LargeBinary, nullable=False),
    )
