"""Homes of versions before Alembic: SQLite files that count their schema in `user_version`, several in one home.

`refdiff.sqlite` is brought to the last schema of those versions, from which the revisions go on. What they kept in files of
their own (keys, jobs, chat) moves into it in the same transaction; then those files are renamed, as they serve no more.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, insert

from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.database.sqlite_file import Steps, leave_wal, open_local, run_steps
from refdiff.model.errors import RefDiffError
from refdiff.model.files import storage_error

log = logging.getLogger(__name__)

REVISION = "r0001"  # the revision that makes the last schema of theirs
OTHERS = ("keys.sqlite", "jobs.sqlite", "chat.sqlite")
_ASIDE = "-old"
_Moved = tuple[tuple[str, Table], ...]


def bring_up(conn: Connection, version: int) -> None:
    """Bring the main database from `user_version` `version` to the last schema of those versions."""
    run_steps(conn, _MAIN, version)


def newest() -> int:
    """The last `user_version` of those versions."""
    return len(_MAIN)


def was_before_audit(version: int) -> bool:
    """Whether a main database had no audit chain yet."""
    return version == 1


def take_over(conn: Connection, home: Path) -> None:
    """Copy what those versions kept in files of their own into the newest tables, in the caller's transaction.

    Raises StorageError where one of them is damaged, or of a newer version.
    """
    for name, steps, moved in _MOVED:
        if not (file := home / name).exists():
            continue
        open_local(file, steps).close()  # at the last schema of those versions
        with _reading(file) as old:
            for source, table in moved:
                for row in _rows(old, source, table):
                    conn.execute(insert(table), row)


def set_aside(db: Database, home: Path) -> None:
    """Rename the files that were taken over; for a home whose records are in the newest tables.

    What a process of those versions wrote into one after it was taken over is copied first.
    """
    for name, steps, moved in _MOVED:
        file = home / name
        try:
            while file.exists() and not _set_aside(db, file, steps, moved):
                pass  # what was added is committed now
        except RefDiffError as e:  # it is in nobody's way; the next one tries again
            log.warning("%s", e)


def _set_aside(db: Database, file: Path, steps: Steps, moved: _Moved) -> bool:
    """Rename one file if all of its rows are in the main database, else add those; whether none was missing."""
    with db.transaction() as conn:  # by one process at a time
        if not file.exists():
            return True
        open_local(file, steps).close()
        leave_wal(file)
        added = 0
        with _reading(file) as old:
            for source, table in moved:
                for row in _rows(old, source, table):
                    row.pop("seq", None)  # here another row may have that number by now
                    added += t.insert_new(conn, table, row)
        if added:
            log.warning("%s: %d rows that an earlier refdiff wrote during the upgrade were copied", file, added)
            return False
        names = (f"{file.name}{_ASIDE}{number or ''}" for number in itertools.count())
        aside = next(path for name in names if not (path := file.with_name(name)).exists())
        try:
            file.rename(aside)
        except OSError as e:
            raise storage_error(file, e) from e
        log.info("%s is part of the main database now; %s may be deleted", file.name, aside.name)
        return True


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as conn:
            conn.row_factory = sqlite3.Row
            yield conn
    except sqlite3.Error as e:
        raise storage_error(file, e) from e


def _rows(old: sqlite3.Connection, source: str, table: Table) -> Iterator[dict[str, Any]]:
    """The rows there, as `table` has them here."""
    flags = [c.name for c in table.columns if c.type.python_type is bool]
    for row in old.execute(f"SELECT * FROM {source}"):
        kept = dict(row)
        if table is t.jobs:
            kept["place"] = kept["seq"]
        yield kept | {name: bool(kept[name]) for name in flags}


# Entry i brings a file from user_version i to i + 1. Nothing is ever added to these: revisions follow.
_MAIN: Steps = (
    (
        """CREATE TABLE products (
            name TEXT PRIMARY KEY,
            scale_mm_per_px REAL,
            window_lo REAL,
            window_hi REAL,
            spec TEXT NOT NULL DEFAULT '{}',
            spec_version INTEGER NOT NULL DEFAULT 0,
            updated_at TEXT NOT NULL
        )""",
        """CREATE TABLE captures (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            capture_id TEXT NOT NULL UNIQUE,
            part_id TEXT NOT NULL,
            product TEXT NOT NULL REFERENCES products(name),
            sha256 TEXT NOT NULL,
            scale_mm_per_px REAL,
            filename TEXT NOT NULL,
            created_at TEXT NOT NULL
        )""",
        "CREATE INDEX captures_by_part ON captures(part_id, product, seq)",
        """CREATE TABLE calibrations (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            product TEXT NOT NULL,
            key TEXT NOT NULL,
            scores TEXT NOT NULL,
            pixel_threshold REAL NOT NULL,
            n INTEGER NOT NULL,
            reference_count INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            seconds REAL NOT NULL,
            extra TEXT NOT NULL,
            UNIQUE (product, key)
        )""",
        """CREATE TABLE inspections (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            inspection_id TEXT NOT NULL UNIQUE,
            part_id TEXT NOT NULL,
            product TEXT NOT NULL,
            verdict TEXT NOT NULL CHECK (verdict IN ('PASS', 'FAIL', 'REVIEW')),
            created_at TEXT NOT NULL,
            report TEXT NOT NULL
        )""",
        "CREATE INDEX inspections_by_time ON inspections(created_at, seq)",
        "CREATE INDEX inspections_by_part ON inspections(part_id)",
        """CREATE TABLE dispositions (
            inspection_id TEXT PRIMARY KEY REFERENCES inspections(inspection_id),
            decision TEXT NOT NULL CHECK (decision IN ('accept', 'override')),
            decided_by TEXT NOT NULL,
            reason TEXT NOT NULL,
            created_at TEXT NOT NULL
        )""",
    ),
    (
        # AUTOINCREMENT remembers the last number given, so records cut off the end are noticed
        """CREATE TABLE audit (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            inspection_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            at TEXT NOT NULL,
            by TEXT NOT NULL,
            facts TEXT NOT NULL,
            content TEXT,
            content_sha256 TEXT NOT NULL,
            hash TEXT NOT NULL
        )""",
        "CREATE INDEX audit_by_inspection ON audit(inspection_id, seq)",
        "CREATE INDEX audit_by_time ON audit(at)",
        # the records of what was filed before are added once the newest schema is there (`was_before_audit`)
    ),
    (
        "ALTER TABLE dispositions ADD COLUMN judged TEXT CHECK (judged IN ('good', 'bad'))",
        "ALTER TABLE dispositions ADD COLUMN as_reference INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE blind_checks (
            inspection_id TEXT PRIMARY KEY REFERENCES inspections(inspection_id),
            share REAL NOT NULL,
            judged TEXT CHECK (judged IN ('good', 'bad')),
            judged_by TEXT,
            note TEXT,
            as_reference INTEGER NOT NULL DEFAULT 0,
            judged_at TEXT
        )""",
        """CREATE TABLE learned (
            inspection_id TEXT PRIMARY KEY REFERENCES inspections(inspection_id),
            golden_id TEXT,
            outcome TEXT NOT NULL,
            created_at TEXT NOT NULL
        )""",
    ),
    (
        """CREATE TABLE approvals (
            inspection_id TEXT PRIMARY KEY REFERENCES inspections(inspection_id),
            approved INTEGER NOT NULL,
            by TEXT NOT NULL,
            note TEXT NOT NULL,
            created_at TEXT NOT NULL
        )""",
    ),
    (
        # where each golden lies in its frame, the pixel grid of the golden that is its anchor; derived, made again if lost
        """CREATE TABLE frames (
            golden_id TEXT PRIMARY KEY,
            product TEXT NOT NULL,
            anchor_id TEXT NOT NULL,
            version INTEGER NOT NULL,
            place TEXT NOT NULL
        )""",
        "CREATE INDEX frames_by_product ON frames(product, anchor_id)",
    ),
    (
        # what the pictures of an inspection are drawn from, beside its photos: a small PNG of a few kB
        """CREATE TABLE differences (
            inspection_id TEXT PRIMARY KEY REFERENCES inspections(inspection_id),
            picture BLOB NOT NULL
        )""",
    ),
    (
        # what people call the findings of reports, one row for each word: the newest about a finding holds
        """CREATE TABLE defect_names (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            inspection_id TEXT NOT NULL REFERENCES inspections(inspection_id),
            finding TEXT NOT NULL,
            product TEXT NOT NULL,
            part_id TEXT NOT NULL,
            name TEXT,
            before TEXT,
            by TEXT NOT NULL,
            note TEXT NOT NULL,
            picture TEXT NOT NULL,
            created_at TEXT NOT NULL
        )""",
        "CREATE INDEX defect_names_by_finding ON defect_names(inspection_id, finding, seq)",
        "CREATE INDEX defect_names_by_product ON defect_names(product, seq)",
        # what they look like to the networks, and what it takes to look again; the vectors are derived
        """CREATE TABLE defect_embeddings (
            key TEXT PRIMARY KEY,
            sight TEXT NOT NULL,
            weights TEXT NOT NULL,
            vector BLOB NOT NULL
        )""",
    ),
    (
        # difference networks that were fitted to a product, in place of the shared one; a few MB
        """CREATE TABLE networks (
            product TEXT PRIMARY KEY,
            sha256 TEXT NOT NULL,
            shared TEXT NOT NULL,
            more TEXT NOT NULL,
            created_at TEXT NOT NULL,
            weights BLOB NOT NULL
        )""",
    ),
    (
        # how the last fit of each product went, so that none is tried again in vain; decides nothing about parts
        """CREATE TABLE fit_attempts (
            product TEXT PRIMARY KEY,
            attempt TEXT NOT NULL
        )""",
    ),
    (
        # which inspections are of a photo; a damaged report is of none
        "CREATE INDEX inspections_by_photo ON inspections(product, "
        "CASE WHEN json_valid(report) THEN json_extract(report, '$.query_sha256') END)",
    ),
    (
        # what people call counted components, with what it takes to recognise each in a later calibration
        "ALTER TABLE products ADD COLUMN component_names TEXT NOT NULL DEFAULT '{}'",
    ),
)

_KEYS: Steps = (
    (
        """CREATE TABLE keys (
            key_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('viewer', 'inspector', 'admin')),
            sha256 TEXT NOT NULL,
            created_at TEXT NOT NULL,
            created_by TEXT NOT NULL,
            revoked_at TEXT
        )""",
    ),
    ("ALTER TABLE keys ADD COLUMN operator INTEGER NOT NULL DEFAULT 0",),
)

_JOBS: Steps = (
    (
        """CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            inspection_id TEXT NOT NULL UNIQUE,
            origin TEXT UNIQUE,
            request TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
            attempts INTEGER NOT NULL DEFAULT 0,
            error TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""",
        "CREATE INDEX jobs_by_state ON jobs(state, seq)",
    ),
    ("ALTER TABLE jobs ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0",),
    (
        "ALTER TABLE jobs ADD COLUMN digest TEXT",
        "ALTER TABLE jobs ADD COLUMN alone INTEGER NOT NULL DEFAULT 0",  # now
        "ALTER TABLE jobs ADD COLUMN crashes_alone INTEGER NOT NULL DEFAULT 0",
    ),
)

_CHAT: Steps = (
    (
        """CREATE TABLE messages (
            platform TEXT NOT NULL,
            key TEXT NOT NULL,
            request TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'received' CHECK (state IN ('received', 'inspecting', 'answered')),
            inspection_id TEXT,
            created_at TEXT NOT NULL,
            PRIMARY KEY (platform, key)
        )""",
        "CREATE INDEX messages_open ON messages(platform, created_at) WHERE state != 'answered'",
        """CREATE TABLE threads (
            platform TEXT NOT NULL,
            thread TEXT NOT NULL,
            inspection_id TEXT NOT NULL,
            PRIMARY KEY (platform, thread)
        )""",
    ),
    (
        "ALTER TABLE messages ADD COLUMN thread TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE messages ADD COLUMN unsettled INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX messages_unsettled ON messages(platform, thread, created_at) WHERE unsettled",
    ),
)

_MOVED: tuple[tuple[str, Steps, _Moved], ...] = (  # file, its schema, tables: there and here
    ("keys.sqlite", _KEYS, (("keys", t.keys),)),
    ("jobs.sqlite", _JOBS, (("jobs", t.jobs),)),
    ("chat.sqlite", _CHAT, (("messages ORDER BY created_at, rowid", t.chat_messages), ("threads", t.chat_threads))),
)
