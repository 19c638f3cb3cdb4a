"""Dispositions: what a person decided about a filed inspection. The first decision stands."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from refdiff.memory.audit_chain import DISPOSITION, append
from refdiff.memory.database import Database
from refdiff.memory.times import utc_now
from refdiff.model.errors import DuplicateError, InputError, UnknownRecordError

Decision = Literal["accept", "override"]


@dataclass(frozen=True)
class Disposition:
    """`accept`: the filed verdict holds; `override`: it does not. `created_at`: ISO 8601, UTC."""

    inspection_id: str
    decision: Decision
    by: str
    reason: str
    created_at: str


class DispositionStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, inspection_id: str, decision: Decision, by: str, reason: str) -> Disposition:
        """Record a decision and its audit record, durably on return.

        Raises UnknownRecordError (inspection not filed), DuplicateError (decided already: says by whom and
        when), InputError (another decision, nobody named, no reason).
        """
        if decision not in get_args(Decision):
            raise InputError(f"decision {decision!r}: decide accept or override")
        by, reason = by.strip(), reason.strip()
        if not by or not reason:
            missing = "who decides" if not by else "a reason"
            raise InputError(f"disposition of inspection {inspection_id}: {missing} is missing")
        with self._db.transaction() as conn:
            if not conn.execute("SELECT 1 FROM inspections WHERE inspection_id = ?", (inspection_id,)).fetchone():
                raise UnknownRecordError(f"no inspection {inspection_id!r}; `refdiff review` lists the open ones")
            earlier = _find(conn, inspection_id)
            if earlier is not None:
                raise DuplicateError(
                    f"inspection {inspection_id} was decided by {earlier.by} at {earlier.created_at} "
                    f"({earlier.decision}: {earlier.reason}); the first decision stands",
                    earlier,
                )
            disposition = Disposition(inspection_id, decision, by, reason, utc_now())
            conn.execute(
                "INSERT INTO dispositions (inspection_id, decision, decided_by, reason, created_at) "
                "VALUES (:inspection_id, :decision, :by, :reason, :created_at)",
                vars(disposition),
            )
            append(conn, DISPOSITION, inspection_id, by, asdict(disposition))
        return disposition

    def get(self, inspection_id: str) -> Disposition | None:
        with self._db.reading() as conn:
            return _find(conn, inspection_id)


def _find(conn: sqlite3.Connection, inspection_id: str) -> Disposition | None:
    row = conn.execute("SELECT * FROM dispositions WHERE inspection_id = ?", (inspection_id,)).fetchone()
    if row is None:
        return None
    return Disposition(row["inspection_id"], row["decision"], row["decided_by"], row["reason"], row["created_at"])
