"""The audit trail of a home folder: read it, export it as a file that can be checked elsewhere, check it.

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
from pathlib import Path
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
from refdiff.memory.database import Database
from refdiff.memory.image_store import ImageStore
from refdiff.memory.records.adoptions import LEARNED
from refdiff.memory.records.blind_checks import BLIND
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import InputError, RefDiffError, TamperedError, UnknownRecordError
from refdiff.model.files import atomic_path, storage_error

FORMAT = 1
MAX_LINE = 64_000_000  # bytes; a report is some 10 kB


@dataclass(frozen=True)
class Checked:
    """The result of a check."""

    records: int  # that hold, links not counted
    head: str  # hash of the chain up to there
    problem: Problem | None = None  # None if intact
    notes: list[str] = field(default_factory=list)  # what was not checked, or only in part


class AuditStore:
    """The audit records of the one database, and their exports. Safe to share between threads."""

    def __init__(self, db: Database, images: ImageStore, key: SecretStr | None = None) -> None:
        self._db, self._images, self._key = db, images, key

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
                problem = check.end(int(given["seq"]) if given else 0) or _unrecorded(conn)
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

    def _photo(self, record: AuditRecord) -> Problem | None:
        sha256 = str(record.facts.get("query_sha256") or "")
        if not sha256:
            return None
        try:
            self._images.get(sha256)
        except RefDiffError as e:
            return Problem(f"record {record.seq}", record.seq, record.inspection_id, f"its photo: {e}")
        return None

    def verify_file(self, path: Path, against_store: bool = False) -> Checked:
        """Check an exported file; with `against_store` also that this home still holds the same records.

        Raises InputError if the file cannot be read or is not an export.
        """
        try:
            with path.open("rb") as file:
                return _FileCheck(self, against_store).run(iter(lambda: file.readline(MAX_LINE), b""))
        except OSError as e:
            raise InputError(f"{path}: cannot be read ({e.strerror})") from e

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


class _FileCheck:
    """One pass over the lines of an export."""

    def __init__(self, store: AuditStore, against_store: bool) -> None:
        self._store, self._against_store = store, against_store
        self._digest, self._records, self._lines = hashlib.sha256(), 0, 0
        self._only: str | None = None  # id of the one inspection selected
        self._since: str | None = None  # start of the time selected

    def run(self, lines: Iterator[bytes]) -> Checked:
        check = self._open(next(lines, b""))
        notes = self._selected()
        if (problem := self._entered(check)) is not None:
            return self._found(check, problem)
        for number, raw in enumerate(lines, start=2):
            place = f"line {number}"
            data = _parse(raw)
            if data is None:
                return self._found(check, Problem(place, check.seq + 1, None, "it is cut off or does not read"))
            if "end" in data:
                problem, note = self._close(check, data, place)
                if problem is None and next(lines, b""):
                    problem = Problem(f"line {number + 1}", None, None, "it was added after the end")
                return self._found(check, problem, [*notes, *([note] if note else [])])
            self._digest.update(raw)
            self._lines += 1
            problem = self._step(check, data, place)
            if problem is not None:
                return self._found(check, problem)
        return self._found(check, Problem(f"after line {self._lines}", check.seq + 1, None, "the end is cut off"))

    def _open(self, raw: bytes) -> ChainCheck:
        data = _parse(raw) or {}
        selection = data.get("selection")
        chosen: list[Any] = (
            [selection.get(k) for k in ("inspection_id", "since")] if isinstance(selection, dict) else [0]
        )
        if (
            data.get("refdiff_audit") != FORMAT
            or not isinstance(data.get("from"), int)
            or not all(c is None or isinstance(c, str) for c in chosen)
        ):
            raise InputError(
                "not an audit export of this version: its first line is no header; use `refdiff audit export`"
            )
        self._digest.update(raw)
        self._lines = 1
        self._only, self._since = chosen
        return ChainCheck(data["from"] - 1, str(data.get("previous")))

    def _selected(self) -> list[str]:
        """Notes about what the export leaves out, so a part is not mistaken for everything."""
        if self._only is not None:
            return [f"of inspection {self._only} alone: records of others are digests, which only a home can tell"]
        return [] if self._since is None else [f"since {self._since}: it holds no record of before"]

    def _entered(self, check: ChainCheck) -> Problem | None:
        """Check that the export begins where its selection does; for a part of the chain, only a home can tell."""
        first, where = 1, "an export of everything"
        if self._only is not None or self._since is not None:
            if not self._against_store:
                return None
            first, where = self._store.entry(self._only, self._since), "what was selected, in this home,"
        elif check.hash != GENESIS:
            return Problem("line 1", 1, None, "an export of everything begins with nothing before it")
        if check.seq + 1 == first:
            return None
        return Problem(
            "line 1", first, self._only, f"it begins with record {check.seq + 1}; {where} begins with record {first}"
        )

    def _step(self, check: ChainCheck, data: dict[str, Any], place: str) -> Problem | None:
        seq = data.get("seq")
        if not isinstance(seq, int):
            return Problem(place, check.seq + 1, None, "it has no number")
        named = f"{place}, record {seq}"
        if set(data) == {"seq", "link"}:
            return self._link(check, seq, str(data["link"]), named)
        content = data.pop("content", None)
        try:
            record = AuditRecord(**data)
            problem = check.record(record, content, named)
        except (TypeError, ValueError):
            return Problem(named, seq, None, "it is not a record: a field is missing or was added")
        self._records += problem is None
        return problem or self._compare(check, named, record.inspection_id)

    def _link(self, check: ChainCheck, seq: int, record_sha256: str, place: str) -> Problem | None:
        """Only an export of one inspection has links, and only for the records of others."""
        if self._only is None:
            return Problem(place, seq, None, "it is a digest alone, but this is no export of one inspection: hidden")
        problem = check.link(seq, record_sha256, place) or self._compare(check, place, None)
        if problem is None and self._against_store and self._store.inspection_at(seq) == self._only:
            return Problem(place, seq, self._only, "it is a digest alone, but a record of this very inspection: hidden")
        return problem

    def _compare(self, check: ChainCheck, place: str, inspection_id: str | None) -> Problem | None:
        if not self._against_store or self._store.hash_at(check.seq) == check.hash:
            return None
        return Problem(place, check.seq, inspection_id, "this home does not hold this record: it was rewritten after the "
                       "export, or the export is of another home")  # fmt: skip

    def _close(self, check: ChainCheck, end: dict[str, Any], place: str) -> tuple[Problem | None, str | None]:
        last, hash_, lines, digest = (end.get(k) for k in ("end", "hash", "lines", "sha256"))
        if not isinstance(last, int):
            return Problem(place, None, None, "the closing line does not read"), None
        if (problem := check.end(last, place)) is not None:
            return problem, None
        if (hash_, lines, digest) != (check.hash, self._lines, self._digest.hexdigest()):
            return Problem(place, None, None, "the closing line does not fit the lines before: one was changed"), None
        wrong, note = self._store.check_seal(end)
        return (Problem(place, None, None, wrong) if wrong else None), note

    def _found(self, check: ChainCheck, problem: Problem | None, notes: list[str] | None = None) -> Checked:
        return Checked(self._records, check.hash, problem, notes or [])


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


_TABLES = {BLIND: "blind_checks", LEARNED: "learned"}
_RECORDED = (  # table, which of its rows, kind of their records, what they are
    ("inspections", "1", FILED, "filed"),
    ("dispositions", "1", DISPOSITION, "decided"),
    ("blind_checks", "judged IS NOT NULL", BLIND, "judged blind"),
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


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def write_lines(path: Path, lines: Iterator[bytes]) -> int:
    """Write an export to `path`, all of it or nothing; the number of bytes. Raises StorageError."""
    written = 0
    try:
        with atomic_path(path, private=False) as temporary, temporary.open("wb") as file:
            for line in lines:
                written += file.write(line)
    except OSError as e:
        raise storage_error(path, e) from e
    return written
