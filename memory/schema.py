"""The main database of a home (`refdiff.sqlite`): its schema, as migrations, and its one way to be opened."""

from __future__ import annotations

from pathlib import Path

from refdiff.memory.audit_chain import adopt_earlier
from refdiff.memory.audit_head import NAME as AUDIT_HEAD
from refdiff.memory.audit_head import AuditHead
from refdiff.memory.database import Database, Migrations

MAIN = "refdiff.sqlite"
_OTHERS = ("images", "inspections", "jobs.sqlite", "keys.sqlite", "chat.sqlite", "checkpoints.sqlite", "goldens.sqlite",
           ".restoring", AUDIT_HEAD)  # fmt: skip
_LOST = (
    "the main database is missing or empty, but this home is not new: it has {others}. Put the file back, or restore a "
    "backup into an empty folder (refdiff restore). To begin anew, set REFDIFF_HOME to another folder"
)


def other_stores(home: Path) -> list[str]:
    """What of a home is there besides the main database; [] in a new one."""
    found = (home / name for name in _OTHERS)
    return [p.name for p in found if (any(p.iterdir()) if p.is_dir() else p.exists())]


def open_main(home: Path) -> Database:
    """Open the main database, made if the home is new. Each of its commits moves the audit head.

    Raises StorageError where it is damaged, or lost while other stores remain.
    """
    # looked for before the database is: the process that makes a home makes the database first
    lost = _LOST.format(others=", ".join(others)) if (others := other_stores(home)) else ""
    return Database(home / MAIN, MIGRATIONS, lost=lost, after_commit=AuditHead(home).follow)


MIGRATIONS: Migrations = (
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
        adopt_earlier,
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
    (
        # of what kind a product's files are
        "ALTER TABLE products ADD COLUMN kind TEXT NOT NULL DEFAULT 'photo'",
    ),
)
