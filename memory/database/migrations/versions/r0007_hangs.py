"""How often a job hung."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0007"
down_revision = "r0006"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("hangs", sa.Integer, nullable=False, server_default=sa.text("0")))
