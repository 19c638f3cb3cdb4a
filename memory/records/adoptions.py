"""What people taught the system: photos adopted as golden samples with consent, and defects that people confirmed.

A golden sample decides about every later part, so one inspector's word is not enough: a photo waits until an admin or a
second person approves it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from refdiff.memory.audit_chain import append
from refdiff.memory.database import Database
from refdiff.memory.records.api_keys import person
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DuplicateError, InputError, UnknownRecordError

LEARNED, APPROVAL = "learned", "approval"  # kinds of audit records; their tables are `learned` and `approvals`

_CONSENTS = """(
    SELECT inspection_id, decided_by AS by, reason, created_at AS at, 'disposition' AS source
    FROM dispositions WHERE as_reference = 1 UNION ALL
    SELECT inspection_id, judged_by, note, judged_at, 'blind_check' FROM blind_checks WHERE as_reference = 1)"""

_JUDGED = """(
    SELECT inspection_id, judged FROM dispositions WHERE judged IS NOT NULL UNION ALL
    SELECT inspection_id, judged FROM blind_checks WHERE judged IS NOT NULL)"""

_PHOTO = "CASE WHEN json_valid(i.report) THEN json_extract(i.report, '$.query_sha256') END"  # as the index has it
_FOUND_GOOD = (
    f"SELECT {_PHOTO} AS photo FROM inspections i JOIN {_JUDGED} j USING (inspection_id) "
    f"WHERE i.product = ?1 AND j.judged = 'good' AND {_PHOTO} IS NOT NULL"
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
            row = conn.execute("SELECT * FROM learned WHERE inspection_id = ?", (inspection_id,)).fetchone()
        return Adoption(**dict(row)) if row else None

    def add(self, inspection_id: str, golden_id: str | None, outcome: str) -> Adoption:
        """Record the outcome of an adoption request; later calls return the first outcome.

        golden_id: None if the photo was refused. outcome: in words.
        """
        with self._db.transaction() as conn:
            return _learned(conn, inspection_id, golden_id, outcome)

    def claimed(self, golden_id: str) -> bool:
        """Whether that golden is the recorded outcome of an adoption request."""
        with self._db.connection() as conn:
            return conn.execute("SELECT 1 FROM learned WHERE golden_id = ?", (golden_id,)).fetchone() is not None

    def consented(self) -> list[str]:
        """Ids of inspections whose photo is approved as a reference but has no outcome yet, oldest first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                f"SELECT c.inspection_id FROM {_CONSENTS} c JOIN approvals a USING (inspection_id) WHERE a.approved = 1 "
                "AND c.inspection_id NOT IN (SELECT inspection_id FROM learned) ORDER BY c.at"
            ).fetchall()
        return list(dict.fromkeys(r["inspection_id"] for r in rows))

    def waiting(self, inspection_id: str | None = None) -> list[WaitingReference]:
        """Photos that wait for an admin or a second person, the longest waiting first; of all inspections, or of one."""
        with self._db.connection() as conn:
            rows = conn.execute(
                f"SELECT c.inspection_id, i.part_id, i.product, c.by, COALESCE(c.reason, '') AS reason, c.at, c.source "
                f"FROM {_CONSENTS} c JOIN inspections i USING (inspection_id) WHERE (?1 IS NULL OR c.inspection_id = ?1) "
                "AND c.inspection_id NOT IN (SELECT inspection_id FROM learned) "
                "AND c.inspection_id NOT IN (SELECT inspection_id FROM approvals) ORDER BY c.at",
                (inspection_id,),
            ).fetchall()
        # of two that propose the same photo, the first counts
        return list({r["inspection_id"]: WaitingReference(**dict(r)) for r in reversed(rows)}.values())[::-1]

    def approval(self, inspection_id: str) -> Approval | None:
        """The word about the photo of that inspection; None while it waits, or was never proposed."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM approvals WHERE inspection_id = ?", (inspection_id,)).fetchone()
        return Approval(**dict(row) | {"approved": bool(row["approved"])}) if row else None

    def decide(self, inspection_id: str, approved: bool, by: str, note: str = "", *, admin: bool) -> Approval:
        """Record an admin's or a second person's word about a proposed photo; it stands.

        Raises UnknownRecordError (nothing proposed), DuplicateError (decided already), InputError (no name, or the person
        who proposed it, who is no admin).
        """
        by = by.strip()
        if not by:
            raise InputError(f"reference of inspection {inspection_id}: who decides is missing")
        with self._db.transaction() as conn:
            proposed = [
                r["by"] for r in conn.execute(f"SELECT * FROM {_CONSENTS} WHERE inspection_id = ?", (inspection_id,))
            ]
            if not proposed:
                raise UnknownRecordError(
                    f"inspection {inspection_id}: nobody has proposed its photo as a reference; `refdiff review` lists "
                    "those that wait"
                )
            earlier = conn.execute(
                "SELECT by, created_at AS at FROM approvals WHERE inspection_id = ?1 UNION ALL "
                "SELECT 'refdiff', created_at FROM learned WHERE inspection_id = ?1",
                (inspection_id,),
            ).fetchone()
            if earlier is not None:
                raise DuplicateError(
                    f"inspection {inspection_id}: {earlier['by']} decided about its photo as a reference at {earlier['at']}"
                )
            if approved and not admin and all(person(name) == person(by) for name in proposed):
                raise InputError(
                    f"inspection {inspection_id}: {by} proposed its photo as a reference; an admin or somebody else "
                    "has to approve it"
                )
            made = Approval(inspection_id, approved, by, note.strip(), utc_now())
            conn.execute(
                "INSERT INTO approvals (inspection_id, approved, by, note, created_at) "
                "VALUES (:inspection_id, :approved, :by, :note, :created_at)",
                vars(made),
            )
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
            rows = conn.execute(
                "WITH bad AS (SELECT inspection_id FROM dispositions WHERE judged = 'bad' AND created_at >= ?1 UNION "
                "SELECT inspection_id FROM blind_checks WHERE judged = 'bad' AND judged_at >= ?1) "
                "SELECT i.part_id, json_extract(f.value, '$.type') AS type, "
                "json_extract(f.value, '$.location.region') AS region FROM bad "
                "JOIN inspections i USING (inspection_id), json_each(i.report, '$.findings') f "
                "WHERE i.product = ?2 AND i.part_id <> ?3 AND NOT COALESCE(json_extract(f.value, '$.within_limits'), 0)",
                (since, product, except_part),
            )
            return {Confirmed(str(row["type"]), str(row["region"] or ""), str(row["part_id"])) for row in rows}

    def confirmed_parts(self, product: str, most: int) -> list[ConfirmedPart]:
        """Inspections with findings whose part people found defective, newest first, of the newest `most` found so.

        Not those of a photo that a person found good, in the same inspection or another.
        """
        with self._db.connection() as conn:
            rows = conn.execute(
                f"SELECT i.inspection_id, i.part_id, {_PHOTO} AS photo, i.report FROM inspections i WHERE i.product = ?1 "
                f"AND i.inspection_id IN (SELECT inspection_id FROM {_JUDGED} WHERE judged = 'bad') "
                f"AND {_PHOTO} NOT IN ({_FOUND_GOOD}) ORDER BY i.created_at DESC, i.seq DESC LIMIT ?2",
                (product, most),
            ).fetchall()
        found = []
        for row in rows:
            findings = [f for f in json.loads(row["report"]).get("findings", []) if not f.get("within_limits")]
            at = [f["location"] for f in findings]
            boxes = [(p["x0"], p["y0"], p["x1"], p["y1"]) for p in at]
            if boxes:
                found.append(ConfirmedPart(row["inspection_id"], row["part_id"], row["photo"], boxes))
        return found

    def found_good(self, product: str, photos: Sequence[str]) -> set[str]:
        """Those of some photos (sha256) of a product that a person found good, in any inspection."""
        marks = ", ".join("?" * len(photos))
        with self._db.connection() as conn:
            rows = conn.execute(f"{_FOUND_GOOD} AND {_PHOTO} IN ({marks})", (product, *photos)).fetchall()
        return {row["photo"] for row in rows}


def _learned(conn: sqlite3.Connection, inspection_id: str, golden_id: str | None, outcome: str) -> Adoption:
    row = conn.execute("SELECT * FROM learned WHERE inspection_id = ?", (inspection_id,)).fetchone()
    if row is not None:
        return Adoption(**dict(row))
    made = Adoption(inspection_id, golden_id, outcome, utc_now())
    conn.execute("INSERT INTO learned VALUES (:inspection_id, :golden_id, :outcome, :created_at)", vars(made))
    append(conn, LEARNED, inspection_id, "refdiff", asdict(made))
    return made
