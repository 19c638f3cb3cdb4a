"""Blind checks: a random sample of all inspections, judged by a person who does not see the verdict.

Dispositions are a biased sample (people look at what failed), so rates between system and people come from here alone.
A hash of the inspection's id decides whether it is drawn, once, when it is filed: nobody can choose, and a run that is
repeated after a crash draws the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from refdiff.memory.audit_chain import NO_REPORT, append, check_not_removed
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.records.api_keys import person
from refdiff.memory.records.dispositions import Judgement
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DuplicateError, InputError, UnknownRecordError

BLIND = "blind_check"
_B, _I = t.blind_checks.c, t.inspections.c
_DRAWN = t.blind_checks.join(t.inspections)
_WAITS = _B.judged.is_(None) & (_I.report != NO_REPORT)  # of one that was removed there is no photo to judge


@dataclass(frozen=True)
class BlindCheck:
    """An inspection drawn for a blind check, and its answer once there is one."""

    inspection_id: str
    share: float  # 0..1, of all inspections drawn at the time
    judged: Judgement | None = None  # None while it waits for a person
    judged_by: str | None = None
    note: str | None = None
    as_reference: bool = False  # the person agrees that the photo becomes a golden sample
    judged_at: str | None = None  # ISO 8601, UTC


@dataclass(frozen=True)
class Waiting:
    """What a person may know before judging: never the verdict."""

    inspection_id: str
    part_id: str
    product: str
    created_at: str  # ISO 8601, UTC
    sha256: str  # of the photo


@dataclass(frozen=True)
class Answered:
    """One blind answer next to the system's verdict."""

    inspection_id: str
    product: str
    verdict: str  # of the system
    created_at: str  # of the inspection; ISO 8601, UTC
    judged: Judgement  # by the person
    share: float  # 0..1, of all inspections drawn at the time


def is_drawn(inspection_id: str, share: float) -> bool:
    """Whether that id belongs to the random share (0..1). A larger share includes every smaller one."""
    digest = hashlib.sha256(b"refdiff blind check " + inspection_id.encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def draw(conn: Connection, inspection_id: str, share: float) -> None:
    """Draw a filed inspection for a blind check, or not, in the transaction that files it. share: 0..1."""
    if is_drawn(inspection_id, share):
        conn.execute(insert(t.blind_checks).values(inspection_id=inspection_id, share=share))


class BlindCheckStore:
    """The inspections drawn for a blind check, and the answers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, inspection_id: str) -> BlindCheck | None:
        """The blind check of that inspection; None if it was not drawn."""
        with self._db.connection() as conn:
            return _find(conn, inspection_id)

    def waiting(self, product: str | None = None, limit: int = 100) -> list[Waiting]:
        """Blind checks without an answer, the longest waiting first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                select(_I.inspection_id, _I.part_id, _I.product, _I.created_at, func.coalesce(_I.photo, ""))
                .select_from(_DRAWN)
                .where(_WAITS, *_of(product, None))
                .order_by(_I.seq)
                .limit(limit)
            ).all()
        return [Waiting(*row) for row in rows]

    def answer(
        self, inspection_id: str, judged: Judgement, by: str, note: str = "", as_reference: bool = False
    ) -> BlindCheck:
        """Record a person's judgement, durably on return; the first answer stands.

        as_reference: the person agrees that the photo of this good part becomes a golden sample.
        Raises UnknownRecordError (not drawn), DuplicateError (answered), RemovedError (pruned), InputError (no name given,
        a bad part as reference, or the person is not blind: asked for the inspection or decided about its verdict).
        """
        by = by.strip()
        if judged not in ("good", "bad"):
            raise InputError(f"{judged!r}: a part is good or bad")
        if not by:
            raise InputError(f"blind check of inspection {inspection_id}: who judges is missing")
        if as_reference and judged != "good":
            raise InputError(f"inspection {inspection_id}: only a part that you judge good can become a reference")
        with self._db.transaction() as conn:
            known = _find(conn, inspection_id)
            if known is None:
                raise UnknownRecordError(
                    f"inspection {inspection_id!r} was not drawn for a blind check; `refdiff review --blind` lists those"
                )
            if known.judged is not None:
                raise DuplicateError(
                    f"inspection {inspection_id} was judged blind by {known.judged_by} at {known.judged_at} "
                    f"({known.judged}); the first answer stands",
                    known,
                )
            check_not_removed(conn, inspection_id)
            if (seen := _why_not_blind(conn, inspection_id, by)) is not None:
                raise InputError(f"{by} {seen} inspection {inspection_id} and is not blind to it; ask somebody else")
            answer = BlindCheck(inspection_id, known.share, judged, by, note.strip(), as_reference, utc_now())
            conn.execute(update(t.blind_checks).where(_B.inspection_id == inspection_id).values(vars(answer)))
            append(conn, BLIND, inspection_id, by, asdict(answer))
        return answer

    def answered(self, product: str | None = None, since: str | None = None) -> list[Answered]:
        """All blind answers about inspections of that product since that time, oldest first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                select(_I.inspection_id, _I.product, _I.verdict, _I.created_at, _B.judged, _B.share)
                .select_from(_DRAWN)
                .where(_B.judged.is_not(None), *_of(product, since))
                .order_by(_I.created_at, _I.seq)
            ).all()
        return [Answered(*row) for row in rows]

    def count(self, product: str | None = None, since: str | None = None) -> tuple[int, int, int]:
        """(inspections filed, drawn for a blind check, waiting for an answer) of that product since that time."""
        with self._db.connection() as conn:
            filed, drawn, waiting = conn.execute(
                select(func.count(), func.count(_B.inspection_id), func.count(_B.inspection_id).filter(_WAITS))
                .select_from(t.inspections.outerjoin(t.blind_checks))
                .where(*_of(product, since))
            ).one()
        return int(filed), int(drawn), int(waiting)


def _of(product: str | None, since: str | None) -> list[ColumnElement[bool]]:
    """Conditions on inspections: of that product, filed since that time, where given."""
    wanted = [] if product is None else [_I.product == product]
    return wanted if since is None else [*wanted, _I.created_at >= to_utc(since)]


def _why_not_blind(conn: Connection, inspection_id: str, by: str) -> str | None:
    """What that person did who saw the verdict, None if there is nothing."""
    decided = t.dispositions.c.decided_by
    row = conn.execute(
        select(_I.report, decided)
        .select_from(t.inspections.outerjoin(t.dispositions))
        .where(_I.inspection_id == inspection_id)
    ).one()
    named = conn.scalars(select(t.defect_names.c.by).where(t.defect_names.c.inspection_id == inspection_id)).all()
    did: list[tuple[str, Any]] = [
        ("decided about the verdict of", row.decided_by),
        ("asked for", json.loads(row.report).get("requested_by")),
        *(("named a finding of", who) for who in named),
    ]
    return next((what for what, who in did if who is not None and person(str(who)) == person(by)), None)


def _find(conn: Connection, inspection_id: str) -> BlindCheck | None:
    row = t.get(conn, t.blind_checks, inspection_id=inspection_id)
    return None if row is None else BlindCheck(**t.fields(row, BlindCheck))
