"""How often the enrolment of an approved photo hung, and whether what it left is cleared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision = "r0007"


def upgrade() -> None:
    op.add_column("approvals", sa.Column("hangs", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("approvals", sa.Column("cleared", sa.Boolean, nullable=False, server_default=sa.false()))
