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

from refdiff.memory.changes import JOB, recorded
from refdiff.memory.database import Database, Migrations
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BusyError, InputError, UnknownRecordError

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
    (
        "ALTER TABLE jobs ADD COLUMN digest TEXT",
        "ALTER TABLE jobs ADD COLUMN alone INTEGER NOT NULL DEFAULT 0",  # now
        "ALTER TABLE jobs ADD COLUMN crashes_alone INTEGER NOT NULL DEFAULT 0",
    ),
)

CANCELLED, CRASHED = "Cancelled", "Crashed"  # types of errors that end a job without an exception


@dataclass(frozen=True)
class Job:
    """An accepted inspection."""

    seq: int  # order of acceptance
    inspection_id: str
    origin: str | None  # the caller's own key, by which a repeated request finds the job again
    request: dict[str, Any]  # what to inspect, as JSON data
    state: JobState
    attempts: int  # how often it was started
    crashes: int  # of the process while it ran
    crashes_alone: int  # after the first one, while nothing else was at work: it is the cause
    digest: str | None  # of the request, where a repeated one must be the same
    error: dict[str, Any] | None  # {"type", "message", "exit_code"} of a failed one
    created_at: str  # ISO 8601, UTC
    updated_at: str  # ISO 8601, UTC

    @property
    def open(self) -> bool:
        """Whether it is queued or running."""
        return self.state in OPEN

    @property
    def is_final(self) -> bool:
        """Whether it failed for good: the request was at fault, somebody cancelled it, or it crashed the process."""
        error = self.error
        return error is not None and (
            error["type"] in (CANCELLED, CRASHED) or error["exit_code"] == InputError.exit_code
        )


class JobStore(AbstractContextManager["JobStore"]):
    """The journal `home/jobs.sqlite`; a context manager, safe to share between threads."""

    def __init__(self, home: Path, chain: Database | None = None) -> None:
        """chain: the main database, whose audit holds who cancelled a job or had it tried again."""
        self._db, self._chain = Database(home / "jobs.sqlite", _MIGRATIONS), chain

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def add(
        self, inspection_id: str, request: dict[str, Any], origin: str | None, limit: int, digest: str | None = None
    ) -> tuple[Job, bool]:
        """Accept a job, durably on return: (job, True), or (the earlier one of the same origin, False).

        digest: of what the caller sent. Raises BusyError if `limit` jobs are open already, InputError as `by_origin`.
        """
        with self._db.transaction() as conn:
            if origin is not None:
                row = conn.execute("SELECT * FROM jobs WHERE origin = ?", (origin,)).fetchone()
                if row is not None:
                    return _same(_job(row), digest), False
            waiting = _count_open(conn)
            if waiting >= limit:
                raise BusyError(
                    f"{waiting} inspections are already waiting; try again later (or raise REFDIFF_QUEUE_LIMIT)"
                )
            now = utc_now()
            conn.execute(
                "INSERT INTO jobs (inspection_id, origin, request, digest, state, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, 'queued', ?, ?)",
                (inspection_id, origin, json.dumps(request), digest, now, now),
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

    def by_origin(self, origin: str, digest: str | None = None) -> Job | None:
        """The job of that origin; None if there is none. Raises InputError if it was another request."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM jobs WHERE origin = ?", (origin,)).fetchone()
        return None if row is None else _same(_job(row), digest)

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

    def begin(self, inspection_id: str, alone: bool = False) -> Job | None:
        """Mark an open job as running, and count the attempt; None if it has ended, e.g. was cancelled.

        alone: nothing else is at work in this process. A crash of a job that crashed before is then its own.
        """
        with self._db.transaction() as conn:
            begun = conn.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, alone = (deaths > 0 AND ?), updated_at = ? "
                "WHERE inspection_id = ? AND state IN ('queued', 'running')",
                (int(alone), utc_now(), inspection_id),
            )
        return self.get(inspection_id) if begun.rowcount else None

    def not_alone(self, inspection_id: str) -> None:
        """Record that something else is at work beside a running job: a crash would not be the job's own."""
        with self._db.transaction() as conn:
            conn.execute("UPDATE jobs SET alone = 0 WHERE inspection_id = ?", (inspection_id,))

    def requeue(self, inspection_id: str) -> None:
        """Put a running job back in the queue: something it needs is unavailable, or the server stops."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'queued', updated_at = ? WHERE inspection_id = ? AND state = 'running'",
                (utc_now(), inspection_id),
            )

    def count_crashes(self) -> None:
        """Requeue jobs left running by a crash, and count it. Only at start-up, before any job runs."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'queued', deaths = deaths + 1, crashes_alone = crashes_alone + alone, "
                "updated_at = ? WHERE state = 'running'",
                (utc_now(),),
            )

    def cancel(self, inspection_id: str, by: str) -> Job:
        """End a waiting job. Raises UnknownRecordError, InputError if it runs or has ended."""
        message, known = f"cancelled by {by}", self.get(inspection_id)
        with self._recorded(known, by, "failed", message, known.state == "queued"), self._db.transaction() as conn:
            error = json.dumps({"type": CANCELLED, "message": message, "exit_code": InputError.exit_code})
            conn.execute(
                "UPDATE jobs SET state = 'failed', error = ?, updated_at = ? WHERE inspection_id = ? AND state = 'queued'",
                (error, utc_now(), inspection_id),
            )
            job = self.get(inspection_id)
            if job.error is None or job.error["type"] != CANCELLED:
                now = "is running" if job.open else f"has ended ({job.state})"
                raise InputError(f"inspection {inspection_id} {now}; only one that waits can be cancelled")
        return job

    def retry(self, inspection_id: str, by: str) -> Job:
        """Put a failed job back in the queue. Raises UnknownRecordError, InputError if it has not failed."""
        known = self.get(inspection_id)
        with self._recorded(known, by, "queued", None, known.state == "failed"), self._db.transaction() as conn:
            again = conn.execute(
                "UPDATE jobs SET state = 'queued', error = NULL, deaths = 0, crashes_alone = 0, updated_at = ? "
                "WHERE inspection_id = ? AND state = 'failed'",
                (utc_now(), inspection_id),
            )
            job = self.get(inspection_id)
            if not again.rowcount:
                raise InputError(f"inspection {inspection_id} has not failed (it is {job.state}); nothing to try again")
        return job

    def _recorded(
        self, known: Job, by: str, state: JobState, why: str | None, will: bool
    ) -> AbstractContextManager[None]:
        """The audit record of what a person does to a job. will: false if nothing is to be done to it."""
        said = None if known.error is None else known.error["message"]
        before = {"part_id": known.request.get("part_id"), "state": known.state, "error": said}
        after = before | {"state": state, "error": why}
        return recorded(self._chain if will else None, JOB, known.inspection_id, by, before, after)

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

    def find(self, inspection_id: str) -> Job | None:
        """The job of that inspection; None for one that no server has accepted."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM jobs WHERE inspection_id = ?", (inspection_id,)).fetchone()
        return None if row is None else _job(row)

    def get(self, inspection_id: str) -> Job:
        """Raises UnknownRecordError."""
        job = self.find(inspection_id)
        if job is None:
            raise UnknownRecordError(f"no inspection {inspection_id!r} was requested here")
        return job

    def list(self, states: tuple[JobState, ...] = OPEN, limit: int = 1000) -> builtins.list[Job]:
        """Jobs in those states, in order of acceptance, after them those that crashed. limit: -1 for all."""
        marks = ", ".join("?" * len(states))
        with self._db.connection() as conn:
            query = f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY deaths > 0, seq LIMIT ?"
            rows = conn.execute(query, (*states, limit))
            return [_job(row) for row in rows]

    def count_open(self) -> int:
        """How many jobs are queued or running."""
        with self._db.connection() as conn:
            return _count_open(conn)

    def oldest_open(self) -> str | None:
        """When the oldest queued or running job was accepted (ISO 8601, UTC); None without one."""
        with self._db.connection() as conn:
            query = "SELECT MIN(created_at) FROM jobs WHERE state IN ('queued', 'running')"
            found = conn.execute(query).fetchone()[0]
        return None if found is None else str(found)

    def ahead_of(self, job: Job) -> int:
        """How many open jobs were accepted before it."""
        with self._db.connection() as conn:
            query = "SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running') AND seq < ?"
            return int(conn.execute(query, (job.seq,)).fetchone()[0])


def _count_open(conn: sqlite3.Connection) -> int:
    return int(conn.execute("SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone()[0])


def _same(job: Job, digest: str | None) -> Job:
    if digest is not None and job.digest is not None and digest != job.digest:
        raise InputError(
            f"this key was used for another request (inspection {job.inspection_id}, part {job.request['part_id']}, "
            f"accepted at {job.created_at[:19]} UTC); give each request a key of its own"
        )
    return job


def _job(row: sqlite3.Row) -> Job:
    plain = {name: row["deaths" if name == "crashes" else name] for name in Job.__dataclass_fields__}
    error = json.loads(plain["error"]) if plain["error"] else None
    return Job(**plain | {"request": json.loads(plain["request"]), "error": error})
