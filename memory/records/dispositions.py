"""Dispositions: what a person decided about a filed inspection. The first decision stands.

They are a biased sample: people look at what failed or is open. Rates and calibrations come from blind checks.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from refdiff.memory.audit_chain import DISPOSITION, append
from refdiff.memory.database import Database
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DuplicateError, InputError, UnknownRecordError

Decision = Literal["accept", "override"]
Judgement = Literal["good", "bad"]
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"  # Hangul fillers and the empty Braille cell: letters and symbols without ink


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
            filed = conn.execute("SELECT verdict FROM inspections WHERE inspection_id = ?", (inspection_id,)).fetchone()
            if filed is None:
                raise UnknownRecordError(f"no inspection {inspection_id!r}; `refdiff review` lists the open ones")
            earlier = _find(conn, inspection_id)
            if earlier is not None:
                raise DuplicateError(
                    f"inspection {inspection_id} was decided by {earlier.by} at {earlier.created_at} "
                    f"({earlier.decision}: {earlier.reason}); the first decision stands",
                    earlier,
                )
            judged = _judged(filed["verdict"], decision, judged)
            if as_reference and judged != "good":
                raise InputError(
                    f"inspection {inspection_id}: only a part that you judge good can become a reference"
                    + ("" if judged else "; say that it is good")
                )
            disposition = Disposition(inspection_id, decision, by, reason, utc_now(), judged, as_reference)
            conn.execute(
                "INSERT INTO dispositions (inspection_id, decision, decided_by, reason, created_at, judged, as_reference) "
                "VALUES (:inspection_id, :decision, :by, :reason, :created_at, :judged, :as_reference)",
                vars(disposition),
            )
            append(conn, DISPOSITION, inspection_id, by, asdict(disposition))
        return disposition

    def get(self, inspection_id: str) -> Disposition | None:
        """The decision about that inspection; None if there is none."""
        with self._db.connection() as conn:
            return _find(conn, inspection_id)

    def count(self, product: str | None = None, since: str | None = None) -> dict[str, int]:
        """{"accept": n, "override": m} over inspections of that product filed since that time."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT decision, COUNT(*) AS n FROM dispositions d JOIN inspections i USING (inspection_id) "
                "WHERE (?1 IS NULL OR i.product = ?1) AND (?2 IS NULL OR i.created_at >= ?2) GROUP BY decision",
                (product, None if since is None else to_utc(since)),
            )
            return {"accept": 0, "override": 0} | {row["decision"]: int(row["n"]) for row in rows}


def _is_legible(text: str) -> bool:
    """Whether a person sees anything of it: blanks, control and zero-width characters alone are nothing."""
    return any(c.isprintable() and unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in text)


def _find(conn: sqlite3.Connection, inspection_id: str) -> Disposition | None:
    row = conn.execute("SELECT * FROM dispositions WHERE inspection_id = ?", (inspection_id,)).fetchone()
    if row is None:
        return None
    return Disposition(
        row["inspection_id"],
        row["decision"],
        row["decided_by"],
        row["reason"],
        row["created_at"],
        row["judged"],
        bool(row["as_reference"]),
    )


def _judged(verdict: str, decision: Decision, said: Judgement | None) -> Judgement | None:
    """What the part is according to the person. Raises InputError if decision and judgement contradict each other."""
    if verdict == "REVIEW":
        return said
    implied: Judgement = "good" if (verdict == "PASS") == (decision == "accept") else "bad"
    if said not in (None, implied):
        raise InputError(f"{decision} of a {verdict} says that the part is {implied}, not {said}: correct one of them")
    return implied
