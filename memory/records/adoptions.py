"""What people taught the system: photos adopted as golden samples with consent, and defects that people confirmed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from refdiff.memory.audit_chain import append
from refdiff.memory.database import Database
from refdiff.memory.timestamps import to_utc, utc_now

LEARNED = "learned"  # kind of the audit record, and the table's name


@dataclass(frozen=True)
class Adoption:
    """The outcome of an adoption request: a person agreed that the photo becomes a golden sample."""

    inspection_id: str
    golden_id: str | None  # None if the photo was refused
    outcome: str  # in words
    created_at: str  # ISO 8601, UTC


@dataclass(frozen=True)
class Confirmed:
    """A defect of a part that a person confirmed."""

    type: str  # defect type
    region: str  # place in words, e.g. "upper left"
    part_id: str


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
            row = conn.execute("SELECT * FROM learned WHERE inspection_id = ?", (inspection_id,)).fetchone()
            if row is not None:
                return Adoption(**dict(row))
            made = Adoption(inspection_id, golden_id, outcome, utc_now())
            conn.execute("INSERT INTO learned VALUES (:inspection_id, :golden_id, :outcome, :created_at)", vars(made))
            append(conn, LEARNED, inspection_id, "refdiff", asdict(made))
        return made

    def claimed(self, golden_id: str) -> bool:
        """Whether that golden is the recorded outcome of an adoption request."""
        with self._db.connection() as conn:
            return conn.execute("SELECT 1 FROM learned WHERE golden_id = ?", (golden_id,)).fetchone() is not None

    def consented(self) -> list[str]:
        """Ids of inspections with consent but no outcome yet, oldest first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT inspection_id, created_at AS at FROM dispositions WHERE as_reference = 1 UNION "
                "SELECT inspection_id, judged_at AS at FROM blind_checks WHERE as_reference = 1 ORDER BY at"
            ).fetchall()
            tried = {r["inspection_id"] for r in conn.execute("SELECT inspection_id FROM learned")}
        return list(dict.fromkeys(r["inspection_id"] for r in rows if r["inspection_id"] not in tried))

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
