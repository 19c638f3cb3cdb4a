"""The records as versions before Alembic had them, but for what only SQLite can say."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0001"
down_revision = None

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "products",
        _text("name", primary_key=True),
        sa.Column("scale_mm_per_px", sa.Double),
        sa.Column("window_lo", sa.Double),
        sa.Column("window_hi", sa.Double),
        _text("spec", server_default="{}"),
        sa.Column("spec_version", sa.Integer, nullable=False, server_default=sa.text("0")),
        _text("updated_at"),
        _text("component_names", server_default="{}"),
    )
    op.create_table(
        "captures",
        _sequence(),
        _text("capture_id", unique=True),
        _text("part_id"),
        _text("product", sa.ForeignKey("products.name")),
        _text("sha256"),
        sa.Column("scale_mm_per_px", sa.Double),
        _text("filename"),
        _text("created_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("captures_by_part", "captures", ["part_id", "product", "seq"])
    op.create_table(
        "calibrations",
        _sequence(),
        _text("product"),
        _text("key"),
        _text("scores"),
        sa.Column("pixel_threshold", sa.Double, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("reference_count", sa.Integer, nullable=False),
        _text("created_at"),
        sa.Column("seconds", sa.Double, nullable=False),
        _text("extra"),
        sa.UniqueConstraint("product", "key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "inspections",
        _sequence(),
        _text("inspection_id", unique=True),
        _text("part_id"),
        _text("product"),
        _text("verdict", sa.CheckConstraint("verdict IN ('PASS', 'FAIL', 'REVIEW')")),
        _text("created_at"),
        _text("report"),
        sqlite_autoincrement=True,
    )
    op.create_index("inspections_by_time", "inspections", ["created_at", "seq"])
    op.create_index("inspections_by_part", "inspections", ["part_id"])
    op.create_table(
        "dispositions",
        _of_inspection(primary_key=True),
        _text("decision", sa.CheckConstraint("decision IN ('accept', 'override')")),
        _text("decided_by"),
        _text("reason"),
        _text("created_at"),
        sa.Column("judged", TEXT, sa.CheckConstraint("judged IN ('good', 'bad')")),
        _yes("as_reference"),
    )
    op.create_table(
        "audit",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        _text("inspection_id"),
        _text("kind"),
        _text("at"),
        _text("by"),
        _text("facts"),
        sa.Column("content", TEXT),
        _text("content_sha256"),
        _text("hash"),
    )
    op.create_index("audit_by_inspection", "audit", ["inspection_id", "seq"])
    op.create_index("audit_by_time", "audit", ["at"])
    op.create_table(
        "blind_checks",
        _of_inspection(primary_key=True),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("judged", TEXT, sa.CheckConstraint("judged IN ('good', 'bad')")),
        sa.Column("judged_by", TEXT),
        sa.Column("note", TEXT),
        _yes("as_reference"),
        sa.Column("judged_at", TEXT),
    )
    op.create_table(
        "learned",
        _of_inspection(primary_key=True),
        sa.Column("golden_id", TEXT),
        _text("outcome"),
        _text("created_at"),
    )
    op.create_table(
        "approvals",
        _of_inspection(primary_key=True),
        sa.Column("approved", sa.Boolean, nullable=False),
        _text("by"),
        _text("note"),
        _text("created_at"),
    )
    op.create_table(
        "frames",
        _text("golden_id", primary_key=True),
        _text("product"),
        _text("anchor_id"),
        sa.Column("version", sa.Integer, nullable=False),
        _text("place"),
    )
    op.create_index("frames_by_product", "frames", ["product", "anchor_id"])
    op.create_table(
        "differences", _of_inspection(primary_key=True), sa.Column("picture", sa.LargeBinary, nullable=False)
    )
    op.create_table(
        "defect_names",
        _sequence(),
        _of_inspection(),
        _text("finding"),
        _text("product"),
        _text("part_id"),
        sa.Column("name", TEXT),
        sa.Column("before", TEXT),
        _text("by"),
        _text("note"),
        _text("picture"),
        _text("created_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("defect_names_by_finding", "defect_names", ["inspection_id", "finding", "seq"])
    op.create_index("defect_names_by_product", "defect_names", ["product", "seq"])
    op.create_table(
        "defect_embeddings",
        _text("key", primary_key=True),
        _text("sight"),
        _text("weights"),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "networks",
        _text("product", primary_key=True),
        _text("sha256"),
        _text("shared"),
        _text("more"),
        _text("created_at"),
        sa.Column("weights", sa.LargeBinary, nullable=False),
    )
    op.create_table("fit_attempts", _text("product", primary_key=True), _text("attempt"))


def _sequence() -> sa.Column[int]:
    return sa.Column("seq", NUMBER, sa.Identity(), primary_key=True)


def _text(name: str, *parts: Any, **how: Any) -> sa.Column[str]:
    return sa.Column(name, TEXT, *parts, nullable=False, **how)


def _of_inspection(**how: Any) -> sa.Column[str]:
    return _text("inspection_id", sa.ForeignKey("inspections.inspection_id"), **how)


def _yes(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())
