"""Whose repeated request a batch is: none of earlier versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0006"
down_revision = "r0005"

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("batches", sa.Column("origin", TEXT))
    op.add_column("batches", sa.Column("digest", TEXT))
    op.create_index("batches_by_origin", "batches", ["origin"], unique=True)
