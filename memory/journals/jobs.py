"""Jobs: inspections that a server has accepted. On the disk before the caller is answered, so a crash loses none.

A job's id is the id of its inspection, which is filed exactly once, so a job may run again after any crash, and no harm is
done where two processes run it. Any number of them take jobs: each job that runs has a lease, which its worker renews; once
that has ended, another worker takes the job over.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, case, delete, exists, func, insert, or_, select, update

from refdiff.memory.changes import JOB, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BusyError, InputError, UnknownRecordError

T = TypeVar("T")
JobState = Literal["queued", "running", "done", "failed"]
OPEN: tuple[JobState, ...] = ("queued", "running")

_J = t.jobs.c
_IS_OPEN = _J.state.in_(OPEN)
CANCELLED, CRASHED, HUNG = "Cancelled", "Crashed", "Hung"  # types of errors that end a job without an exception
MAX_HANGS = 2  # of a job; then it fails
_GONE_S = 6.0  # by then most processes in which a job hung have ended; of others the lock of the inspection tells
PERSON, BATCH = 0, 10  # priorities: somebody waits, nobody does
LEASE_S = 30.0  # without a sign of life of its worker, another one takes a job over
_AT_ONCE = 500  # ids in one query


@dataclass(frozen=True)
class Job:
    """An accepted inspection."""

    seq: int  # order of acceptance
    place: int  # in the queue, among those of its priority
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
    priority: int = PERSON  # the lowest goes first
    line: str | None = None  # whose jobs run one after the other, in order of acceptance
    batch: str | None = None
    worker: str | None = None  # that runs it
    failures: int = 0  # in a row, of something that it needs

    @property
    def open(self) -> bool:
        """Whether it is queued or running."""
        return self.state in OPEN

    @property
    def is_final(self) -> bool:
        """Whether it failed for good: the request was at fault, somebody cancelled it, or it crashed or hung processes."""
        error = self.error
        return error is not None and (
            error["type"] in (CANCELLED, CRASHED, HUNG) or error["exit_code"] == InputError.exit_code
        )


class JobStore:
    """The journal of jobs; safe to share between threads. The audit holds who cancelled one or had it tried again."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self,
        inspection_id: str,
        request: dict[str, Any],
        origin: str | None,
        limit: int,
        digest: str | None = None,
        *,
        priority: int = PERSON,
        line: str | None = None,
        batch: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job, durably on return: (job, True), or (the earlier one of the same origin, False).

        digest: of what the caller sent. priority: the lowest goes first. line: its jobs run one after the other, in order.
        Raises BusyError if `limit` jobs are open already, those of batches aside, InputError as `by_origin`.
        """
        with self._db.transaction() as conn:
            if origin is not None:
                row = t.get(conn, t.jobs, origin=origin)
                if row is not None:
                    return _same(_job(row), digest), False
            waiting = _count_open(conn, _J.batch.is_(None))
            if batch is None and waiting >= limit:
                raise BusyError(
                    f"{waiting} inspections are already waiting; try again later (or raise REFDIFF_QUEUE_LIMIT)"
                )
            new = _new(conn, inspection_id, request) | {
                "origin": origin, "digest": digest, "priority": priority, "line": line, "batch": batch,
            }  # fmt: skip
            return _job(conn.execute(insert(t.jobs).values(new).returning(t.jobs)).one()), True

    def adopt(self, inspection_id: str, request: dict[str, Any]) -> None:
        """Take over an inspection that another process started. A known one stays as it is."""
        with self._db.transaction() as conn:
            t.insert_new(conn, t.jobs, _new(conn, inspection_id, request))

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

    def forget_origin(self, origin: str, inspection_id: str) -> None:
        """Make the next request of that origin a new job, unless a job other than that one has it by now."""
        with self._db.transaction() as conn:
            _set(conn, (_J.origin == origin) & (_J.inspection_id == inspection_id), origin=None)

    def begin(
        self, inspection_id: str | None = None, alone: bool = False, worker: str = "", lease_s: float = LEASE_S
    ) -> Job | None:
        """Take a job for `worker`, and count the attempt: that one if it is open, else the next in order; None without one.

        Next is the oldest of the lowest priority that is due and whose line has no older open job, nor one that runs. alone:
        nothing else is at work in this process: a crash of a job that crashed before is then its own. lease_s: see `keep`.
        """
        if inspection_id is None and not self._has_due():
            return None  # the usual case of an idle worker takes no lock
        with self._db.out_of_turn() as conn:
            now = t.clock(conn)
            which = _next(now) if inspection_id is None else (_J.inspection_id == inspection_id) & _IS_OPEN
            chosen = select(_J.seq).where(which).order_by(*_IN_ORDER).limit(1)
            # in Postgres, jobs that another worker is taking at this moment are passed over; in SQLite there is none
            seq = conn.scalar(chosen.with_for_update(skip_locked=inspection_id is None))
            if seq is None:
                return None
            begun = {
                "state": "running", "attempts": _J.attempts + 1, "alone": (_J.deaths > 0) if alone else False,
                "worker": worker, "lease_until": now + lease_s, "not_before": None, "updated_at": utc_now(),
            }  # fmt: skip
            return _job(conn.execute(update(t.jobs).where(_J.seq == seq).values(begun).returning(t.jobs)).one())

    def not_alone(self, inspection_id: str) -> None:
        """Record that something else is at work beside a running job: a crash would not be the job's own."""
        with self._db.transaction() as conn:
            conn.execute(update(t.jobs).where(_J.inspection_id == inspection_id).values(alone=False))

    def requeue(
        self,
        inspection_id: str,
        worker: str = "",
        delay_s: float | None = None,
        last: bool = False,
        failed: bool = True,
    ) -> None:
        """Put a job that `worker` runs back in the queue: something it needs is unavailable, or the server stops.

        delay_s: it is due after that time; None: at once. last: behind all that are waiting. failed: whether that counts
        as a failure, where it is due later. A job that another worker has taken over meanwhile stays as it is.
        """
        with self._db.out_of_turn() as conn:
            later: dict[str, Any] = {} if delay_s is None else {"not_before": t.clock(conn) + delay_s}
            if later and failed:
                later["failures"] = _J.failures + 1
            _set(conn, _held(inspection_id, worker), state="queued", worker=None, lease_until=None,
                 **later, **({"place": _LAST} if last else {}))  # fmt: skip

    def release(self, worker: str) -> None:
        """Put whatever `worker` runs back in the queue. It need not know what that is: the answer to `begin` may be lost."""
        with self._db.out_of_turn() as conn:
            _set(conn, _runs(worker), state="queued", worker=None, lease_until=None)

    def hang(self, inspection_id: str, worker: str, error: dict[str, Any]) -> JobState | None:
        """Give up a job that hangs in `worker`: it waits again, behind all others; if it hung before, it fails with `error`.

        Its state then; None, and nothing is changed, if another worker has taken it over.
        """
        held = _held(inspection_id, worker)
        with self._db.out_of_turn() as conn:
            hangs = conn.scalar(select(_J.hangs).where(held).with_for_update())
            if hangs is None:
                return None
            ends = hangs + 1 >= MAX_HANGS
            state: JobState = "failed" if ends else "queued"
            then = {"error": json.dumps(error)} if ends else {"place": _LAST, "not_before": t.clock(conn) + _GONE_S}
            _set(conn, held, state=state, hangs=hangs + 1, worker=None, lease_until=None, **then)
            return state

    def take_over(self, everybody: bool = False) -> builtins.list[Job]:
        """Requeue, behind all that wait, the running jobs whose lease has ended: their workers crashed, which is counted.

        everybody: all that run, as no worker lives; for the start of a process that works alone. Returns those jobs.
        """
        with self._db.connection() as conn:
            lost = (_J.state == "running") if everybody else _lost(t.clock(conn))
            if conn.scalar(select(_J.seq).where(lost).limit(1)) is None:
                return []  # the usual case takes no lock
        with self._db.out_of_turn() as conn:
            lost = (_J.state == "running") if everybody else _lost(t.clock(conn))
            found = conn.scalars(select(_J.seq).where(lost).with_for_update(skip_locked=True)).all()
            crashed = {
                "crashes_alone": case((_J.alone, _J.crashes_alone + 1), else_=_J.crashes_alone),
                "state": "queued", "deaths": _J.deaths + 1, "worker": None, "lease_until": None, "place": _LAST,
            }  # fmt: skip
            rows = [
                row
                for seqs in _pages(found)
                for row in conn.execute(
                    update(t.jobs).where(_J.seq.in_(seqs)).values(updated_at=utc_now(), **crashed).returning(t.jobs)
                ).all()
            ]
        return sorted(map(_job, rows), key=lambda job: job.seq)

    def keep(self, worker: str, lease_s: float = LEASE_S) -> None:
        """Say that `worker` lives: it, and what it runs, is taken for dead in lease_s seconds unless it says so again."""
        with self._db.out_of_turn() as conn:
            until = t.clock(conn) + lease_s
            conn.execute(update(t.jobs).where(_runs(worker)).values(lease_until=until))
            if not conn.execute(update(t.workers).where(_W.worker == worker).values(alive_until=until)).rowcount:
                conn.execute(delete(t.workers).where(_W.alive_until < t.clock(conn)))
                conn.execute(insert(t.workers).values(worker=worker, began_at=utc_now(), alive_until=until))

    def leave(self, worker: str, hung: str | None = None) -> None:
        """Say that `worker` takes no more jobs. hung: in words, what hangs in it; known until the next worker begins, or
        another one ends in order."""
        with self._db.out_of_turn() as conn:
            before = _W.hung.is_not(None) & (_W.alive_until < t.clock(conn))
            conn.execute(delete(t.workers).where((_W.worker == worker) | before))
            if hung is not None:
                left = {"worker": worker, "began_at": utc_now(), "alive_until": t.clock(conn) - 1.0, "hung": hung}
                conn.execute(insert(t.workers).values(left))

    def workers(self) -> builtins.list[str]:
        """The workers that live, sorted."""
        with self._db.connection() as conn:
            return [*conn.scalars(select(_W.worker).where(_W.alive_until >= t.clock(conn)).order_by(_W.worker))]

    def hung(self) -> str | None:
        """What hung in the last worker, in words; None where it ended in order, or another one has begun."""
        with self._db.connection() as conn:
            left = select(_W.hung).where(_W.hung.is_not(None), _W.alive_until < t.clock(conn))
            return conn.scalar(left.order_by(_W.alive_until.desc()).limit(1))

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
            if not _set(conn, (_J.inspection_id == inspection_id) & (_J.state == "queued"), state="failed",
                        error=json.dumps(error)):  # fmt: skip
                raise InputError(f"inspection {inspection_id} is running; only one that waits can be cancelled")
            return self._recorded(conn, known, by)

    def retry(self, inspection_id: str, by: str) -> Job:
        """Put a failed job back in the queue. Raises UnknownRecordError, InputError if it has not failed."""
        with changing(self._db) as conn:
            known = self.get(inspection_id)
            if known.state != "failed":
                raise InputError(
                    f"inspection {inspection_id} has not failed (it is {known.state}); nothing to try again"
                )
            again = {"state": "queued", "error": None, "deaths": 0, "crashes_alone": 0, "hangs": 0,
                     "failures": 0, "not_before": None, "place": _LAST}  # fmt: skip
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

    def finish(self, inspection_id: str, error: dict[str, Any] | None = None, worker: str | None = None) -> bool:
        """Mark the job as done, or as failed with that error. worker: only if that one still runs it; whether it did."""
        said = json.dumps(error) if error else None
        which = _J.inspection_id == inspection_id if worker is None else _held(inspection_id, worker)
        with self._db.out_of_turn() as conn:
            return bool(_set(conn, which, state="failed" if error else "done", error=said, failures=0, worker=None,
                             lease_until=None, not_before=None))  # fmt: skip

    def give_up(self, job: Job, error: dict[str, Any]) -> bool:
        """Mark a waiting job as failed; whether it did. Not one that was begun, or crashed again, since `job` was read."""
        waits = (_J.inspection_id == job.inspection_id) & (_J.state == "queued") & (_J.deaths == job.crashes)
        with self._db.out_of_turn() as conn:
            return bool(_set(conn, waits, state="failed", error=json.dumps(error), failures=0, not_before=None))

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
        """Jobs in those states, in the order in which they run. limit: -1 for all."""
        found = select(t.jobs).where(_J.state.in_(states)).order_by(*_IN_ORDER)
        with self._db.connection() as conn:
            return [_job(row) for row in conn.execute(found.limit(None if limit < 0 else limit)).all()]

    def open_ids(self) -> set[str]:
        """The ids of all that are queued or running."""
        with self._db.connection() as conn:
            return set(conn.scalars(select(_J.inspection_id).where(_IS_OPEN)))

    def states(self, inspection_ids: Sequence[str]) -> dict[str, tuple[JobState, int, dict[str, Any] | None]]:
        """Id -> (state, attempts, error) of those that are known."""
        found: dict[str, tuple[JobState, int, dict[str, Any] | None]] = {}
        with self._db.connection() as conn:
            for ids in _pages(inspection_ids):
                asked = select(_J.inspection_id, _J.state, _J.attempts, _J.error).where(_J.inspection_id.in_(ids))
                for inspection_id, state, attempts, error in conn.execute(asked):
                    found[inspection_id] = state, attempts, json.loads(error) if error else None
        return found

    def count_open(self, of_batches: bool = True) -> int:
        """How many jobs are queued or running."""
        with self._db.connection() as conn:
            return _count_open(conn, *([] if of_batches else [_J.batch.is_(None)]))

    def crashed(self) -> builtins.list[Job]:
        """Queued jobs during which a process crashed, in order."""
        with self._db.connection() as conn:
            found = select(t.jobs).where(_J.state == "queued", _J.deaths > 0).order_by(*_IN_ORDER)
            return [_job(row) for row in conn.execute(found).all()]

    def oldest_open(self) -> str | None:
        """When the oldest queued or running job was accepted (ISO 8601, UTC); None without one."""
        with self._db.connection() as conn:
            return conn.scalar(select(func.min(_J.created_at)).where(_IS_OPEN))

    def ahead_of(self, job: Job) -> int:
        """How many open jobs come before it."""
        before = or_(
            _J.priority < job.priority, (_J.priority == job.priority) & (_J.place < job.place),
            (_J.priority == job.priority) & (_J.place == job.place) & (_J.seq < job.seq),
        )  # fmt: skip
        with self._db.connection() as conn:
            return _count_open(conn, or_(_J.state == "running", before), _J.seq != job.seq)

    def _has_due(self) -> bool:
        with self._db.connection() as conn:
            return conn.scalar(select(_J.seq).where(_next(t.clock(conn))).limit(1)) is not None


_W = t.workers.c
_IN_ORDER = (_J.priority, _J.place, _J.seq)
_OTHER = t.jobs.alias()
_LAST = select(func.coalesce(func.max(_OTHER.c.seq), 0) + 1).scalar_subquery()  # place of one behind all that wait


def _next(now: ColumnElement[float]) -> ColumnElement[bool]:
    """Jobs that may be taken: due ones without an older open job of their line, or one that runs."""
    before = or_(_OTHER.c.state == "running", (_OTHER.c.state == "queued") & (_OTHER.c.seq < _J.seq))
    due = or_(_J.not_before.is_(None), _J.not_before <= now)
    return (_J.state == "queued") & due & or_(_J.line.is_(None), ~exists().where(_OTHER.c.line == _J.line, before))


def _lost(now: ColumnElement[float]) -> ColumnElement[bool]:
    """Jobs whose worker has not said for a lease that it lives; of earlier versions, which knew none."""
    return (_J.state == "running") & or_(_J.lease_until.is_(None), _J.lease_until < now)


def _held(inspection_id: str, worker: str) -> ColumnElement[bool]:
    return (_J.inspection_id == inspection_id) & _runs(worker)


def _runs(worker: str) -> ColumnElement[bool]:
    return (_J.state == "running") & (_J.worker == worker)


def _pages(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def _new(conn: Connection, inspection_id: str, request: dict[str, Any]) -> dict[str, Any]:
    now = utc_now()
    place = conn.scalar(select(_LAST))  # within the turn of the one writer
    return {"inspection_id": inspection_id, "request": json.dumps(request), "state": "queued", "created_at": now,
            "updated_at": now, "place": place}  # fmt: skip


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
