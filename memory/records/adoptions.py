"""What people taught the system: photos adopted as golden samples with consent, and defects that people confirmed.

A golden sample decides about every later part, so one inspector's word is not enough: a photo waits until an admin or a
second person approves it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Select, func, insert, literal, select, union, union_all, update

from refdiff.memory.audit_chain import NO_REPORT, append, check_not_removed
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.records.api_keys import person
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DuplicateError, InputError, UnavailableError, UnknownRecordError

LEARNED, APPROVAL = "learned", "approval"  # kinds of audit records; their tables are `learned` and `approvals`
# a photo whose enrolment was given up, and what a person said then: only the audit trail keeps both
GIVEN_UP, DECIDED_AGAIN = "enrolment_given_up", "decided_again"
MAX_HANGS = 2  # of the enrolment of an approved photo; then it is given up, and waits for people again

_I, _D, _B = t.inspections.c, t.dispositions.c, t.blind_checks.c
_L, _A = t.learned.c, t.approvals.c
_GIVEN_UP = _A.approved & (_A.hangs >= MAX_HANGS) & _A.inspection_id.not_in(select(_L.inspection_id))

CONSENTS = union_all(
    select(_D.inspection_id, _D.decided_by.label("by"), _D.reason, _D.created_at.label("at"),
           literal("disposition").label("source")).where(_D.as_reference),
    select(_B.inspection_id, _B.judged_by, func.coalesce(_B.note, ""), _B.judged_at,
           literal("blind_check")).where(_B.as_reference),
).subquery("consents")  # fmt: skip
_JUDGED = union_all(
    select(_D.inspection_id, _D.judged).where(_D.judged.is_not(None)),
    select(_B.inspection_id, _B.judged).where(_B.judged.is_not(None)),
).subquery("judged")


def _found_good(product: str) -> Select[tuple[str]]:
    """Photos of a product that a person found good."""
    of = t.inspections.alias("good")
    found = of.join(_JUDGED, _JUDGED.c.inspection_id == of.c.inspection_id)
    return (
        select(of.c.photo)
        .select_from(found)
        .where(of.c.product == product, _JUDGED.c.judged == "good", of.c.photo.is_not(None))
    )


@dataclass(frozen=True)
class Adoption:
    """The outcome of an adoption request: a person agreed that the photo becomes a golden sample."""

    inspection_id: str
    golden_id: str | None  # None if the photo was refused
    outcome: str  # in words
    created_at: str  # ISO 8601, UTC


@dataclass(frozen=True)
class WaitingReference:
    """A photo that one person proposed as a golden sample and nobody has approved yet."""

    inspection_id: str
    part_id: str
    product: str
    by: str
    reason: str
    at: str  # ISO 8601, UTC
    source: Literal["disposition", "blind_check"]
    hung: bool = False  # it was approved, but its enrolment hung twice: once that is mended, it can be approved again


@dataclass(frozen=True)
class Abandoned:
    """An approved photo whose enrolment hung, and which is no golden sample according to the records."""

    inspection_id: str
    product: str
    photo: str  # sha256


@dataclass(frozen=True)
class Approval:
    """The word of an admin or a second person about a photo that was proposed as a golden sample."""

    inspection_id: str
    approved: bool
    by: str
    note: str
    created_at: str  # ISO 8601, UTC


@dataclass(frozen=True)
class Confirmed:
    """A defect of a part that a person confirmed."""

    type: str  # defect type
    region: str  # place in words, e.g. "upper left"
    part_id: str


@dataclass(frozen=True)
class ConfirmedPart:
    """A filed inspection whose part a person found defective, and nobody good."""

    inspection_id: str
    part_id: str
    photo: str  # sha256
    boxes: list[tuple[int, int, int, int]]  # of its findings beyond the limits: x0, y0, x1, y1, px of the photo


class AdoptionStore:
    """Outcomes of adoption requests, each recorded once."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, inspection_id: str) -> Adoption | None:
        """The outcome for that inspection; None while there is none."""
        with self._db.connection() as conn:
            row = t.get(conn, t.learned, inspection_id=inspection_id)
        return Adoption(**t.fields(row, Adoption)) if row else None

    def add(self, inspection_id: str, golden_id: str | None, outcome: str) -> Adoption:
        """Record the outcome of an adoption request; later calls return the first outcome.

        golden_id: None if the photo was refused. outcome: in words. Raises UnavailableError if it was given up meanwhile.
        """
        with self._db.transaction() as conn:
            if not _is_given_up(conn, inspection_id):
                return _learned(conn, inspection_id, golden_id, outcome)
            _update(conn, inspection_id, cleared=False)  # it may have been enrolled only now
        raise UnavailableError(
            f"inspection {inspection_id}: the enrolment of its photo hung and was given up; once that is mended, "
            f"`refdiff review {inspection_id} --approve-reference` tries it again"
        )

    def hang(self, inspection_id: str, why: str) -> bool:
        """Count that the enrolment of an approved photo hung. The second time it is given up, and waits for people again.

        why: for the audit trail. Returns whether it is given up.
        """
        with self._db.transaction() as conn:
            _update(conn, inspection_id, hangs=_A.hangs + 1, cleared=False)
            given_up = _is_given_up(conn, inspection_id)
            hangs = conn.scalar(select(_A.hangs).where(_A.inspection_id == inspection_id))
            if given_up and hangs == MAX_HANGS:
                append(conn, GIVEN_UP, inspection_id, "refdiff", {"inspection_id": inspection_id, "why": why})
        return given_up

    def abandoned(self, inspection_id: str | None = None) -> list[Abandoned]:
        """Photos whose enrolment hung and was given up, or that were refused after it hung, of all inspections, or of one:
        an enrolment that hangs may have left a golden sample."""
        found = (
            select(_I.inspection_id, _I.product, _I.photo)
            .join(t.approvals, _A.inspection_id == _I.inspection_id)
            .join(t.learned, _L.inspection_id == _I.inspection_id, isouter=True)
            .where(
                _I.photo.is_not(None),
                ~_A.cleared,
                _GIVEN_UP | ((_A.hangs > 0) & _L.inspection_id.is_not(None) & _L.golden_id.is_(None)),
            )
        )
        if inspection_id is not None:
            found = found.where(_I.inspection_id == inspection_id)
        with self._db.connection() as conn:
            rows = conn.execute(found).all()
        return [Abandoned(*r) for r in rows]

    def clear(self, inspection_id: str) -> None:
        """Note that its enrolment, which hung, has left no golden sample in use. Nothing of it may run."""
        with self._db.transaction() as conn:
            _update(conn, inspection_id, cleared=True)

    def claimed(self, golden_id: str) -> bool:
        """Whether that golden is the recorded outcome of an adoption request."""
        with self._db.connection() as conn:
            return t.get(conn, t.learned, golden_id=golden_id) is not None

    def consented(self) -> list[str]:
        """Ids of inspections whose photo is approved as a reference but has no outcome yet, oldest first; those whose
        enrolment hung once come last, those of which it was given up are left out."""
        with self._db.connection() as conn:
            c = CONSENTS.c
            found = conn.scalars(
                select(c.inspection_id)
                .join(t.approvals, _A.inspection_id == c.inspection_id)
                .where(_A.approved, _A.hangs < MAX_HANGS, c.inspection_id.not_in(select(_L.inspection_id)))
                .order_by(_A.hangs, c.at)
            ).all()
        return list(dict.fromkeys(found))

    def waiting(self, inspection_id: str | None = None) -> list[WaitingReference]:
        """Photos that wait for an admin or a second person, the longest waiting first; of all inspections, or of one. Also
        those that were approved, but whose enrolment was given up."""
        with self._db.connection() as conn:
            c = CONSENTS.c
            proposed = (
                select(
                    c.inspection_id,
                    _I.part_id,
                    _I.product,
                    c.by,
                    c.reason,
                    c.at,
                    c.source,
                    _A.inspection_id.is_not(None).label("hung"),
                )
                .join(t.inspections, _I.inspection_id == c.inspection_id)
                .join(t.approvals, _A.inspection_id == c.inspection_id, isouter=True)
                .where(
                    c.inspection_id.not_in(select(_L.inspection_id)),
                    _A.inspection_id.is_(None) | _GIVEN_UP,
                    _I.report != NO_REPORT,
                )
            )
            if inspection_id is not None:
                proposed = proposed.where(c.inspection_id == inspection_id)
            rows = conn.execute(proposed.order_by(c.at)).all()
        # of two that propose the same photo, the first counts
        return list({r.inspection_id: WaitingReference(*r) for r in reversed(rows)}.values())[::-1]

    def approval(self, inspection_id: str) -> Approval | None:
        """The first word about the photo of that inspection; None while it waits, or was never proposed."""
        with self._db.connection() as conn:
            row = t.get(conn, t.approvals, inspection_id=inspection_id)
        return Approval(**t.fields(row, Approval)) if row else None

    def decide(self, inspection_id: str, approved: bool, by: str, note: str = "", *, admin: bool) -> Approval:
        """Record an admin's or a second person's word about a proposed photo; it stands. If its enrolment was given up, the
        photo can be approved again, which tries that again, or refused.

        Raises UnknownRecordError (nothing proposed), DuplicateError (decided already), RemovedError (pruned), InputError
        (no name, or the person who proposed it, who is no admin).
        """
        by = by.strip()
        if not by:
            raise InputError(f"reference of inspection {inspection_id}: who decides is missing")
        with self._db.transaction() as conn:
            c = CONSENTS.c
            proposed = conn.scalars(select(c.by).where(c.inspection_id == inspection_id)).all()
            if not proposed:
                raise UnknownRecordError(
                    f"inspection {inspection_id}: nobody has proposed its photo as a reference; `refdiff review` lists "
                    "those that wait"
                )
            earlier = conn.execute(
                union_all(
                    select(_A.by, _A.created_at).where(_A.inspection_id == inspection_id),
                    select(literal("refdiff"), _L.created_at).where(_L.inspection_id == inspection_id),
                )
            ).first()
            again = _is_given_up(conn, inspection_id)
            if earlier is not None and not again:
                raise DuplicateError(
                    f"inspection {inspection_id}: {earlier[0]} decided about its photo as a reference at {earlier[1]}"
                )
            check_not_removed(conn, inspection_id)
            if approved and not admin and all(person(name) == person(by) for name in proposed):
                raise InputError(
                    f"inspection {inspection_id}: {by} proposed its photo as a reference; an admin or somebody else "
                    "has to approve it"
                )
            made = Approval(inspection_id, approved, by, note.strip(), utc_now())
            if again:
                append(conn, DECIDED_AGAIN, inspection_id, by, asdict(made))
                if approved:
                    _update(conn, inspection_id, hangs=0, cleared=False)
            else:
                conn.execute(insert(t.approvals), vars(made))
                append(conn, APPROVAL, inspection_id, by, asdict(made))
            if not approved:
                _learned(conn, inspection_id, None, f"refused by {by}" + (f": {made.note}" if made.note else ""))
        return made

    def confirmed(self, product: str, days: int = 30, *, except_part: str = "") -> set[Confirmed]:
        """Defects that people confirmed on parts of the product in the last `days` days.

        Findings within limits are not counted. except_part: a part to leave out.
        """
        since = to_utc(datetime.now(UTC) - timedelta(days=days))
        with self._db.connection() as conn:
            bad = union(
                select(_D.inspection_id).where(_D.judged == "bad", _D.created_at >= since),
                select(_B.inspection_id).where(_B.judged == "bad", _B.judged_at >= since),
            )
            rows = conn.execute(
                select(_I.part_id, _I.report).where(
                    _I.product == product, _I.part_id != except_part, _I.inspection_id.in_(bad)
                )
            ).all()
        return {
            Confirmed(str(f.get("type")), str((f.get("location") or {}).get("region") or ""), row.part_id)
            for row in rows
            for f in _beyond_limits(row.report)
        }

    def confirmed_parts(self, product: str, most: int) -> list[ConfirmedPart]:
        """Inspections with findings whose part people found defective, newest first, of the newest `most` found so.

        Not those of a photo that a person found good, in the same inspection or another.
        """
        with self._db.connection() as conn:
            bad = select(_JUDGED.c.inspection_id).where(_JUDGED.c.judged == "bad")
            rows = conn.execute(
                select(_I.inspection_id, _I.part_id, _I.photo, _I.report)
                .where(_I.product == product, _I.inspection_id.in_(bad), _I.photo.not_in(_found_good(product)))
                .order_by(_I.created_at.desc(), _I.seq.desc())
                .limit(most)
            ).all()
        found = []
        for row in rows:
            at = [f["location"] for f in _beyond_limits(row.report)]
            boxes = [(p["x0"], p["y0"], p["x1"], p["y1"]) for p in at]
            if boxes:
                found.append(ConfirmedPart(row.inspection_id, row.part_id, row.photo, boxes))
        return found

    def found_good(self, product: str, photos: Sequence[str]) -> set[str]:
        """Those of some photos (sha256) of a product that a person found good, in any inspection."""
        with self._db.connection() as conn:
            return {*conn.scalars(_found_good(product))} & {*photos}


def _beyond_limits(report: str) -> list[dict[str, Any]]:
    """The findings of a report that are not within the limits of the specification."""
    return [f for f in json.loads(report).get("findings", []) if not f.get("within_limits")]


def _update(conn: Connection, inspection_id: str, **to: Any) -> None:
    conn.execute(update(t.approvals).where(_A.inspection_id == inspection_id).values(**to))


def _is_given_up(conn: Connection, inspection_id: str) -> bool:
    return conn.scalar(select(_A.inspection_id).where(_A.inspection_id == inspection_id, _GIVEN_UP)) is not None


def _learned(conn: Connection, inspection_id: str, golden_id: str | None, outcome: str) -> Adoption:
    row = t.get(conn, t.learned, inspection_id=inspection_id)
    if row is not None:
        return Adoption(**t.fields(row, Adoption))
    made = Adoption(inspection_id, golden_id, outcome, utc_now())
    conn.execute(insert(t.learned), vars(made))
    append(conn, LEARNED, inspection_id, "refdiff", asdict(made))
    return made
