"""Inspections: filed exactly once, never rewritten. What a person decides later is a disposition."""

from __future__ import annotations

import builtins
import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from refdiff.memory.audit_chain import append_filed
from refdiff.memory.captures import normalise_part_id
from refdiff.memory.database import Database
from refdiff.memory.products import check_product_name
from refdiff.memory.times import to_utc
from refdiff.model.errors import InputError, RefDiffError, UnknownRecordError

Verdict = Literal["PASS", "FAIL", "REVIEW"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MAX_PAGE = 1000


@dataclass(frozen=True)
class InspectionRecord:
    """`report`: the filed report as JSON data; `created_at`: ISO 8601, UTC."""

    inspection_id: str
    part_id: str
    product: str
    verdict: Verdict
    created_at: str
    report: dict[str, Any]


class InspectionStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def file(
        self,
        inspection_id: str,
        part_id: str,
        product: str,
        verdict: Verdict,
        created_at: datetime | str,
        report: dict[str, Any],
    ) -> bool:
        """File an inspection and its audit record, durably on return. False, and nothing changes, if that id is filed."""
        _check_verdict(verdict)
        if not inspection_id:
            raise RefDiffError("an inspection needs an id before it is filed")
        try:
            text = json.dumps(report, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise RefDiffError(f"report of inspection {inspection_id} is not JSON ({e}); it is not filed") from e
        part_id, product = normalise_part_id(part_id), check_product_name(product)
        with self._db.transaction() as conn:
            cursor = conn.execute(
                "INSERT INTO inspections (inspection_id, part_id, product, verdict, created_at, report) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (inspection_id) DO NOTHING",
                (inspection_id, part_id, product, verdict, to_utc(created_at), text),
            )
            if cursor.rowcount == 1:
                append_filed(conn, inspection_id, report)
            return cursor.rowcount == 1

    def get(self, inspection_id: str) -> InspectionRecord:
        with self._db.reading() as conn:
            row = conn.execute("SELECT * FROM inspections WHERE inspection_id = ?", (inspection_id,)).fetchone()
        if row is None:
            raise UnknownRecordError(f"no inspection {inspection_id!r}; `refdiff inspections list` shows them")
        return _record(row)

    def list(
        self,
        product: str | None = None,
        verdict: Verdict | None = None,
        part_id: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> builtins.list[InspectionRecord]:
        """Filed inspections, newest first, of that product, verdict and part where given.

        limit: 1..1000; offset: how many to skip. Raises InputError outside of that.
        """
        if not 1 <= limit <= MAX_PAGE or offset < 0:
            raise InputError(f"limit {limit}, offset {offset}: limit is 1 to {MAX_PAGE}, offset 0 or more")
        wanted: dict[str, str] = {}
        if product is not None:
            wanted["product"] = check_product_name(product)
        if verdict is not None:
            wanted["verdict"] = _check_verdict(verdict)
        if part_id is not None:
            wanted["part_id"] = normalise_part_id(part_id)
        where = " AND ".join(f"{column} = ?" for column in wanted) or "1"
        with self._db.reading() as conn:
            rows = conn.execute(
                f"SELECT * FROM inspections WHERE {where} ORDER BY created_at DESC, seq DESC LIMIT ? OFFSET ?",
                (*wanted.values(), limit, offset),
            )
            return [_record(row) for row in rows]

    def open_reviews(self) -> builtins.list[InspectionRecord]:
        """Inspections with verdict REVIEW that no person has decided yet, the longest waiting first."""
        with self._db.reading() as conn:
            rows = conn.execute(
                "SELECT * FROM inspections WHERE verdict = 'REVIEW' AND inspection_id NOT IN "
                "(SELECT inspection_id FROM dispositions) ORDER BY created_at, seq"
            )
            return [_record(row) for row in rows]


def _check_verdict(verdict: Verdict) -> Verdict:
    if verdict not in VERDICTS:
        raise InputError(f"verdict {verdict!r}: a verdict is one of {', '.join(VERDICTS)}")
    return verdict


def _record(row: sqlite3.Row) -> InspectionRecord:
    return InspectionRecord(
        inspection_id=row["inspection_id"],
        part_id=row["part_id"],
        product=row["product"],
        verdict=row["verdict"],
        created_at=row["created_at"],
        report=json.loads(row["report"]),
    )
