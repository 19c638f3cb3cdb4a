"""The audit trail of a home folder: read it, check it, and export its lines.

An export is JSON lines: an opening line (the selection, and where it enters the chain), one line per record with its
content, short link lines for records that were not selected, and a closing line (how far the chain goes, the digest of all
lines before, and a seal if a key is set).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic import SecretStr

from refdiff.memory.audit_chain import (
    DISPOSITION,
    FILED,
    GENESIS,
    AuditRecord,
    ChainCheck,
    Problem,
    canonical,
)
from refdiff.memory.audit_head import AuditHead, missing_from
from refdiff.memory.database import Database
from refdiff.memory.image_store import ImageStore
from refdiff.memory.records.adoptions import APPROVAL, LEARNED
from refdiff.memory.records.blind_checks import BLIND
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import InputError, RefDiffError, TamperedError, UnknownRecordError

FORMAT = 1


@dataclass(frozen=True)
class Checked:
    """The result of a check."""

    records: int  # that hold, links not counted
    head: str  # hash of the chain up to there
    problem: Problem | None = None  # None if intact
    notes: list[str] = field(default_factory=list)  # what was not checked, or only in part


class AuditStore:
    """The audit records of the one database, and their exports. Safe to share between threads."""

    def __init__(
        self, db: Database, images: ImageStore, key: SecretStr | None = None, kept: AuditHead | None = None
    ) -> None:
        """kept: the newest record as it is remembered outside the database."""
        self._db, self._images, self._key, self._kept = db, images, key, kept

    def of(self, inspection_id: str) -> list[AuditRecord]:
        """The records of one inspection, oldest first; [] if none."""
        with self._db.connection() as conn:
            rows = conn.execute("SELECT * FROM audit WHERE inspection_id = ? ORDER BY seq", (inspection_id,))
            return [_record(row) for row in rows]

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest record; (0, 64 zeros) if there is none. A copy kept elsewhere serves as proof."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
        return (int(row["seq"]), str(row["hash"])) if row else (0, GENESIS)

    # -- export

    def export(self, inspection_id: str | None = None, since: str | None = None, by: str = "") -> Iterator[bytes]:
        """The lines of an export, each ending in a newline: of one inspection, since a point in time, or of everything.

        Records in between that were not selected appear as digests only. Raises UnknownRecordError (no such inspection) or
        InputError (`since` is not a time) before the first line.
        """
        if inspection_id is not None and since is not None:
            raise InputError("an export is of one inspection or since a time, not both")
        moment = None if since is None else to_utc(since)
        if inspection_id is not None and not self.of(inspection_id):
            raise UnknownRecordError(
                f"no inspection {inspection_id!r} in the audit; `refdiff inspections list` shows them"
            )
        return self._lines(inspection_id, moment, by)

    def _lines(self, inspection_id: str | None, since: str | None, by: str) -> Iterator[bytes]:
        digest, count = hashlib.sha256(), 0

        def line(data: dict[str, Any]) -> bytes:
            nonlocal count
            text = canonical(data).encode() + b"\n"
            digest.update(text)
            count += 1
            return text

        with self._db.snapshot() as conn:
            first, previous = _entry(conn, inspection_id, since)
            yield line({
                "refdiff_audit": FORMAT, "selection": {"inspection_id": inspection_id, "since": since},
                "from": first, "previous": previous, "exported_at": utc_now(), "exported_by": by,
                "software": version("refdiff"),
            })  # fmt: skip
            last, head = first - 1, previous
            for row in conn.execute(f"{_ALL} WHERE a.seq >= ? ORDER BY a.seq", (first,)):
                record = _record(row)
                last, head = record.seq, record.hash
                if inspection_id in (None, record.inspection_id):
                    yield line(asdict(record) | {"content": _content(row)})
                else:
                    yield line({"seq": record.seq, "link": record.record_sha256})
        end = {"end": last, "hash": head, "lines": count, "sha256": digest.hexdigest()}
        yield canonical(end | {"seal": self._seal(end)}).encode() + b"\n"

    def _seal(self, end: dict[str, Any]) -> str | None:
        if self._key is None:
            return None
        return hmac.new(self._key.get_secret_value().encode(), canonical(end).encode(), "sha256").hexdigest()

    # -- checks

    def verify_store(self, photos: bool = False) -> Checked:
        """Check every record of this home against the chain, and that nothing was filed or decided without a record.

        photos: also read every inspected photo and compare it with its sha256 (slow).
        """
        check = ChainCheck()
        with self._db.snapshot() as conn:
            problem = self._verify_rows(conn, check, photos)
            if problem is None:
                given = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'audit'").fetchone()
                problem = check.end(int(given["seq"]) if given else 0) or _unrecorded(conn) or self._cut_off(conn)
        held = check.seq - (problem is not None and problem.seq == check.seq)  # its record fits, the stores do not
        return Checked(held, check.hash, problem)

    def _verify_rows(self, conn: sqlite3.Connection, check: ChainCheck, photos: bool) -> Problem | None:
        for row in conn.execute(f"{_ALL} ORDER BY a.seq"):
            try:
                record, content = _record(row), _content(row)
                problem = check.record(record, content) or _agrees(conn, record, content)
            except (TamperedError, ValueError, RecursionError):
                return Problem(f"record {row['seq']}", row["seq"], row["inspection_id"], "it does not read any more")
            if problem is None and photos and record.kind == FILED:
                problem = self._photo(record)
            if problem is not None:
                return problem
        return None

    def _cut_off(self, conn: sqlite3.Connection) -> Problem | None:
        kept = self._kept.read() if self._kept is not None else None
        wrong = "" if kept is None else missing_from(conn, kept)
        return Problem("the end", None, None, wrong) if wrong else None

    def _photo(self, record: AuditRecord) -> Problem | None:
        sha256 = str(record.facts.get("query_sha256") or "")
        if not sha256:
            return None
        try:
            self._images.get(sha256)
        except RefDiffError as e:
            return Problem(f"record {record.seq}", record.seq, record.inspection_id, f"its photo: {e}")
        return None

    def hash_at(self, seq: int) -> str | None:
        """Hash of the chain up to record `seq`; None if there is no such record."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT hash FROM audit WHERE seq = ?", (seq,)).fetchone()
        return str(row["hash"]) if row else None

    def inspection_at(self, seq: int) -> str | None:
        """The inspection that record `seq` belongs to; None if there is no such record."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT inspection_id FROM audit WHERE seq = ?", (seq,)).fetchone()
        return str(row["inspection_id"]) if row else None

    def entry(self, inspection_id: str | None, since: str | None) -> int:
        """Number of the first record of an export with that selection."""
        with self._db.connection() as conn:
            return _entry(conn, inspection_id, since)[0]

    def check_seal(self, end: dict[str, Any]) -> tuple[str | None, str | None]:
        """(problem, note) about the seal of a closing line; either may be None."""
        seal, mine = end.get("seal"), self._seal({k: end[k] for k in ("end", "hash", "lines", "sha256")})
        if mine is None:
            return None, "sealed, which was not checked: set REFDIFF_AUDIT_KEY" if seal else None
        if not isinstance(seal, str):
            return (
                "it is not sealed, but REFDIFF_AUDIT_KEY is set: exported without the key, or the seal was removed",
                None,
            )
        same = hmac.compare_digest(seal.encode(), mine.encode())
        return (
            (None, "the seal holds") if same else ("the seal does not fit: changed, or sealed with another key", None)
        )


_ALL = "SELECT a.*, i.report FROM audit a LEFT JOIN inspections i ON a.kind = 'filed' AND i.inspection_id = a.inspection_id"


def _entry(conn: sqlite3.Connection, inspection_id: str | None, since: str | None) -> tuple[int, str]:
    """Where an export enters the chain: number of its first record and the hash before it."""
    where, value = "1", []
    if inspection_id is not None:
        where, value = "inspection_id = ?", [inspection_id]
    elif since is not None:
        where, value = "at >= ?", [since]
    first = conn.execute(f"SELECT MIN(seq) AS seq FROM audit WHERE {where}", value).fetchone()["seq"]
    if first is None:  # nothing since then: an export without records, at the chain's end
        first = (conn.execute("SELECT MAX(seq) AS seq FROM audit").fetchone()["seq"] or 0) + 1
    before = conn.execute("SELECT hash FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT 1", (first,)).fetchone()
    return int(first), str(before["hash"]) if before else GENESIS


def _agrees(conn: sqlite3.Connection, record: AuditRecord, content: Any) -> Problem | None:
    """Check that the stores still agree with a record; the problem, or None."""
    if record.kind == FILED:
        row = conn.execute("SELECT * FROM inspections WHERE inspection_id = ?", (record.inspection_id,)).fetchone()
        differs = [k for k in ("part_id", "product", "verdict") if row[k] != record.facts.get(k, row[k])]
        what = f"the {' and '.join(differs).replace('_', ' ')} it is listed with is not the one that was filed"
        return Problem(f"record {record.seq}", record.seq, record.inspection_id, what) if differs else None
    if record.kind in _TABLES:
        table = _TABLES[record.kind]
        row = conn.execute(f"SELECT * FROM {table} WHERE inspection_id = ?", (record.inspection_id,)).fetchone()
        if row is not None and all(row[k] == v for k, v in content.items()):
            return None
        what = f"what the table {table} says of it is not what was recorded"
        return Problem(f"record {record.seq}", record.seq, record.inspection_id, what)
    if record.kind != DISPOSITION:
        return None
    row = conn.execute("SELECT * FROM dispositions WHERE inspection_id = ?", (record.inspection_id,)).fetchone()
    named = ("decision", "by", "reason", "created_at", "judged", "as_reference")
    said = [content.get(k) for k in named[:-1]] + [bool(content.get("as_reference"))]
    if row is not None and said == [row["decided_by" if k == "by" else k] for k in named]:
        return None
    what = "the disposition was removed" if row is None else "the disposition is not the one that was recorded"
    return Problem(f"record {record.seq}", record.seq, record.inspection_id, what)


_TABLES = {BLIND: "blind_checks", LEARNED: "learned", APPROVAL: "approvals"}
_RECORDED = (  # table, which of its rows, kind of their records, what they are
    ("inspections", "1", FILED, "filed"),
    ("dispositions", "1", DISPOSITION, "decided"),
    ("blind_checks", "judged IS NOT NULL", BLIND, "judged blind"),
    ("approvals", "1", APPROVAL, "approved as a reference"),
)


def _unrecorded(conn: sqlite3.Connection) -> Problem | None:
    for table, which, kind, done in _RECORDED:
        row = conn.execute(
            f"SELECT inspection_id FROM {table} WHERE {which} AND inspection_id NOT IN "
            "(SELECT inspection_id FROM audit WHERE kind = ?) LIMIT 1",
            (kind,),
        ).fetchone()
        if row is not None:
            what = f"it is {done} without a record: added by other means, or its record was removed"
            return Problem(f"table {table}", None, row["inspection_id"], what)
    return None


def _record(row: sqlite3.Row) -> AuditRecord:
    named = {name: row[name] for name in AuditRecord.__dataclass_fields__}
    return AuditRecord(**named | {"facts": _json(row, "facts")})


def _content(row: sqlite3.Row) -> Any:
    return _json(row, "report" if row["kind"] == FILED else "content")


def _json(row: sqlite3.Row, column: str) -> Any:
    """Raises TamperedError: what was written here was JSON."""
    try:
        return None if row[column] is None else json.loads(row[column])
    except (ValueError, RecursionError) as e:
        raise TamperedError(f"tampered with at record {row['seq']}: its {column} cannot be read") from e
