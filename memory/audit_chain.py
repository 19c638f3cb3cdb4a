"""The audit chain: every step in the life of an inspection, and every change of what decides (`changes.py`).

Each is a record that carries the hash of all before it.

A record says what happened (who, when, to which inspection, the facts) and holds the sha256 of its content: the filed
report, the disposition, a blind answer, a specification. `record_sha256` is the sha256 of the record as canonical JSON, and

    hash = sha256(hash of the record before + record_sha256),    64 zeros before the first

so a record that was changed, removed, added or moved is detected at its place. A record that must not be disclosed still
links its neighbours by its `record_sha256` alone. Records are appended in the transaction that writes what they describe:
neither exists without the other, whatever crashes, and concurrent processes cannot interleave.

The chain proves that the records agree with each other. An older copy of a hash kept elsewhere (an export, or its seal)
proves that nobody rewrote all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, case, func, insert, select, update

from refdiff.memory.database import tables as t
from refdiff.memory.rows.digests import canonical, content_digest
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import RemovedError

GENESIS = "0" * 64
FILED, DISPOSITION = "filed", "disposition"
REMOVED = "removed"  # by `refdiff prune`: its content names what was removed with the report
# facts of a filed report: sha256 of each file of its folder, by name, and of what further pictures are drawn from
ARTEFACTS, DIFFERENCE = "artefacts", "difference_sha256"

NO_REPORT = "{}"  # kept in place of a removed report
GONE: Any = object()  # content that was removed: the record that says so is checked instead

log = logging.getLogger(__name__)
_key: ContextVar[str | None] = ContextVar("used_key", default=None)


@dataclass(frozen=True)
class AuditRecord:
    """One step in the life of an inspection, or one change of what decides."""

    seq: int  # 1, 2, 3, ... without gaps
    # "filed", "disposition", "blind_check", "approval", "enrolment_given_up", "decided_again", "learned", "removed"; of a
    # change: "product", ...
    kind: str
    inspection_id: str  # "" for a change
    at: str  # ISO 8601, UTC
    by: str  # the person or program that did it
    facts: dict[str, Any]  # JSON data; `by_key`: id of the API key that the person or program used
    content_sha256: str  # of the canonical JSON of the content
    hash: str  # of the chain up to and including this record

    @property
    def record_sha256(self) -> str:
        """sha256 (hex) of the record without its hash, as canonical JSON."""
        plain = asdict(self)
        del plain["hash"]
        return content_digest(plain)


@dataclass(frozen=True)
class Problem:
    """A place where a chain does not hold."""

    where: str  # "record 3", "line 5"
    seq: int | None  # number of the record, if it concerns one
    inspection_id: str | None
    what: str  # in words

    def __str__(self) -> str:
        about = f" (inspection {self.inspection_id})" if self.inspection_id else ""
        return f"{self.where}{about}: {self.what}"


def linked(previous: str, record_sha256: str) -> str:
    """The hash of the chain after a record."""
    return hashlib.sha256(f"{previous}{record_sha256}".encode("ascii", "replace")).hexdigest()


_LAST = select(t.audit.c.seq, t.audit.c.hash).order_by(t.audit.c.seq.desc()).limit(1)
# the end may lag behind: an earlier version that still runs, or a restore, adds records without moving it
_END = case((t.audit_end.c.seq < bindparam("last"), bindparam("last")), else_=t.audit_end.c.seq)
_GIVE_NUMBER = update(t.audit_end).values(seq=_END + 1).returning(t.audit_end.c.seq)
_MAKE_END = insert(t.audit_end)
_ADD = insert(t.audit)


@contextlib.contextmanager
def using_key(key_id: str | None) -> Iterator[None]:
    """What is recorded inside the block names the API key that its author used; names alone may repeat over the years."""
    token = _key.set(key_id)
    try:
        yield
    finally:
        _key.reset(token)


def used_key() -> str | None:
    """Id of the API key in use here; None for a person at the command line, or on a server without keys."""
    return _key.get()


def append(
    conn: Connection,
    kind: str,
    inspection_id: str,
    by: str,
    content: Any,
    *,
    facts: Mapping[str, Any] | None = None,
    keep_content: bool = True,
) -> AuditRecord:
    """Add a record within the caller's write transaction.

    content: JSON data; kept in the record unless it is kept elsewhere (`keep_content=False`: the filed report).
    """
    if (key_id := used_key()) is not None:
        facts = {"by_key": key_id, **(facts or {})}
    by = by.encode("utf-8", "replace").decode()
    last = conn.execute(_LAST).first()
    seq = _next_number(conn, last.seq if last else 0)
    bare = AuditRecord(seq, kind, inspection_id, utc_now(), by, dict(facts or {}), content_digest(content), "")
    record = replace(bare, hash=linked(last.hash if last else GENESIS, bare.record_sha256))
    kept = canonical(content) if keep_content else None
    conn.execute(_ADD, vars(record) | {"facts": canonical(record.facts), "content": kept})
    return record


def _next_number(conn: Connection, last: int) -> int:
    """The number of the record after number `last`: higher than any that was ever given."""
    given: int | None = conn.scalar(_GIVE_NUMBER, {"last": last})
    if given is None:
        log.warning(
            "how far the audit chain goes was not kept; it is counted from its last record: run `refdiff doctor`"
        )
        given = last + 1
        conn.execute(_MAKE_END, {"seq": given})
    return given


def append_filed(conn: Connection, inspection_id: str, report: Mapping[str, Any], **more: Any) -> AuditRecord:
    """Add the record of a filed report; the report itself stays where it was filed. more: further facts."""
    by = str(report.get("requested_by") or "unknown")
    facts = report_facts(report) | more
    return append(conn, FILED, inspection_id, by, report, facts=facts, keep_content=False)


def report_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What an auditor asks for first: the request, the photo, the goldens, the tools, versions and weights."""
    kept = ("part_id", "product", "request", "verdict", "query_sha256", "specification", "judge", "software")
    facts: dict[str, Any] = {name: report[name] for name in kept if name in report}
    references = report.get("references") or ([report["reference"]] if report.get("reference") else [])
    facts["goldens"] = [{k: r.get(k) for k in ("golden_id", "sha256")} for r in references if isinstance(r, dict)]
    facts["tools"] = [c.get("tool") for c in report.get("tool_trace") or [] if isinstance(c, dict)]
    return facts


def last_given(conn: Connection) -> int:
    """The highest number that a record was ever given, also one that was removed; 0 before the first."""
    return int(conn.execute(select(func.max(t.audit_end.c.seq))).scalar() or 0)


def check_not_removed(conn: Connection, inspection_id: str) -> None:
    """Raises RemovedError if `refdiff prune` removed that inspection."""
    a, i = t.audit.c, t.inspections.c
    said = conn.execute(select(a.at, a.by).where(a.inspection_id == inspection_id, a.kind == REMOVED).limit(1)).first()
    if said is not None:
        of = select(i.part_id, i.verdict, i.created_at).where(i.inspection_id == inspection_id)
        filed = conn.execute(of).one()
        raise RemovedError(
            f"inspection {inspection_id} (part {filed.part_id}, {filed.verdict}, filed on {filed.created_at[:10]}) was "
            f"removed on {said.at[:10]} by prune ({said.by}); its audit records remain: "
            f"refdiff audit export {inspection_id} --out FILE"
        )


def adopt_earlier(conn: Connection) -> None:
    """Migration: add records for everything filed and decided before the chain existed, in the order of filing."""
    i, d = t.inspections.c, t.dispositions.c
    rows = conn.execute(
        select(i.inspection_id, i.report, d.decision, d.decided_by, d.reason, d.created_at)
        .select_from(t.inspections.outerjoin(t.dispositions))
        .order_by(i.seq)
    ).all()
    for row in rows:
        append_filed(conn, row.inspection_id, json.loads(row.report), adopted=True)
        if row.decision is not None:
            decided = {"decision": row.decision, "by": row.decided_by, "reason": row.reason,
                       "created_at": row.created_at, "inspection_id": row.inspection_id}  # fmt: skip
            append(conn, DISPOSITION, row.inspection_id, row.decided_by, decided, facts={"adopted": True})


class ChainCheck:
    """Follows a chain record by record."""

    def __init__(self, seq: int = 0, previous: str = GENESIS) -> None:
        """Start after record `seq`, whose hash is `previous`."""
        self.seq, self.hash = seq, previous  # of the last record

    def record(self, record: AuditRecord, content: Any, place: str = "") -> Problem | None:
        """Check the next record and its content; the problem, or None. place: where it stands, for the message.

        content: JSON data; `GONE` where it was removed, which the caller must find a record of.

        After a problem the chain is followed from what the record says of itself, so later problems are found too.
        """
        what = self._wrong(record, content)
        self.seq, self.hash = record.seq, record.hash
        return Problem(place or f"record {record.seq}", record.seq, record.inspection_id, what) if what else None

    def _wrong(self, record: AuditRecord, content: Any) -> str:
        if record.seq != self.seq + 1:
            return self._out_of_order(record.seq)
        if content is not GONE and content_digest(content) != record.content_sha256:
            return f"its {_CONTENT.get(record.kind, 'content')} is not the one that was recorded"
        if linked(self.hash, record.record_sha256) != record.hash:
            return "it was changed, or a record before it was exchanged"
        return ""

    def link(self, seq: int, record_sha256: str, place: str) -> Problem | None:
        """Follow a record of which only the digest is known; the problem, or None."""
        problem = None if seq == self.seq + 1 else Problem(place, seq, None, self._out_of_order(seq))
        self.seq, self.hash = seq, linked(self.hash, record_sha256)
        return problem

    def end(self, last: int, place: str = "the end") -> Problem | None:
        """Check that record number `last` was reached; the problem, or None."""
        if last == self.seq:
            return None
        if last < self.seq:
            what = f"{last} records are counted, but there are more, up to {self.seq}: added by other means"
            return Problem(place, last + 1, None, f"{what}, such as a restore or an earlier refdiff that still runs")
        missing = f"record {last} is" if last == self.seq + 1 else f"records {self.seq + 1} to {last} are"
        return Problem(place, self.seq + 1, None, f"{missing} missing")

    def _out_of_order(self, seq: int) -> str:
        expected = self.seq + 1
        if seq > expected:
            gone = f"record {expected}" if seq == expected + 1 else f"records {expected} to {seq - 1}"
            return f"record {expected} should come here: {gone} removed or moved"
        return f"record {expected} should come here: record {seq} was moved or repeated"


_CONTENT = {FILED: "report", DISPOSITION: "disposition"}
