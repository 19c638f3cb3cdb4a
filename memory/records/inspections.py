"""Inspections: filed exactly once, never rewritten. What a person decides later is a disposition."""

from __future__ import annotations

import builtins
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, get_args

from refdiff.memory.audit_chain import DIFFERENCE, append_filed
from refdiff.memory.changes import changing
from refdiff.memory.database import Database
from refdiff.memory.records.blind_checks import draw
from refdiff.memory.records.captures import normalise_part_id
from refdiff.memory.records.products import check_product_name
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import InputError, RefDiffError, UnknownRecordError

Verdict = Literal["PASS", "FAIL", "REVIEW"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MAX_PAGE = 1000


@dataclass(frozen=True)
class InspectionRecord:
    """A filed inspection."""

    inspection_id: str
    part_id: str
    product: str
    verdict: Verdict
    created_at: str  # ISO 8601, UTC
    report: dict[str, Any]  # the filed report as JSON data


@dataclass(frozen=True)
class InspectionSummary:
    """One line of a list: what was filed, and what a person decided."""

    inspection_id: str
    part_id: str
    product: str
    verdict: Verdict
    created_at: str  # ISO 8601, UTC
    requested_by: str
    verdict_reason: str
    image_score: float | None
    p_value: float | None  # 0..1; None if it could not be computed
    findings: int  # how many
    decision: Literal["accept", "override"] | None  # None while nobody has decided
    decided_by: str | None
    decided_at: str | None  # ISO 8601, UTC


@dataclass(frozen=True)
class InspectionPage:
    """One page of a list."""

    items: list[InspectionSummary]  # newest first
    total: int  # how many there are on all pages


class InspectionStore:
    """The filed inspections."""

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
        blind_share: float = 0.0,
        facts: Mapping[str, Any] | None = None,
        difference: bytes | None = None,
    ) -> bool:
        """File an inspection and its audit record, durably on return. False, and nothing changes, if that id is filed.

        blind_share: 0..1, share of all inspections to draw for a blind check. facts: further ones of the audit record.
        difference: what its pictures are drawn from, beside its photos; the audit record has its sha256.
        """
        _check_verdict(verdict)
        if not inspection_id:
            raise RefDiffError("an inspection needs an id before it is filed")
        try:
            text = json.dumps(report, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise RefDiffError(f"report of inspection {inspection_id} is not JSON ({e}); it is not filed") from e
        part_id, product = normalise_part_id(part_id), check_product_name(product)
        with changing(self._db) as conn:
            cursor = conn.execute(
                "INSERT INTO inspections (inspection_id, part_id, product, verdict, created_at, report) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (inspection_id) DO NOTHING",
                (inspection_id, part_id, product, verdict, to_utc(created_at), text),
            )
            if cursor.rowcount == 1:
                more = dict(facts or {})
                if difference is not None:
                    conn.execute("INSERT INTO differences VALUES (?, ?)", (inspection_id, difference))
                    more[DIFFERENCE] = sha256(difference).hexdigest()
                append_filed(conn, inspection_id, report, **more)
                draw(conn, inspection_id, blind_share)
            return cursor.rowcount == 1

    def find(self, inspection_id: str) -> InspectionRecord | None:
        """The inspection of that id with its report; None if it is not filed."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM inspections WHERE inspection_id = ?", (inspection_id,)).fetchone()
        return None if row is None else _record(row)

    def get(self, inspection_id: str) -> InspectionRecord:
        """The same. Raises UnknownRecordError."""
        found = self.find(inspection_id)
        if found is None:
            raise UnknownRecordError(
                f"no inspection {inspection_id!r} is filed; perhaps it still runs. "
                "`refdiff inspections list` shows those that are filed"
            )
        return found

    def difference(self, inspection_id: str) -> bytes | None:
        """What the pictures of an inspection are drawn from; None if it was filed before that was kept."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT picture FROM differences WHERE inspection_id = ?", (inspection_id,)).fetchone()
        return None if row is None else bytes(row["picture"])

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
        _check_page(limit, offset)
        conditions = _conditions(product, verdict, part_id)
        where = " AND ".join(conditions) or "1"
        with self._db.connection() as conn:
            rows = conn.execute(
                f"SELECT * FROM inspections i WHERE {where} ORDER BY created_at DESC, seq DESC LIMIT ? OFFSET ?",
                (*conditions.values(), limit, offset),
            )
            return [_record(row) for row in rows]

    def search(
        self,
        *,
        product: str | None = None,
        verdict: Verdict | None = None,
        part_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
        open_review: bool | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> InspectionPage:
        """A page of filed inspections without their reports, newest first.

        since, until: ISO 8601; from (inclusive) and before. open_review: only those that wait for a person (True) or do
        not (False). limit: 1..1000. Raises InputError.
        """
        _check_page(limit, offset)
        conditions = _conditions(product, verdict, part_id)
        if since is not None:
            conditions["i.created_at >= ?"] = to_utc(since)
        if until is not None:
            conditions["i.created_at < ?"] = to_utc(until)
        where = " AND ".join(conditions) or "1"
        if open_review is not None:
            waits = "(i.verdict = 'REVIEW' AND d.inspection_id IS NULL)"
            where += f" AND {waits}" if open_review else f" AND NOT {waits}"
        decided = "LEFT JOIN dispositions d USING (inspection_id)"
        tables = "inspections i" if open_review is None else f"inspections i {decided}"
        order = "ORDER BY i.created_at DESC, i.seq DESC"
        # pick the page's rows by number first, so the reports of skipped rows are not read
        page = f"SELECT i.seq FROM {tables} WHERE {where} {order} LIMIT ? OFFSET ?"
        with self._db.connection() as conn:
            total = conn.execute(f"SELECT COUNT(*) FROM {tables} WHERE {where}", tuple(conditions.values())).fetchone()
            rows = conn.execute(
                "SELECT i.*, d.decision, d.decided_by, d.created_at AS decided_at "
                f"FROM inspections i {decided} WHERE i.seq IN ({page}) {order}",
                (*conditions.values(), limit, offset),
            )
            return InspectionPage([_summary(row) for row in rows], int(total[0]))

    def open_reviews(self) -> builtins.list[InspectionRecord]:
        """Inspections with verdict REVIEW and no decision yet, the longest waiting first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT * FROM inspections WHERE verdict = 'REVIEW' AND inspection_id NOT IN "
                "(SELECT inspection_id FROM dispositions) ORDER BY created_at, seq"
            )
            return [_record(row) for row in rows]


def _check_page(limit: int, offset: int) -> None:
    if not 1 <= limit <= MAX_PAGE or not 0 <= offset < 2**62:
        raise InputError(f"limit {limit}, offset {offset}: limit is 1 to {MAX_PAGE}, offset 0 or more")


def _conditions(product: str | None, verdict: Verdict | None, part_id: str | None) -> dict[str, str]:
    """SQL conditions on inspections `i` -> their values, for what is given."""
    conditions = {}
    if product is not None:
        conditions["i.product = ?"] = check_product_name(product)
    if verdict is not None:
        conditions["i.verdict = ?"] = _check_verdict(verdict)
    if part_id is not None:
        conditions["i.part_id = ?"] = normalise_part_id(part_id)
    return conditions


def _check_verdict(verdict: Verdict) -> Verdict:
    if verdict not in VERDICTS:
        raise InputError(f"verdict {verdict!r}: a verdict is one of {', '.join(VERDICTS)}")
    return verdict


def _summary(row: sqlite3.Row) -> InspectionSummary:
    report = json.loads(row["report"])
    return InspectionSummary(
        inspection_id=row["inspection_id"],
        part_id=row["part_id"],
        product=row["product"],
        verdict=row["verdict"],
        created_at=row["created_at"],
        requested_by=str(report.get("requested_by", "")),
        verdict_reason=str(report.get("verdict_reason", "")),
        image_score=report.get("image_score"),
        p_value=report.get("p_value"),
        findings=len(report.get("findings", ())),
        decision=row["decision"],
        decided_by=row["decided_by"],
        decided_at=row["decided_at"],
    )


def _record(row: sqlite3.Row) -> InspectionRecord:
    return InspectionRecord(
        inspection_id=row["inspection_id"],
        part_id=row["part_id"],
        product=row["product"],
        verdict=row["verdict"],
        created_at=row["created_at"],
        report=json.loads(row["report"]),
    )
