"""What was learned from people: photos that became references with a person's consent, and defects that people confirmed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from refdiff.memory.audit_chain import append
from refdiff.memory.database import Database
from refdiff.memory.timestamps import to_utc, utc_now

LEARNED = "learned"


@dataclass(frozen=True)
class Adoption:
    """What became of a consent. golden_id: None if the photo was refused; outcome: in words."""

    inspection_id: str
    golden_id: str | None
    outcome: str
    created_at: str


@dataclass(frozen=True)
class Confirmed:
    """A defect of that type at that place ("upper left") of a part, which a person confirmed."""

    type: str
    region: str
    part_id: str


class AdoptionStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, inspection_id: str) -> Adoption | None:
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM learned WHERE inspection_id = ?", (inspection_id,)).fetchone()
        return Adoption(**dict(row)) if row else None

    def add(self, inspection_id: str, golden_id: str | None, outcome: str) -> Adoption:
        """Record what became of a consent; the first word stands."""
        with self._db.transaction() as conn:
            row = conn.execute("SELECT * FROM learned WHERE inspection_id = ?", (inspection_id,)).fetchone()
            if row is not None:
                return Adoption(**dict(row))
            made = Adoption(inspection_id, golden_id, outcome, utc_now())
            conn.execute("INSERT INTO learned VALUES (:inspection_id, :golden_id, :outcome, :created_at)", vars(made))
            append(conn, LEARNED, inspection_id, "refdiff", asdict(made))
        return made

    def claimed(self, golden_id: str) -> bool:
        """Whether that golden is recorded as what a consent became."""
        with self._db.connection() as conn:
            return conn.execute("SELECT 1 FROM learned WHERE golden_id = ?", (golden_id,)).fetchone() is not None

    def consented(self) -> list[str]:
        """Inspections whose photo may become a reference and was not tried yet, oldest first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT inspection_id, created_at AS at FROM dispositions WHERE as_reference = 1 UNION "
                "SELECT inspection_id, judged_at AS at FROM blind_checks WHERE as_reference = 1 ORDER BY at"
            ).fetchall()
            tried = {r["inspection_id"] for r in conn.execute("SELECT inspection_id FROM learned")}
        return list(dict.fromkeys(r["inspection_id"] for r in rows if r["inspection_id"] not in tried))

    def confirmed(self, product: str, days: int = 30, *, except_part: str = "") -> set[Confirmed]:
        """Defects that people confirmed on other parts of the product in the last `days` days; limits kept are none."""
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
