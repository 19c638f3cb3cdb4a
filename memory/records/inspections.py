"""Inspections: filed exactly once, never rewritten. What a person decides later is a disposition."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, Select, func, insert, not_, select

from refdiff.memory.audit_chain import DIFFERENCE, REMOVED, append_filed, check_not_removed
from refdiff.memory.changes import changing
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.kinds import VERDICTS, Verdict
from refdiff.memory.records.blind_checks import draw
from refdiff.memory.rows.captures import normalise_part_id
from refdiff.memory.rows.products import check_product_name
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import InputError, RefDiffError, UnknownRecordError

MAX_PAGE = 1000
_I, _D = t.inspections.c, t.dispositions.c
_REMOVED_AT = (
    select(func.min(t.audit.c.at))
    .where(t.audit.c.inspection_id == _I.inspection_id, t.audit.c.kind == REMOVED)
    .correlate(t.inspections)
    .scalar_subquery()
)
_OPEN = (_I.verdict == "REVIEW") & _D.inspection_id.is_(None) & _REMOVED_AT.is_(None)


@dataclass(frozen=True)
class InspectionRecord:
    """A filed inspection."""

    inspection_id: str
    part_id: str
    product: str
    verdict: Verdict
    created_at: str  # ISO 8601, UTC
    report: dict[str, Any]  # the filed report as JSON data; {} if it was removed
    removed_at: str | None = None  # ISO 8601, UTC: when `refdiff prune` removed report and photo; None if it did not


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
    removed_at: str | None = None  # as in `InspectionRecord`


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
        new = {
            "inspection_id": inspection_id, "part_id": part_id, "product": product, "verdict": verdict,
            "created_at": to_utc(created_at), "report": text, "photo": report.get("query_sha256"),
        }  # fmt: skip
        with changing(self._db) as conn:
            if not t.insert_new(conn, t.inspections, new):
                return False
            more = dict(facts or {})
            if difference is not None:
                conn.execute(insert(t.differences).values(inspection_id=inspection_id, picture=difference))
                more[DIFFERENCE] = sha256(difference).hexdigest()
            append_filed(conn, inspection_id, report, **more)
            draw(conn, inspection_id, blind_share)
        return True

    def find(self, inspection_id: str) -> InspectionRecord | None:
        """The inspection of that id with its report; None if it is not filed."""
        with self._db.connection() as conn:
            row = conn.execute(_records().where(_I.inspection_id == inspection_id)).first()
        return None if row is None else _record(row)

    def get(self, inspection_id: str) -> InspectionRecord:
        """The same. Raises UnknownRecordError, RemovedError if its report was removed."""
        found = self.find(inspection_id)
        if found is not None and found.removed_at is not None:
            with self._db.connection() as conn:
                check_not_removed(conn, inspection_id)
        if found is None:
            raise UnknownRecordError(
                f"no inspection {inspection_id!r} is filed; perhaps it still runs. "
                "`refdiff inspections list` shows those that are filed"
            )
        return found

    def difference(self, inspection_id: str) -> bytes | None:
        """What the pictures of an inspection are drawn from; None if it was filed before that was kept."""
        with self._db.connection() as conn:
            row = t.get(conn, t.differences, inspection_id=inspection_id)
        return None if row is None else bytes(row.picture)

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
        page = _records().where(*_conditions(product, verdict, part_id)).order_by(*_NEWEST_FIRST)
        with self._db.connection() as conn:
            return [_record(row) for row in conn.execute(page.limit(limit).offset(offset)).all()]

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
            conditions.append(_I.created_at >= to_utc(since))
        if until is not None:
            conditions.append(_I.created_at < to_utc(until))
        decided = t.inspections.outerjoin(t.dispositions)
        tables = t.inspections if open_review is None else decided
        if open_review is not None:
            conditions.append(_OPEN if open_review else not_(_OPEN))
        # pick the page's rows by number first, so the reports of skipped rows are not read
        page = (
            select(_I.seq).select_from(tables).where(*conditions).order_by(*_NEWEST_FIRST).limit(limit).offset(offset)
        )
        decision = _D.decision, _D.decided_by, _D.created_at.label("decided_at")
        shown = _records(*decision).select_from(decided)
        with self._db.connection() as conn:
            total = conn.scalar(select(func.count()).select_from(tables).where(*conditions))
            rows = conn.execute(shown.where(_I.seq.in_(page.correlate(None))).order_by(*_NEWEST_FIRST)).all()
        return InspectionPage([_summary(row) for row in rows], int(total or 0))

    def open_reviews(self) -> builtins.list[InspectionRecord]:
        """Inspections with verdict REVIEW and no decision yet, the longest waiting first."""
        with self._db.connection() as conn:
            waiting = _records().select_from(t.inspections.outerjoin(t.dispositions)).where(_OPEN)
            return [_record(row) for row in conn.execute(waiting.order_by(_I.created_at, _I.seq)).all()]


_NEWEST_FIRST = (_I.created_at.desc(), _I.seq.desc())


def _records(*more: ColumnElement[Any]) -> Select[Any]:
    return select(t.inspections, _REMOVED_AT.label("removed_at"), *more)


def _check_page(limit: int, offset: int) -> None:
    if not 1 <= limit <= MAX_PAGE or not 0 <= offset < 2**62:
        raise InputError(f"limit {limit}, offset {offset}: limit is 1 to {MAX_PAGE}, offset 0 or more")


def _conditions(product: str | None, verdict: Verdict | None, part_id: str | None) -> list[ColumnElement[bool]]:
    """For what is given."""
    conditions = []
    if product is not None:
        conditions.append(_I.product == check_product_name(product))
    if verdict is not None:
        conditions.append(_I.verdict == _check_verdict(verdict))
    if part_id is not None:
        conditions.append(_I.part_id == normalise_part_id(part_id))
    return conditions


def _check_verdict(verdict: Verdict) -> Verdict:
    if verdict not in VERDICTS:
        raise InputError(f"verdict {verdict!r}: a verdict is one of {', '.join(VERDICTS)}")
    return verdict


def _summary(row: Row[Any]) -> InspectionSummary:
    report = json.loads(row.report)
    return InspectionSummary(
        inspection_id=row.inspection_id,
        part_id=row.part_id,
        product=row.product,
        verdict=row.verdict,
        created_at=row.created_at,
        requested_by=str(report.get("requested_by", "")),
        verdict_reason=str(report.get("verdict_reason", "")),
        image_score=report.get("image_score"),
        p_value=report.get("p_value"),
        findings=len(report.get("findings", ())),
        decision=row.decision,
        decided_by=row.decided_by,
        decided_at=row.decided_at,
        removed_at=row.removed_at,
    )


def _record(row: Row[Any]) -> InspectionRecord:
    return InspectionRecord(**t.fields(row, InspectionRecord) | {"report": json.loads(row.report)})
