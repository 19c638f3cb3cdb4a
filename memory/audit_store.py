"""The audit trail of a home folder: read it, check it, and export its lines.

An export is JSON lines: an opening line (the selection, and where it enters the chain), one line per record with its
content, short link lines for records that were not selected, and a closing line (how far the chain goes, the digest of all
lines before, and a seal if a key is set).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr
from sqlalchemy import Connection, Row, Table, exists, func, select, true

from refdiff.memory.artefacts import inspection_folder, not_as_filed
from refdiff.memory.audit_chain import (
    ARTEFACTS,
    DIFFERENCE,
    DISPOSITION,
    FILED,
    GENESIS,
    GONE,
    NO_REPORT,
    REMOVED,
    AuditRecord,
    ChainCheck,
    Problem,
    last_given,
)
from refdiff.memory.audit_head import AuditHead, missing_from
from refdiff.memory.changes import CALIBRATION, KEY, NETWORK, NOTHING_SET, PRESENT, PRODUCT, present, state_digest
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.photos.image_store import ImageStore
from refdiff.memory.records.adoptions import APPROVAL, LEARNED
from refdiff.memory.records.api_keys import key_state, keys_of
from refdiff.memory.records.blind_checks import BLIND
from refdiff.memory.records.defect_names import NAMED
from refdiff.memory.rows.digests import canonical
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import InputError, RefDiffError, TamperedError, UnknownRecordError

FORMAT = 1
MAX_PROBLEMS = 1000


@dataclass(frozen=True)
class Checked:
    """The result of a check."""

    records: int  # that hold, links not counted
    head: str  # hash of the chain, up to the first problem
    problem: Problem | None = None  # the first one; None if intact
    notes: list[str] = field(default_factory=list)  # what was not checked, or only in part, and what is odd
    problems: list[Problem] = field(default_factory=list)  # all of them, at most `MAX_PROBLEMS`

    @classmethod
    def of(cls, records: int, head: str, problems: list[Problem], notes: list[str]) -> Self:
        """The result with those problems."""
        more = len(problems) - MAX_PROBLEMS
        notes = [*notes, f"and {more:,} more problems"] if more > 0 else notes
        return cls(records, head, problems[0] if problems else None, notes, problems[:MAX_PROBLEMS])


class AuditStore:
    """The audit records of the one database, and their exports. Safe to share between threads."""

    def __init__(
        self,
        db: Database,
        images: ImageStore,
        home: Path,
        key: SecretStr | None = None,
        kept: AuditHead | None = None,
    ) -> None:
        """home: where files of inspections are. kept: the newest record as it is remembered outside the database."""
        self._db, self._images, self._key, self._kept, self._home = db, images, key, kept, home

    def of(self, inspection_id: str) -> list[AuditRecord]:
        """The records of one inspection, oldest first; [] if none."""
        with self._db.connection() as conn:
            rows = conn.execute(select(t.audit).where(_A.inspection_id == inspection_id).order_by(_A.seq)).all()
        return [_record(row) for row in rows]

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest record; (0, 64 zeros) if there is none. A copy kept elsewhere serves as proof."""
        with self._db.connection() as conn:
            row = t.find(conn, t.audit, order=[_A.seq.desc()])
        return (int(row.seq), str(row.hash)) if row else (0, GENESIS)

    # -- export

    def export(self, inspection_id: str | None = None, since: str | None = None, by: str = "") -> Iterator[bytes]:
        """The lines of an export, each ending in a newline: of one inspection, since a point in time, or of everything.

        Records in between that were not selected appear as digests only. Raises UnknownRecordError (no such inspection) or
        InputError (`since` is not a time) before the first line.
        """
        if inspection_id is not None and since is not None:
            raise InputError("an export is of one inspection or since a time, not both")
        moment = None if since is None else to_utc(since)
        if inspection_id is not None and not (inspection_id and self.of(inspection_id)):
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
            for row in _streamed(conn, first):
                record = _record(row)
                last, head = record.seq, record.hash
                if inspection_id in (None, record.inspection_id):
                    content = _content(row)
                    gone = {"content": None, "removed": True}
                    yield line(asdict(record) | (gone if content is GONE else {"content": content}))
                else:
                    yield line({"seq": record.seq, "link": record.record_sha256})
        end = {"end": last, "hash": head, "lines": count, "sha256": digest.hexdigest()}
        yield canonical(end | {"seal": self._seal(end)}).encode() + b"\n"

    def _seal(self, end: dict[str, Any]) -> str | None:
        if self._key is None:
            return None
        return hmac.new(self._key.get_secret_value().encode(), canonical(end).encode(), "sha256").hexdigest()

    # -- checks

    def verify_store(self, photos: bool = False, artefacts: bool = False) -> Checked:
        """Check every record of this home against the chain, and that nothing was filed, decided or set without a record.

        Goes on to the end whatever it finds. photos: also read every inspected photo; artefacts: also read every file of
        the reports; each is compared with its sha256 (slow).
        """
        # before the snapshot: whoever files meanwhile moves the head past it
        kept = self._kept.read() if self._kept is not None else None
        with self._db.snapshot() as conn:
            return _StoreCheck(conn, self._images, self._home, photos, artefacts, kept).run()

    def verify_newest(self, most: int) -> Checked:
        """Check the newest records alone, against the chain and what they record: quick, however long the chain is."""
        kept = self._kept.read() if self._kept is not None else None
        with self._db.snapshot() as conn:
            return _StoreCheck(conn, self._images, self._home, False, False, kept).newest(most)

    def filed(self, inspection_id: str) -> AuditRecord:
        """The record of a filed inspection.

        Raises UnknownRecordError (nothing filed), TamperedError (the record, the report, or what pictures are drawn from is
        not what was filed).
        """
        with self._db.connection() as conn:
            of = _ALL.where(_A.inspection_id == inspection_id, _A.kind == FILED).order_by(_A.seq).limit(1)
            row = conn.execute(of).first()
            previous = GENESIS if row is None else _hash_before(conn, row.seq)
        if row is None:
            raise UnknownRecordError(
                f"no inspection {inspection_id!r} in the audit; `refdiff inspections list` shows them"
            )
        record = _record(row)
        if problem := ChainCheck(record.seq - 1, previous).record(record, _content(row)):
            raise TamperedError(f"{problem}; run `refdiff audit verify --store`")
        with self._db.connection() as conn:
            kept = t.get(conn, t.differences, inspection_id=inspection_id)
            if not row.removed and (wrong := _difference_problem(record, kept)):
                raise TamperedError(f"inspection {inspection_id}: {wrong}; restore it from a backup")
        return record

    def not_as_filed(self, inspection_id: str, *names: str) -> dict[str, str] | None:
        """What is wrong with files of a filed inspection: file name -> words; {} if nothing is.

        names: of files that were filed; default: all. None: it was filed before files had digests. Raises as `filed`.
        """
        filed = self.filed(inspection_id).facts.get(ARTEFACTS)
        if filed is None:
            return None
        folder = inspection_folder(self._home, inspection_id)
        found = {name: not_as_filed(folder / name, filed.get(name, "")) for name in names or filed}
        return {name: wrong for name, wrong in found.items() if wrong}

    def changes(
        self, kind: str | None = None, subject: str | None = None, since: str | None = None, limit: int = -1
    ) -> list[AuditRecord]:
        """The newest `limit` (-1: all) records of changes, oldest first. subject: how it begins, e.g. a product's name."""
        newest = select(t.audit).where(_A.inspection_id == "").order_by(_A.seq.desc())
        if kind is not None:
            newest = newest.where(_A.kind == kind)
        if subject is not None:  # facts are canonical JSON, in which a quote within a text has a backslash before it
            begins = f'"subject":{canonical(subject)[:-1]}'
            newest = newest.where(
                func.replace(_A.facts, begins, "") != _A.facts
            )  # unlike LIKE, tells A from a everywhere
        if limit >= 0:
            newest = newest.limit(limit)
        with self._db.connection() as conn:
            first = 1 if since is None else _entry(conn, None, to_utc(since))[0]
            return [_record(row) for row in conn.execute(newest.where(_A.seq >= first)).all()][::-1]

    def hash_at(self, seq: int) -> str | None:
        """Hash of the chain up to record `seq`; None if there is no such record."""
        with self._db.connection() as conn:
            return conn.scalar(select(_A.hash).where(_A.seq == seq))

    def inspection_at(self, seq: int) -> str | None:
        """The inspection that record `seq` belongs to; None if there is no such record."""
        with self._db.connection() as conn:
            return conn.scalar(select(_A.inspection_id).where(_A.seq == seq))

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


_A, _I = t.audit.c, t.inspections.c
_SAYS = t.audit.alias("says")
_ALL = select(
    t.audit,
    _I.report,
    ((_A.kind == FILED) & exists().where(_SAYS.c.inspection_id == _A.inspection_id, _SAYS.c.kind == REMOVED)).label(
        "removed"
    ),
).select_from(t.audit.outerjoin(t.inspections, (_A.kind == FILED) & (_I.inspection_id == _A.inspection_id)))
_AT_ONCE = 500  # records that are read ahead


def _streamed(conn: Connection, first: int = 0) -> Iterator[Row[Any]]:
    """The records from that number on, with the reports of those that were filed."""
    return iter(conn.execute(_ALL.where(_A.seq >= first).order_by(_A.seq), execution_options={"yield_per": _AT_ONCE}))


def _hash_before(conn: Connection, seq: int) -> str:
    before = select(_A.hash).where(_A.seq < seq).order_by(_A.seq.desc()).limit(1)
    return conn.scalar(before) or GENESIS


def _entry(conn: Connection, inspection_id: str | None, since: str | None) -> tuple[int, str]:
    """Where an export enters the chain: number of its first record and the hash before it."""
    if inspection_id is not None:
        first = conn.scalar(select(func.min(_A.seq)).where(_A.inspection_id == inspection_id))
    elif since is not None:
        # Records dated before an earlier one (clock put back) may be of any later time: those that follow the last record
        # surely from before `since` belong to the export.
        latest = func.max(_A.at).over(order_by=_A.seq, rows=(None, -1))
        dated = select(_A.seq, _A.at, func.coalesce(latest, "").label("latest")).subquery()
        begun = conn.scalar(select(func.min(_A.seq)).where(_A.at >= since))
        surely_before = select(func.max(dated.c.seq)).where(dated.c.at >= dated.c.latest)
        if begun is not None:
            surely_before = surely_before.where(dated.c.seq < begun)
        first = (conn.scalar(surely_before) or 0) + 1
    else:
        first = conn.scalar(select(func.min(_A.seq)))
    if first is None:  # nothing selected: an export without records, at the chain's end
        first = (conn.scalar(select(func.max(_A.seq))) or 0) + 1
    return int(first), _hash_before(conn, first)


class _StoreCheck:
    """One pass over the records of a home."""

    def __init__(
        self,
        conn: Connection,
        images: ImageStore,
        home: Path,
        photos: bool,
        artefacts: bool,
        kept: tuple[int, str] | None,
    ) -> None:
        self._kept = kept
        self._conn, self._images, self._home = conn, images, home
        self._photos, self._artefacts = photos, artefacts
        self._problems: list[Problem] = []
        self._notes: list[str] = []
        self._known: dict[str, dict[str, str | None]] = {}  # kind -> subject -> digest of its newest state
        self._judged_by: dict[str, set[str]] = {}  # product -> digests of all states it had
        self._without_digests = 0
        self._knows_specifications = True  # all that there ever were

    def run(self) -> Checked:
        check, held, head, latest = ChainCheck(), 0, GENESIS, None
        for row, beside in _with_what_they_are_of(self._conn):
            found = self._row(check, row, beside)
            self._problems += found
            held += not found
            if not self._problems:
                head = check.hash
            if latest is not None and row.at < latest:
                self._notes.append(
                    f"record {row.seq} is dated {row.at}, earlier than the record before it ({latest}): "
                    "the clock was put back"
                )
            latest = row.at
        end = check.end(last_given(self._conn))
        self._problems += [
            *([end] if end else []),
            *_unrecorded(self._conn),
            *self._cut_off(),
            *self._unlike_present(),
            *self._keys(),
        ]
        if self._without_digests:
            self._notes.append(f"{self._without_digests} inspections were filed before their files had digests: "
                               "the files of those cannot be checked")  # fmt: skip
        return Checked.of(held, head, self._problems, self._notes)

    def newest(self, most: int) -> Checked:
        """The same of the newest records, without what only all of them together tell."""
        last = int(self._conn.scalar(select(func.max(_A.seq))) or 0)
        first = max(1, last - most + 1)
        check, held = ChainCheck(first - 1, _hash_before(self._conn, first)), 0
        self._knows_specifications = first == 1
        for row, beside in _with_what_they_are_of(self._conn, first):
            found = self._row(check, row, beside)
            self._problems += found
            held += not found
        end = check.end(last_given(self._conn))
        self._problems += [*([end] if end else []), *self._cut_off()]
        return Checked.of(held, check.hash, self._problems, [])

    def _row(self, check: ChainCheck, row: Row[Any], beside: _Beside) -> list[Problem]:
        try:
            record, content = _record(row), _content(row)
            problem = check.record(record, content) or _agrees(beside, record, content)
        except (InputError, ValueError, RecursionError):
            check.seq, check.hash = int(row.seq), str(row.hash)
            return [Problem(f"record {row.seq}", row.seq, row.inspection_id, "it cannot be read any more")]
        found = [problem] if problem else []
        if record.kind == FILED:
            wrong = self._filed(record, content is GONE, beside)
            found += [Problem(f"record {record.seq}", record.seq, record.inspection_id, w) for w in wrong]
        elif not record.inspection_id:
            self._changed(record, content)
        return found

    def _filed(self, record: AuditRecord, removed: bool, beside: _Beside) -> Iterator[str]:
        """What is wrong with a filed inspection besides its records."""
        judged_by = record.facts.get("specification")
        product = str(record.facts.get("product"))
        if isinstance(judged_by, dict) and self._knows_specifications:
            known = self._judged_by.get(product, set()) | {NOTHING_SET}
            if judged_by.get("sha256") not in known:
                yield f"it was judged by a specification of product {product!r} that no record tells of"
        if removed:
            return
        sha256 = str(record.facts.get("query_sha256") or "")
        if self._photos and sha256:
            try:
                self._images.get(sha256)
            except RefDiffError as e:
                yield f"its photo: {e}"
        if wrong := _difference_problem(record, beside.of(t.differences).get(record.inspection_id)):
            yield wrong
        filed = record.facts.get(ARTEFACTS)
        self._without_digests += filed is None
        if self._artefacts and isinstance(filed, dict):
            folder = inspection_folder(self._home, record.inspection_id)
            yield from (wrong for name, digest in filed.items() if (wrong := not_as_filed(folder / name, digest)))

    def _changed(self, record: AuditRecord, content: Any) -> None:
        """Follow what decides through the records of its changes."""
        if record.kind == PRESENT:
            states = {kind: dict(subjects) for kind, subjects in content.items()}
        else:
            states = {record.kind: {str(record.facts["subject"]): record.facts["after"]}}
        for kind, subjects in states.items():
            self._known.setdefault(kind, {}).update(subjects)
            if kind == PRODUCT:
                for product, digest in subjects.items():
                    self._judged_by.setdefault(product, set()).add(str(digest))

    def _unlike_present(self) -> Iterator[Problem]:
        """Where what decides now is not what was recorded last."""
        now: dict[str, dict[str, str | None]] = {k: dict(v) for k, v in present(self._conn).items()}
        if not self._known:  # a home in which nothing was set since changes are recorded
            if any(now.values()):
                self._notes.append("specifications and calibrations were set before changes were recorded: not checked")
            return
        for kind, subjects in now.items():
            recorded = self._known.get(kind, {})
            for subject in sorted({*subjects, *recorded}):
                nothing = NOTHING_SET if kind == PRODUCT else None
                if subjects.get(subject, nothing) != (recorded.get(subject) or nothing):
                    what = (
                        f"the {_KIND[kind]} of {subject} is not the one that was recorded last: changed by other means"
                    )
                    yield Problem(f"table {kind}s", None, None, what)

    def _cut_off(self) -> Iterator[Problem]:
        if self._kept is not None and (wrong := missing_from(self._conn, self._kept)):
            yield Problem("the end", None, None, wrong)

    def _keys(self) -> Iterator[Problem]:
        """Where the keys are not what was recorded last."""
        keys = keys_of(self._conn)
        recorded = self._known.get(KEY, {})
        for key_id in sorted({*keys, *recorded}):
            key, digest = keys.get(key_id), recorded.get(key_id)
            if key and key_id not in recorded:
                self._notes.append(f"key {key_id} ({key.name}, {key.role}) was added without a record: before keys were "
                                   "recorded, or by other means")  # fmt: skip
            elif digest != (state_digest(key_state(key)) if key else None):
                what = f"the key {key_id} is not the one that was recorded last: changed by other means"
                yield Problem("table keys", None, None, what)


_KIND = {PRODUCT: "specification", CALIBRATION: "calibration", NETWORK: "network"}


class _Beside:
    """What some records are of, as the tables have it: one statement a table for all of them."""

    def __init__(self, conn: Connection, records: Sequence[Row[Any]]) -> None:
        self._conn, self._found = conn, dict[tuple[str, str], dict[Any, Any]]()
        self._ids = {row.inspection_id for row in records if row.inspection_id}

    def of(self, table: Table, key: str = "inspection_id") -> dict[Any, Row[Any]]:
        """The rows of their inspections, by a column; without the reports."""
        if (table.name, key) not in self._found:
            columns = [c for c in table.c if c is not _I.report]
            rows = self._conn.execute(select(*columns).where(table.c.inspection_id.in_(self._ids))).all()
            self._found[table.name, key] = {row._mapping[key]: row for row in rows}
        found: dict[Any, Row[Any]] = self._found[table.name, key]
        return found

    def filed_as(self, inspection_id: str) -> str | None:
        """The digest of the report that was filed first."""
        if ("audit", "") not in self._found:
            which = select(_A.inspection_id, _A.content_sha256).where(_A.inspection_id.in_(self._ids), _A.kind == FILED)
            rows = self._conn.execute(which.order_by(_A.seq.desc())).all()
            self._found["audit", ""] = {row.inspection_id: row for row in rows}
        filed = self._found["audit", ""].get(inspection_id)
        return None if filed is None else str(filed.content_sha256)


def _with_what_they_are_of(conn: Connection, first: int = 0) -> Iterator[tuple[Row[Any], _Beside]]:
    streamed = conn.execute(_ALL.where(_A.seq >= first).order_by(_A.seq), execution_options={"yield_per": _AT_ONCE})
    for rows in streamed.partitions():
        beside = _Beside(conn, rows)
        yield from ((row, beside) for row in rows)


def _difference_problem(record: AuditRecord, row: Row[Any] | None) -> str:
    """What is wrong with what the pictures of a filed inspection are drawn from; "" if nothing is."""
    if (digest := record.facts.get(DIFFERENCE)) is None:  # filed before it was kept
        return ""
    if row is None:
        return "its anomaly map is missing"
    same = hashlib.sha256(row.picture).hexdigest() == digest
    return "" if same else "its anomaly map is not the one that was filed"


def _agrees(beside: _Beside, record: AuditRecord, content: Any) -> Problem | None:
    """Check that the stores still agree with a record; the problem, or None."""
    if record.kind == FILED:
        listed = beside.of(t.inspections).get(record.inspection_id)
        if listed is None:
            return Problem(f"record {record.seq}", record.seq, record.inspection_id, "the inspection is missing")
        filed = {k: record.facts.get(k, getattr(listed, k)) for k in ("part_id", "product", "verdict")}
        filed["photo"] = record.facts.get("query_sha256") if content is GONE else content.get("query_sha256")
        if content is not GONE and content.get("created_at"):
            filed["created_at"] = to_utc(content["created_at"])
        differs = [_LISTED.get(k, k) for k, value in filed.items() if getattr(listed, k) != value]
        what = f"the {' and '.join(differs)} it is listed with is not the one that was filed"
        return Problem(f"record {record.seq}", record.seq, record.inspection_id, what) if differs else None
    if record.kind == REMOVED:
        if beside.filed_as(record.inspection_id) == content.get("report_sha256"):
            return None
        what = "it removed another report than the one that was filed"
        return Problem(f"record {record.seq}", record.seq, record.inspection_id, what)
    if record.kind in _TABLES:
        table, key = _TABLES[record.kind]
        row = beside.of(table, key).get(content.get(key))
        if row is not None and all(row._mapping[k] == v for k, v in content.items()):
            return None
        what = f"what the table {table.name} says of it is not what was recorded"
        return Problem(f"record {record.seq}", record.seq, record.inspection_id, what)
    if record.kind != DISPOSITION:
        return None
    row = beside.of(t.dispositions).get(record.inspection_id)
    named = ("decision", "by", "reason", "created_at", "judged", "as_reference")
    said = [content.get(k) for k in named[:-1]] + [bool(content.get("as_reference"))]
    if row is not None and said == [getattr(row, "decided_by" if k == "by" else k) for k in named]:
        return None
    what = "the disposition was removed" if row is None else "the disposition is not the one that was recorded"
    return Problem(f"record {record.seq}", record.seq, record.inspection_id, what)


_LISTED = {"part_id": "part id", "created_at": "time"}  # columns as messages call them
_TABLES = {  # kind of records -> the table of what they record, and which of its rows that is
    BLIND: (t.blind_checks, "inspection_id"),
    LEARNED: (t.learned, "inspection_id"),
    APPROVAL: (t.approvals, "inspection_id"),
    NAMED: (t.defect_names, "seq"),
}
_RECORDED = (  # table, which of its rows have a record, that of which kind, what they are
    (t.inspections, true(), FILED, "filed"),
    (t.dispositions, true(), DISPOSITION, "decided"),
    (t.blind_checks, t.blind_checks.c.judged.is_not(None), BLIND, "judged blind"),
    (t.approvals, true(), APPROVAL, "approved as a reference"),
)


def _unrecorded(conn: Connection) -> Iterator[Problem]:
    for table, which, kind, done in _RECORDED:
        recorded = select(_A.inspection_id).where(_A.kind == kind)
        found = conn.scalars(select(table.c.inspection_id).where(which, table.c.inspection_id.not_in(recorded))).all()
        yield from (_without_record(table, inspection_id, done) for inspection_id in found)
    said: set[int] = set()
    for content in conn.scalars(select(_A.content).where(_A.kind == NAMED)).all():
        # a record that was tampered with is found by itself, and records nothing
        with contextlib.suppress(ValueError, RecursionError, TypeError, LookupError):
            said.add(json.loads(content)["seq"])
    for seq, inspection_id in conn.execute(select(t.defect_names.c.seq, t.defect_names.c.inspection_id)).all():
        if seq not in said:
            yield _without_record(t.defect_names, inspection_id, "named in one of its findings")


def _without_record(table: Table, inspection_id: str, done: str) -> Problem:
    what = f"it is {done} without a record: added by other means, or its record was removed"
    return Problem(f"table {table.name}", None, inspection_id, what)


def _record(row: Row[Any]) -> AuditRecord:
    return AuditRecord(**t.fields(row, AuditRecord) | {"facts": _json(row, "facts")})


def _content(row: Row[Any]) -> Any:
    """JSON data; `GONE` for a report that was removed, which a record says."""
    if row.removed and row.report == NO_REPORT:
        return GONE
    return _json(row, "report" if row.kind == FILED else "content")


def _json(row: Row[Any], column: str) -> Any:
    """Raises TamperedError: what was written here was JSON."""
    text = row._mapping[column]
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as e:
        raise TamperedError(f"tampered with at record {row.seq}: its {column} cannot be read") from e
