"""Keys, jobs and chat beside the records; what only SQLite could say: the last audit number, and photos of inspections."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0002"
down_revision = "r0001"

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    end = op.create_table("audit_end", sa.Column("seq", NUMBER, primary_key=True, autoincrement=False))
    op.add_column("inspections", sa.Column("photo", TEXT))
    last = 0
    conn = op.get_bind()
    if conn.dialect.name == "sqlite":
        op.execute("DROP INDEX IF EXISTS inspections_by_photo")  # of the versions before Alembic, over the report
        op.execute(
            "UPDATE inspections SET photo = CASE WHEN json_valid(report) THEN json_extract(report, '$.query_sha256') END"
        )
        # that of AUTOINCREMENT, which those versions relied on
        last = conn.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'audit'")) or 0
    op.create_index("inspections_by_photo", "inspections", ["product", "photo"])
    op.bulk_insert(end, [{"seq": last}])
    op.create_table(
        "keys",
        _text("key_id", primary_key=True),
        _text("name"),
        _text("role", sa.CheckConstraint("role IN ('viewer', 'inspector', 'admin')")),
        _text("sha256"),
        _text("created_at"),
        _text("created_by"),
        sa.Column("revoked_at", TEXT),
        _yes("operator"),
    )
    op.create_table(
        "jobs",
        _sequence(),
        _text("inspection_id", unique=True),
        sa.Column("origin", TEXT, unique=True),
        _text("request"),
        _text("state", sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed')")),
        _count("attempts"),
        sa.Column("error", TEXT),
        _text("created_at"),
        _text("updated_at"),
        _count("deaths"),
        sa.Column("digest", TEXT),
        _yes("alone"),
        _count("crashes_alone"),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_by_state", "jobs", ["state", "seq"])
    op.create_table(
        "chat_messages",
        _sequence(),
        _text("platform"),
        _text("key"),
        _text("request"),
        _text(
            "state",
            sa.CheckConstraint("state IN ('received', 'inspecting', 'answered')"),
            server_default="received",
        ),
        sa.Column("inspection_id", TEXT),
        _text("created_at"),
        _text("thread", server_default=""),
        _yes("unsettled"),
        sa.UniqueConstraint("platform", "key"),
        sqlite_autoincrement=True,
    )
    op.create_index("chat_messages_open", "chat_messages", ["platform", "state", "created_at"])
    op.create_index("chat_messages_by_thread", "chat_messages", ["platform", "thread", "seq"])
    op.create_table(
        "chat_threads",
        _text("platform", primary_key=True),
        _text("thread", primary_key=True),
        _text("inspection_id"),
    )


def _sequence() -> sa.Column[int]:
    return sa.Column("seq", NUMBER, sa.Identity(), primary_key=True)


def _text(name: str, *parts: Any, **how: Any) -> sa.Column[str]:
    return sa.Column(name, TEXT, *parts, nullable=False, **how)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=sa.text("0"))


def _yes(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())
