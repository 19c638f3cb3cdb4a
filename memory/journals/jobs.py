"""Jobs: inspections that a server has accepted. On the disk before the caller is answered, so a crash loses none.

A job's id is the id of its inspection, which is filed exactly once, so a job may run again after any crash.
"""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from refdiff.memory.changes import JOB, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BusyError, InputError, UnknownRecordError

JobState = Literal["queued", "running", "done", "failed"]
OPEN: tuple[JobState, ...] = ("queued", "running")

_J = t.jobs.c
_IS_OPEN = _J.state.in_(OPEN)
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


class JobStore:
    """The journal of jobs; safe to share between threads. The audit holds who cancelled one or had it tried again."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self, inspection_id: str, request: dict[str, Any], origin: str | None, limit: int, digest: str | None = None
    ) -> tuple[Job, bool]:
        """Accept a job, durably on return: (job, True), or (the earlier one of the same origin, False).

        digest: of what the caller sent. Raises BusyError if `limit` jobs are open already, InputError as `by_origin`.
        """
        with self._db.transaction() as conn:
            if origin is not None:
                row = t.get(conn, t.jobs, origin=origin)
                if row is not None:
                    return _same(_job(row), digest), False
            waiting = _count_open(conn)
            if waiting >= limit:
                raise BusyError(
                    f"{waiting} inspections are already waiting; try again later (or raise REFDIFF_QUEUE_LIMIT)"
                )
            new = _new(inspection_id, request) | {"origin": origin, "digest": digest}
            return _job(conn.execute(insert(t.jobs).values(new).returning(t.jobs)).one()), True

    def adopt(self, inspection_id: str, request: dict[str, Any]) -> None:
        """Take over an inspection that another process started. A known one stays as it is."""
        with self._db.transaction() as conn:
            t.insert_new(conn, t.jobs, _new(inspection_id, request))

    def by_origin(self, origin: str, digest: str | None = None) -> Job | None:
        """The job of that origin; None if there is none. Raises InputError if it was another request."""
        with self._db.connection() as conn:
            row = t.get(conn, t.jobs, origin=origin)
        return None if row is None else _same(_job(row), digest)

    def newest_of_origins(self, beginning: str) -> Job | None:
        """The newest job whose origin is `beginning`, a colon and more; None if there is none."""
        with self._db.connection() as conn:
            begins = (_J.origin > f"{beginning}:", _J.origin < f"{beginning};")  # ";" follows ":"
            row = t.find(conn, t.jobs, *begins, order=[_J.seq.desc()])
        return None if row is None else _job(row)

    def forget_origin(self, origin: str) -> None:
        """Make the next request of that origin a new job."""
        with self._db.transaction() as conn:
            _set(conn, _J.origin == origin, origin=None)

    def begin(self, inspection_id: str, alone: bool = False) -> Job | None:
        """Mark an open job as running, and count the attempt; None if it has ended, e.g. was cancelled.

        alone: nothing else is at work in this process. A crash of a job that crashed before is then its own.
        """
        with self._db.transaction() as conn:
            begun = _set(
                conn,
                (_J.inspection_id == inspection_id) & _IS_OPEN,
                state="running",
                attempts=_J.attempts + 1,
                alone=(_J.deaths > 0) if alone else False,
            )
        return self.get(inspection_id) if begun else None

    def not_alone(self, inspection_id: str) -> None:
        """Record that something else is at work beside a running job: a crash would not be the job's own."""
        with self._db.transaction() as conn:
            conn.execute(update(t.jobs).where(_J.inspection_id == inspection_id).values(alone=False))

    def requeue(self, inspection_id: str) -> None:
        """Put a running job back in the queue: something it needs is unavailable, or the server stops."""
        with self._db.transaction() as conn:
            _set(conn, (_J.inspection_id == inspection_id) & (_J.state == "running"), state="queued")

    def count_crashes(self) -> None:
        """Requeue jobs left running by a crash, and count it. Only at start-up, before any job runs."""
        with self._db.transaction() as conn:
            running = _J.state == "running"
            conn.execute(update(t.jobs).where(running & _J.alone).values(crashes_alone=_J.crashes_alone + 1))
            _set(conn, running, state="queued", deaths=_J.deaths + 1)

    def cancel(self, inspection_id: str, by: str) -> Job:
        """End a waiting job. Raises UnknownRecordError, InputError if it runs or has ended."""
        error = {"type": CANCELLED, "message": f"cancelled by {by}", "exit_code": InputError.exit_code}
        with changing(self._db) as conn:
            known = self.get(inspection_id)
            if known.error is not None and known.error["type"] == CANCELLED:
                return known
            if known.state != "queued":
                now = "is running" if known.open else f"has ended ({known.state})"
                raise InputError(f"inspection {inspection_id} {now}; only one that waits can be cancelled")
            _set(conn, _J.inspection_id == inspection_id, state="failed", error=json.dumps(error))
            return self._recorded(conn, known, by)

    def retry(self, inspection_id: str, by: str) -> Job:
        """Put a failed job back in the queue. Raises UnknownRecordError, InputError if it has not failed."""
        with changing(self._db) as conn:
            known = self.get(inspection_id)
            if known.state != "failed":
                raise InputError(
                    f"inspection {inspection_id} has not failed (it is {known.state}); nothing to try again"
                )
            again = {"state": "queued", "error": None, "deaths": 0, "crashes_alone": 0}
            _set(conn, _J.inspection_id == inspection_id, **again)
            return self._recorded(conn, known, by)

    def _recorded(self, conn: Connection, known: Job, by: str) -> Job:
        """A job after a person did something to it, with the audit record of that. known: as it was before."""
        job = self.get(known.inspection_id)
        before, after = (
            {"part_id": j.request.get("part_id"), "state": j.state, "error": j.error and j.error["message"]}
            for j in (known, job)
        )
        record_change(conn, JOB, job.inspection_id, by, before, after)
        return job

    def finish(self, inspection_id: str, error: dict[str, Any] | None = None) -> None:
        """Mark the job as done, or as failed with that error."""
        with self._db.transaction() as conn:
            said = json.dumps(error) if error else None
            _set(conn, _J.inspection_id == inspection_id, state="failed" if error else "done", error=said)

    def find(self, inspection_id: str) -> Job | None:
        """The job of that inspection; None for one that no server has accepted."""
        with self._db.connection() as conn:
            row = t.get(conn, t.jobs, inspection_id=inspection_id)
        return None if row is None else _job(row)

    def get(self, inspection_id: str) -> Job:
        """Raises UnknownRecordError."""
        job = self.find(inspection_id)
        if job is None:
            raise UnknownRecordError(f"no inspection {inspection_id!r} was requested here")
        return job

    def list(self, states: tuple[JobState, ...] = OPEN, limit: int = 1000) -> builtins.list[Job]:
        """Jobs in those states, in order of acceptance, after them those that crashed. limit: -1 for all."""
        found = select(t.jobs).where(_J.state.in_(states)).order_by(_J.deaths > 0, _J.seq)
        with self._db.connection() as conn:
            return [_job(row) for row in conn.execute(found.limit(None if limit < 0 else limit)).all()]

    def count_open(self) -> int:
        """How many jobs are queued or running."""
        with self._db.connection() as conn:
            return _count_open(conn)

    def oldest_open(self) -> str | None:
        """When the oldest queued or running job was accepted (ISO 8601, UTC); None without one."""
        with self._db.connection() as conn:
            return conn.scalar(select(func.min(_J.created_at)).where(_IS_OPEN))

    def ahead_of(self, job: Job) -> int:
        """How many open jobs were accepted before it."""
        with self._db.connection() as conn:
            return _count_open(conn, _J.seq < job.seq)


def _new(inspection_id: str, request: dict[str, Any]) -> dict[str, Any]:
    now = utc_now()
    return {"inspection_id": inspection_id, "request": json.dumps(request), "state": "queued", "created_at": now,
            "updated_at": now}  # fmt: skip


def _set(conn: Connection, which: ColumnElement[bool], **values: Any) -> int:
    """Set columns of jobs; of how many."""
    return conn.execute(update(t.jobs).where(which).values(updated_at=utc_now(), **values)).rowcount


def _count_open(conn: Connection, *which: ColumnElement[bool]) -> int:
    return int(conn.scalar(select(func.count()).where(_IS_OPEN, *which)) or 0)


def _same(job: Job, digest: str | None) -> Job:
    if digest is not None and job.digest is not None and digest != job.digest:
        raise InputError(
            f"this key was used for another request (inspection {job.inspection_id}, part {job.request['part_id']}, "
            f"accepted at {job.created_at[:19]} UTC); give each request a key of its own"
        )
    return job


def _job(row: Row[Any]) -> Job:
    plain = {name: row._mapping["deaths" if name == "crashes" else name] for name in Job.__dataclass_fields__}
    error = json.loads(plain["error"]) if plain["error"] else None
    return Job(**plain | {"request": json.loads(plain["request"]), "error": error})
