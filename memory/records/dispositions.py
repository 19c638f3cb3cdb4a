"""Dispositions: what a person decided about a filed inspection. The first decision stands.

They are a biased sample: people look at what failed or is open. Rates and calibrations come from blind checks.
"""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, func, insert, select

from refdiff.memory.audit_chain import DISPOSITION, append, check_not_removed
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DuplicateError, InputError, UnknownRecordError

Decision = Literal["accept", "override"]
Judgement = Literal["good", "bad"]
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"  # Hangul fillers and the empty Braille cell: letters and symbols without ink


_D, _I = t.dispositions.c, t.inspections.c


@dataclass(frozen=True)
class Disposition:
    """A person's decision about an inspection."""

    inspection_id: str
    decision: Decision  # accept: the filed verdict holds; override: it does not
    by: str
    reason: str
    created_at: str  # ISO 8601, UTC
    judged: Judgement | None = None  # what the part is; None if a REVIEW was decided without saying
    as_reference: bool = False  # the person agrees that the photo becomes a golden sample


class DispositionStore:
    """The decisions about inspections, one each."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self,
        inspection_id: str,
        decision: Decision,
        by: str,
        reason: str,
        judged: Judgement | None = None,
        as_reference: bool = False,
    ) -> Disposition:
        """Record a decision and its audit record, durably on return.

        judged: required only for REVIEW; for PASS and FAIL it follows from the decision. as_reference: only for a good
        part. Raises UnknownRecordError (inspection not filed), DuplicateError (decided already, with the decision),
        InputError (unknown decision, no name, no reason, decision and judgement contradict each other).
        """
        if decision not in get_args(Decision):
            raise InputError(f"decision {decision!r}: decide accept or override")
        by, reason = by.strip(), reason.strip()
        if not _is_legible(by) or not _is_legible(reason):
            missing = "a reason" if _is_legible(by) else "who decides"
            raise InputError(f"disposition of inspection {inspection_id}: {missing} is missing")
        with self._db.transaction() as conn:
            verdict = conn.scalar(select(_I.verdict).where(_I.inspection_id == inspection_id))
            if verdict is None:
                raise UnknownRecordError(f"no inspection {inspection_id!r}; `refdiff review` lists the open ones")
            check_not_removed(conn, inspection_id)
            earlier = _find(conn, inspection_id)
            if earlier is not None:
                raise DuplicateError(
                    f"inspection {inspection_id} was decided by {earlier.by} at {earlier.created_at} "
                    f"({earlier.decision}: {earlier.reason}); the first decision stands",
                    earlier,
                )
            judged = _judged(verdict, decision, judged)
            if as_reference and judged != "good":
                raise InputError(
                    f"inspection {inspection_id}: only a part that you judge good can become a reference"
                    + ("" if judged else "; say that it is good")
                )
            disposition = Disposition(inspection_id, decision, by, reason, utc_now(), judged, as_reference)
            said = asdict(disposition)
            conn.execute(insert(t.dispositions), {"decided_by" if k == "by" else k: v for k, v in said.items()})
            append(conn, DISPOSITION, inspection_id, by, said)
        return disposition

    def get(self, inspection_id: str) -> Disposition | None:
        """The decision about that inspection; None if there is none."""
        with self._db.connection() as conn:
            return _find(conn, inspection_id)

    def count(self, product: str | None = None, since: str | None = None) -> dict[str, int]:
        """{"accept": n, "override": m} over inspections of that product filed since that time."""
        with self._db.connection() as conn:
            counted = select(_D.decision, func.count()).select_from(t.dispositions.join(t.inspections))
            if product is not None:
                counted = counted.where(_I.product == product)
            if since is not None:
                counted = counted.where(_I.created_at >= to_utc(since))
            rows = conn.execute(counted.group_by(_D.decision)).all()
        return {"accept": 0, "override": 0} | {decision: int(n) for decision, n in rows}


def _is_legible(text: str) -> bool:
    """Whether a person sees anything of it: blanks, control and zero-width characters alone are nothing."""
    return any(c.isprintable() and unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in text)


def _find(conn: Connection, inspection_id: str) -> Disposition | None:
    r = t.get(conn, t.dispositions, inspection_id=inspection_id)
    if r is None:
        return None
    return Disposition(r.inspection_id, r.decision, r.decided_by, r.reason, r.created_at, r.judged, r.as_reference)


def _judged(verdict: str, decision: Decision, said: Judgement | None) -> Judgement | None:
    """What the part is according to the person. Raises InputError if decision and judgement contradict each other."""
    if verdict == "REVIEW":
        return said
    implied: Judgement = "good" if (verdict == "PASS") == (decision == "accept") else "bad"
    if said not in (None, implied):
        raise InputError(f"{decision} of a {verdict} says that the part is {implied}, not {said}: correct one of them")
    return implied
