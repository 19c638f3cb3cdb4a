"""Many workers on one queue: who runs a job and until when, what goes first, and batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0004"
down_revision = "r0003"

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    zero = sa.text("0")
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default=zero))
    op.add_column("jobs", sa.Column("place", NUMBER, nullable=False, server_default=zero))
    op.add_column("jobs", sa.Column("line", TEXT))
    op.add_column("jobs", sa.Column("batch", TEXT))
    op.add_column("jobs", sa.Column("failures", sa.Integer, nullable=False, server_default=zero))
    op.add_column("jobs", sa.Column("not_before", sa.Double))
    op.add_column("jobs", sa.Column("worker", TEXT))
    op.add_column("jobs", sa.Column("lease_until", sa.Double))
    op.execute("UPDATE jobs SET place = CASE WHEN deaths > 0 THEN (SELECT max(seq) + 1 FROM jobs) ELSE seq END")
    op.drop_index("jobs_by_state", "jobs")
    op.create_index("jobs_by_state", "jobs", ["state", "priority", "place", "seq"])
    op.create_index("jobs_by_line", "jobs", ["line", "state", "seq"])
    op.create_index("jobs_by_batch", "jobs", ["batch", "state"])
    op.create_table(
        "workers",
        sa.Column("worker", TEXT, nullable=False, primary_key=True),
        sa.Column("began_at", TEXT, nullable=False),
        sa.Column("alive_until", sa.Double, nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("seq", NUMBER, sa.Identity(), primary_key=True),
        sa.Column("batch_id", TEXT, nullable=False, unique=True),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("by", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("total", sa.Integer),
        sa.Column("left_out", TEXT, nullable=False, server_default="[]"),
        sa.Column("stopped_at", TEXT),
        sa.Column("stopped_by", TEXT),
        sqlite_autoincrement=True,
    )
