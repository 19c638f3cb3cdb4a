"""Jobs: inspections that a server has accepted. On the disk before the caller is answered, so a crash loses none.

A job's id is the id of its inspection, which is filed exactly once, so a job may run again after any crash.
"""

from __future__ import annotations

import builtins
import json
import sqlite3
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refdiff.memory.database import Database, Migrations
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BusyError, UnknownRecordError

JobState = Literal["queued", "running", "done", "failed"]
OPEN: tuple[JobState, ...] = ("queued", "running")

_MIGRATIONS: Migrations = (
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
)


@dataclass(frozen=True)
class Job:
    """An accepted inspection."""

    seq: int  # order of acceptance
    inspection_id: str
    origin: str | None  # the caller's own key, by which a repeated request finds the job again
    request: dict[str, Any]  # what to inspect, as JSON data
    state: JobState
    attempts: int  # how often it was started
    deaths: int  # how often its process crashed while it ran
    error: dict[str, Any] | None  # {"type", "message", "exit_code"} of a failed one
    created_at: str  # ISO 8601, UTC
    updated_at: str  # ISO 8601, UTC

    @property
    def open(self) -> bool:
        """Whether it is queued or running."""
        return self.state in OPEN


class JobStore(AbstractContextManager["JobStore"]):
    """The journal `home/jobs.sqlite`; a context manager, safe to share between threads."""

    def __init__(self, home: Path) -> None:
        self._db = Database(home / "jobs.sqlite", _MIGRATIONS)

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def add(self, inspection_id: str, request: dict[str, Any], origin: str | None, limit: int) -> tuple[Job, bool]:
        """Accept a job, durably on return: (job, True), or (the earlier one of the same origin, False).

        Raises BusyError if `limit` jobs are open already.
        """
        with self._db.transaction() as conn:
            if origin is not None:
                row = conn.execute("SELECT * FROM jobs WHERE origin = ?", (origin,)).fetchone()
                if row is not None:
                    return _job(row), False
            waiting = _count_open(conn)
            if waiting >= limit:
                raise BusyError(
                    f"{waiting} inspections are already waiting; try again later (or raise REFDIFF_QUEUE_LIMIT)"
                )
            now = utc_now()
            conn.execute(
                "INSERT INTO jobs (inspection_id, origin, request, state, created_at, updated_at) "
                "VALUES (?, ?, ?, 'queued', ?, ?)",
                (inspection_id, origin, json.dumps(request), now, now),
            )
            return _job(conn.execute("SELECT * FROM jobs WHERE inspection_id = ?", (inspection_id,)).fetchone()), True

    def adopt(self, inspection_id: str, request: dict[str, Any]) -> None:
        """Take over an inspection that another process started. A known one stays as it is."""
        now = utc_now()
        with self._db.transaction() as conn:
            conn.execute(
                "INSERT OR IGNORE INTO jobs (inspection_id, request, state, created_at, updated_at) "
                "VALUES (?, ?, 'queued', ?, ?)",
                (inspection_id, json.dumps(request), now, now),
            )

    def by_origin(self, origin: str) -> Job | None:
        """The job of that origin; None if there is none."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM jobs WHERE origin = ?", (origin,)).fetchone()
        return None if row is None else _job(row)

    def newest_of_origins(self, beginning: str) -> Job | None:
        """The newest job whose origin is `beginning`, a colon and more; None if there is none."""
        with self._db.connection() as conn:
            row = conn.execute(
                "SELECT * FROM jobs WHERE origin > ? AND origin < ? ORDER BY seq DESC LIMIT 1",
                (f"{beginning}:", f"{beginning};"),  # ";" follows ":"
            ).fetchone()
        return None if row is None else _job(row)

    def forget_origin(self, origin: str) -> None:
        """Make the next request of that origin a new job."""
        with self._db.transaction() as conn:
            conn.execute("UPDATE jobs SET origin = NULL, updated_at = ? WHERE origin = ?", (utc_now(), origin))

    def begin(self, inspection_id: str) -> Job:
        """Mark the job as running, and count the attempt."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, updated_at = ? WHERE inspection_id = ?",
                (utc_now(), inspection_id),
            )
        return self.get(inspection_id)

    def requeue(self, inspection_id: str) -> None:
        """Put a running job back in the queue: something it needs is unavailable, or the server stops."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'queued', updated_at = ? WHERE inspection_id = ? AND state = 'running'",
                (utc_now(), inspection_id),
            )

    def count_deaths(self) -> None:
        """Requeue jobs left running by a crash, and count it. Only at start-up, before any job runs."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'queued', deaths = deaths + 1, updated_at = ? WHERE state = 'running'",
                (utc_now(),),
            )

    def finish(self, inspection_id: str, error: dict[str, Any] | None = None) -> None:
        """Mark the job as done, or as failed with that error."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = ?, error = ?, updated_at = ? WHERE inspection_id = ?",
                (
                    "failed" if error else "done",
                    json.dumps(error) if error else None,
                    utc_now(),
                    inspection_id,
                ),
            )

    def get(self, inspection_id: str) -> Job:
        """Raises UnknownRecordError."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM jobs WHERE inspection_id = ?", (inspection_id,)).fetchone()
        if row is None:
            raise UnknownRecordError(f"no inspection {inspection_id!r} was requested here")
        return _job(row)

    def list(self, states: tuple[JobState, ...] = OPEN, limit: int = 1000) -> builtins.list[Job]:
        """Jobs in those states, in order of acceptance. limit: -1 for all."""
        marks = ", ".join("?" * len(states))
        with self._db.connection() as conn:
            rows = conn.execute(f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY seq LIMIT ?", (*states, limit))
            return [_job(row) for row in rows]

    def count_open(self) -> int:
        """How many jobs are queued or running."""
        with self._db.connection() as conn:
            return _count_open(conn)

    def ahead_of(self, job: Job) -> int:
        """How many open jobs were accepted before it."""
        with self._db.connection() as conn:
            query = "SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running') AND seq < ?"
            return int(conn.execute(query, (job.seq,)).fetchone()[0])


def _count_open(conn: sqlite3.Connection) -> int:
    return int(conn.execute("SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone()[0])


def _job(row: sqlite3.Row) -> Job:
    plain = {name: row[name] for name in Job.__dataclass_fields__}
    error = json.loads(plain["error"]) if plain["error"] else None
    return Job(**plain | {"request": json.loads(plain["request"]), "error": error})
