"""The tables of the record database, as they are now; `migrations` brings a database there.

Texts compare by code point in every database: points in time are kept as text, and their order is that of time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    cast,
    false,
    func,
    literal,
    select,
    text,
)

METADATA = MetaData()
TEXT = Text().with_variant(Text(collation="C"), "postgresql")
NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def _sequence() -> Column[int]:
    """The order in which rows were added; a number is never given twice."""
    return Column("seq", NUMBER, Identity(), primary_key=True)


def _text(name: str, **how: Any) -> Column[str]:
    return Column(name, TEXT, nullable=False, **how)


def _maybe(name: str, *how: Any) -> Column[str]:
    return Column(name, TEXT, *how)


def _yes(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=false())


def _count(name: str, **how: Any) -> Column[int]:
    return Column(name, Integer, nullable=False, **how)


def _of_inspection(**how: Any) -> Column[str]:
    return Column("inspection_id", TEXT, ForeignKey("inspections.inspection_id"), nullable=False, **how)


def _table(name: str, *parts: Any, **how: Any) -> Table:
    counts = any(isinstance(p, Column) and p.identity is not None for p in parts)
    return Table(name, METADATA, *parts, sqlite_autoincrement=counts)


products = _table(
    "products",
    _text("name", primary_key=True),
    Column("scale_mm_per_px", Double),
    Column("window_lo", Double),
    Column("window_hi", Double),
    _text("spec", server_default="{}"),
    _count("spec_version", server_default=text("0")),
    _text("updated_at"),
    _text("component_names", server_default="{}"),  # with what it takes to recognise each in a later calibration
    _text("kind", server_default="photo"),  # of its files
)
captures = _table(
    "captures",
    _sequence(),
    _text("capture_id", unique=True),
    _text("part_id"),
    Column("product", TEXT, ForeignKey("products.name"), nullable=False),
    _text("sha256"),
    Column("scale_mm_per_px", Double),
    _text("filename"),
    _text("created_at"),
    Index("captures_by_part", "part_id", "product", "seq"),
)
calibrations = _table(
    "calibrations",
    _sequence(),
    _text("product"),
    _text("key"),
    _text("scores"),
    Column("pixel_threshold", Double, nullable=False),
    _count("n"),
    _count("reference_count"),
    _text("created_at"),
    Column("seconds", Double, nullable=False),
    _text("extra"),
    UniqueConstraint("product", "key"),
)
inspections = _table(
    "inspections",
    _sequence(),
    _text("inspection_id", unique=True),
    _text("part_id"),
    _text("product"),
    Column("verdict", TEXT, CheckConstraint("verdict IN ('PASS', 'FAIL', 'REVIEW')"), nullable=False),
    _text("created_at"),
    _text("report"),
    _maybe("photo"),  # sha256, as the report has it
    Index("inspections_by_time", "created_at", "seq"),
    Index("inspections_by_part", "part_id"),
    Index("inspections_by_photo", "product", "photo"),
)
dispositions = _table(
    "dispositions",
    _of_inspection(primary_key=True),
    Column("decision", TEXT, CheckConstraint("decision IN ('accept', 'override')"), nullable=False),
    _text("decided_by"),
    _text("reason"),
    _text("created_at"),
    _maybe("judged", CheckConstraint("judged IN ('good', 'bad')")),
    _yes("as_reference"),
)
audit = _table(
    "audit",
    # no sequence: the chain counts without gaps, and `audit_end` remembers how far
    Column("seq", NUMBER, primary_key=True, autoincrement=False),
    _text("inspection_id"),
    _text("kind"),
    _text("at"),
    _text("by"),
    _text("facts"),
    _maybe("content"),
    _text("content_sha256"),
    _text("hash"),
    Index("audit_by_inspection", "inspection_id", "seq"),
    Index("audit_by_time", "at"),
)
audit_end = _table(
    "audit_end", Column("seq", NUMBER, primary_key=True, autoincrement=False)
)  # one row: the last number given
blind_checks = _table(
    "blind_checks",
    _of_inspection(primary_key=True),
    Column("share", Double, nullable=False),
    _maybe("judged", CheckConstraint("judged IN ('good', 'bad')")),
    _maybe("judged_by"),
    _maybe("note"),
    _yes("as_reference"),
    _maybe("judged_at"),
)
learned = _table(
    "learned",
    _of_inspection(primary_key=True),
    _maybe("golden_id"),
    _text("outcome"),
    _text("created_at"),
)
approvals = _table(
    "approvals",
    _of_inspection(primary_key=True),
    Column("approved", Boolean, nullable=False),
    _text("by"),
    _text("note"),
    _text("created_at"),
    _count("hangs", server_default=text("0")),  # how often the enrolment of the photo took no step for too long
    _yes("cleared"),  # what it left among the golden samples since it hung last
)
frames = _table(  # derived, made again if lost
    "frames",
    _text("golden_id", primary_key=True),
    _text("product"),
    _text("anchor_id"),
    _count("version"),
    _text("place"),
    Index("frames_by_product", "product", "anchor_id"),
)
differences = _table(  # what the pictures of an inspection are drawn from, beside its photos: a small PNG of a few kB
    "differences",
    _of_inspection(primary_key=True),
    Column("picture", LargeBinary, nullable=False),
)
defect_names = _table(  # one row for each word about a finding: the newest holds
    "defect_names",
    _sequence(),
    _of_inspection(),
    _text("finding"),
    _text("product"),
    _text("part_id"),
    _maybe("name"),
    _maybe("before"),
    _text("by"),
    _text("note"),
    _text("picture"),
    _text("created_at"),
    Index("defect_names_by_finding", "inspection_id", "finding", "seq"),
    Index("defect_names_by_product", "product", "seq"),
)
defect_embeddings = _table(  # the vectors are derived
    "defect_embeddings",
    _text("key", primary_key=True),
    _text("sight"),
    _text("weights"),
    Column("vector", LargeBinary, nullable=False),
)
networks = _table(
    "networks",
    _text("product", primary_key=True),
    _text("sha256"),
    _text("shared"),
    _text("more"),
    _text("created_at"),
    Column("weights", LargeBinary, nullable=False),  # a few MB
)
fit_attempts = _table("fit_attempts", _text("product", primary_key=True), _text("attempt"))
keys = _table(
    "keys",
    _text("key_id", primary_key=True),
    _text("name"),
    Column("role", TEXT, CheckConstraint("role IN ('viewer', 'inspector', 'admin')"), nullable=False),
    _text("sha256"),
    _text("created_at"),
    _text("created_by"),
    _maybe("revoked_at"),
    _yes("operator"),
    _maybe("expires_at"),
)
jobs = _table(
    "jobs",
    _sequence(),
    _text("inspection_id", unique=True),
    Column("origin", TEXT, unique=True),
    _text("request"),
    Column("state", TEXT, CheckConstraint("state IN ('queued', 'running', 'done', 'failed')"), nullable=False),
    _count("attempts", server_default=text("0")),
    _maybe("error"),
    _text("created_at"),
    _text("updated_at"),
    _count("deaths", server_default=text("0")),
    _maybe("digest"),
    _yes("alone"),  # now
    _count("crashes_alone", server_default=text("0")),
    _count("priority", server_default=text("0")),  # the lowest goes first
    Column("place", NUMBER, nullable=False, server_default=text("0")),  # in the queue, among those of its priority
    _maybe("line"),  # whose jobs run one after the other
    _maybe("batch"),
    _count("failures", server_default=text("0")),  # in a row, of something that it needs
    Column("not_before", Double),  # by the database's clock, s
    _maybe("worker"),  # that runs it
    Column("lease_until", Double),  # then another one may take it over
    _count("hangs", server_default=text("0")),  # how often it took no step for too long
    Index("jobs_by_state", "state", "priority", "place", "seq"),
    Index("jobs_by_line", "line", "state", "seq"),
    Index("jobs_by_batch", "batch", "state"),
)
workers = _table(  # processes that take jobs
    "workers",
    _text("worker", primary_key=True),
    _text("began_at"),
    Column("alive_until", Double, nullable=False),  # unless it says so again; by the database's clock, s
    _maybe("hung"),  # in words, of one that ended for it
)
batches = _table(
    "batches",
    _sequence(),
    _text("batch_id", unique=True),
    _text("source"),
    _text("by"),
    _text("created_at"),
    Column("total", Integer),  # accepted; NULL until all are
    _text("left_out", server_default="[]"),  # JSON: name and reason of each
    _maybe("stopped_at"),
    _maybe("stopped_by"),
    _maybe("origin"),  # the caller's own key
    _maybe("digest"),  # of what came with it
    Index("batches_by_origin", "origin", unique=True),
)
chat_messages = _table(
    "chat_messages",
    _sequence(),
    _text("platform"),
    _text("key"),
    _text("request"),
    Column(
        "state", TEXT, CheckConstraint("state IN ('received', 'inspecting', 'answered')"), nullable=False,
        server_default="received",
    ),
    _maybe("inspection_id"),
    _text("created_at"),
    _text("thread", server_default=""),
    _yes("unsettled"),
    UniqueConstraint("platform", "key"),
    Index("chat_messages_open", "platform", "state", "created_at"),
    Index("chat_messages_by_thread", "platform", "thread", "seq"),
)  # fmt: skip
chat_threads = _table(
    "chat_threads",
    _text("platform", primary_key=True),
    _text("thread", primary_key=True),
    _text("inspection_id"),
)


def _insert(dialect: str, table: Table) -> Any:
    """An INSERT that may say what to do where a row is there already. The dialect in use alone is imported."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


@functools.cache
def _new_row(dialect: str, table: Table) -> Any:
    return _insert(dialect, table).on_conflict_do_nothing().returning(*table.primary_key)


@functools.cache
def _replaced_row(dialect: str, table: Table, names: tuple[str, ...]) -> Any:
    key = [c.name for c in table.primary_key]
    new = _insert(dialect, table)
    return new.on_conflict_do_update(index_elements=key, set_={n: new.excluded[n] for n in names if n not in key})


def clock(conn: Connection) -> ColumnElement[float]:
    """Seconds since 1970 by the clock that all processes of the database share."""
    if conn.dialect.name == "sqlite":
        return literal(time.time())
    return cast(func.extract("epoch", func.clock_timestamp()), Double)


def array_length(conn: Connection, column: ColumnElement[str]) -> ColumnElement[int]:
    """How many elements the JSON array in a column of text has."""
    return func.json_array_length(column if conn.dialect.name == "sqlite" else cast(column, JSON))


def insert_new(conn: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Add a row; False, and nothing changes, if one with its key is there."""
    return conn.execute(_new_row(conn.dialect.name, table), values).first() is not None


def put(conn: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Add a row, or replace the values given of the one with its primary key."""
    conn.execute(_replaced_row(conn.dialect.name, table, tuple(values)), values)


@functools.cache
def _with(table: Table, names: tuple[str, ...]) -> Any:
    return select(table).where(*(table.c[name] == bindparam(name) for name in names)).limit(1)


def get(conn: Connection, table: Table, **values: Any) -> Row[Any] | None:
    """A row with those values, none of them None; None if there is none. Prepared: the quickest way to a row."""
    return conn.execute(_with(table, tuple(values)), values).first()


def find(conn: Connection, table: Table, *where: Any, order: Sequence[Any] = ()) -> Row[Any] | None:
    """The row that matches, the first in that order; None if there is none."""
    return conn.execute(select(table).where(*where).order_by(*order).limit(1)).first()


def fields(row: Row[Any], kind: Any) -> dict[str, Any]:
    """Those columns of a row that are fields of a dataclass."""
    return {name: row._mapping[name] for name in kind.__dataclass_fields__}
