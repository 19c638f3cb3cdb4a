"""Batches: many parts that were put on the queue together. A batch is its jobs, and what was left out and why."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from refdiff.memory.changes import JOB, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.journals.jobs import CANCELLED
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import InputError, UnknownRecordError

_B, _J, _I = t.batches.c, t.jobs.c, t.inspections.c


@dataclass(frozen=True)
class LeftOut:
    """A part of a batch that was not accepted."""

    name: str  # as the batch calls it: a file, or a line of one
    reason: str


@dataclass(frozen=True)
class Batch:
    """A batch and how far it is."""

    batch_id: str
    source: str  # the file or folder that it was read from, or who sent it
    by: str
    created_at: str  # ISO 8601, UTC
    complete: bool  # whether all of its parts are on the queue; False also where that was interrupted
    accepted: int
    waiting: int
    running: int
    done: int
    failed: int  # for good, the cancelled ones aside
    cancelled: int
    verdicts: dict[str, int]  # of those that are filed
    left_out_count: int = 0
    left_out: list[LeftOut] = field(default_factory=list)  # none in lists of batches
    stopped_at: str | None = None  # ISO 8601, UTC
    stopped_by: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing of it waits or runs, nor will any more."""
        return not (self.waiting or self.running) and (self.complete or self.stopped_at is not None)


class BatchStore:
    """The batches; safe to share between threads and processes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(
        self,
        source: str,
        by: str,
        origin: str | None = None,
        digest: str | None = None,
        lasts: timedelta | None = None,
    ) -> str:
        """Open a batch, whose parts follow as jobs, or find that of the same origin: its id, e.g.
        "batch-20260131-141500-5f3a9c".

        origin: the caller's own key, by which a repeated request finds the batch again. digest: of what the caller sent;
        another one for the same origin raises InputError. lasts: how long the key is remembered; default: for good.
        """
        batch_id = f"batch-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        values = {"batch_id": batch_id, "source": source, "by": by, "created_at": utc_now()}
        with self._db.transaction() as conn:
            known = None if origin is None else t.get(conn, t.batches, origin=origin)
            if known is not None and lasts is not None and _age(known) > lasts:
                conn.execute(update(t.batches).where(_B.batch_id == known.batch_id).values(origin=None))
                known = None
            if known is None:
                conn.execute(insert(t.batches).values(**values, origin=origin, digest=digest))
                return batch_id
        if known.digest != digest:
            raise InputError("Idempotency-Key: was sent with other parts; take a new one for each batch")
        return str(known.batch_id)

    def is_stopped(self, batch_id: str) -> bool:
        """Raises UnknownRecordError."""
        with self._db.connection() as conn:
            return self._row(conn, batch_id).stopped_at is not None

    def complete(self, batch_id: str, accepted: int, left_out: list[LeftOut]) -> None:
        """Say that all of its parts are on the queue, but for those left out."""
        said = json.dumps([vars(one) for one in left_out])
        with self._db.transaction() as conn:
            conn.execute(update(t.batches).where(_B.batch_id == batch_id).values(total=accepted, left_out=said))

    def stop(self, batch_id: str, by: str) -> Batch:
        """Cancel what waits; what runs is filed. A second call changes nothing. Raises UnknownRecordError."""
        error = {
            "type": CANCELLED,
            "message": f"batch {batch_id} was stopped by {by}",
            "exit_code": InputError.exit_code,
        }
        with changing(self._db) as conn:
            known = self._row(conn, batch_id)
            waiting = (_J.batch == batch_id) & (_J.state == "queued")
            gone = conn.execute(
                update(t.jobs).where(waiting).values(state="failed", error=json.dumps(error), updated_at=utc_now())
            ).rowcount
            if known.stopped_at is None:
                conn.execute(
                    update(t.batches).where(_B.batch_id == batch_id).values(stopped_at=utc_now(), stopped_by=by)
                )
                record_change(conn, JOB, batch_id, by, {"stopped": False}, {"stopped": True, "cancelled": gone})
        return self.get(batch_id)

    def get(self, batch_id: str) -> Batch:
        """Raises UnknownRecordError."""
        with self._db.connection() as conn:
            row = self._row(conn, batch_id)
            left_out = [LeftOut(**one) for one in json.loads(row.left_out)]
            return _batch(conn, row, len(left_out), left_out)

    def list(self, limit: int = 50) -> list[Batch]:
        """The newest, first; what was left out is counted, and not in them."""
        columns = [column for column in t.batches.c if column is not _B.left_out]
        with self._db.connection() as conn:
            found: Any = select(*columns, t.array_length(conn, _B.left_out).label("count"))
            rows = conn.execute(found.order_by(_B.seq.desc()).limit(limit)).all()
            return [_batch(conn, row, row._mapping["count"], []) for row in rows]

    def failures(self, batch_id: str, limit: int | None = None) -> dict[str, str]:
        """Inspection id -> part and reason of those that failed for good, the cancelled ones aside; the first `limit`."""
        failed = (_J.batch == batch_id) & (_J.state == "failed") & ~_WAS_CANCELLED
        wanted = select(_J.inspection_id, _J.request, _J.error).where(failed).order_by(_J.seq).limit(limit)
        with self._db.connection() as conn:
            return {
                inspection_id: f"part {json.loads(request).get('part_id')}: {json.loads(error or '{}').get('message', '')}"
                for inspection_id, request, error in conn.execute(wanted)
            }

    def _row(self, conn: Any, batch_id: str) -> Row[Any]:
        row = t.get(conn, t.batches, batch_id=batch_id)
        if row is None:
            raise UnknownRecordError(f"no batch {batch_id!r}; see `refdiff batch list`")
        return row


def _age(row: Row[Any]) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(row.created_at)


_WAS_CANCELLED = func.coalesce(_J.error, "").like(f'%"type": "{CANCELLED}"%')


def _batch(conn: Any, row: Row[Any], left_out_count: int, left_out: list[LeftOut]) -> Batch:
    mine = _J.batch == row.batch_id
    states = dict(map(tuple, conn.execute(select(_J.state, func.count()).where(mine).group_by(_J.state))))
    cancelled = conn.scalar(select(func.count()).where(mine, _J.state == "failed", _WAS_CANCELLED))
    filed = select(_I.verdict, func.count()).join(t.jobs, _J.inspection_id == _I.inspection_id).where(mine)
    return Batch(
        row.batch_id,
        row.source,
        row.by,
        row.created_at,
        row.total is not None,
        sum(states.values()),
        states.get("queued", 0),
        states.get("running", 0),
        states.get("done", 0),
        states.get("failed", 0) - cancelled,
        cancelled,
        dict(map(tuple, conn.execute(filed.group_by(_I.verdict)))),
        left_out_count,
        left_out,
        row.stopped_at,
        row.stopped_by,
    )
