"""The schema of the one database (`home/refdiff.sqlite`), as migrations."""

from __future__ import annotations

from refdiff.memory.audit_chain import adopt_earlier
from refdiff.memory.database import Migrations

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
)
