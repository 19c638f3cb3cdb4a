"""Changes of what decides: specifications, calibrations, networks, golden samples, keys, settings, inspected photos.

Each has its audit record.

A record of a change is about no inspection: its `inspection_id` is "". Its facts are the subject, the digest before and
after, and the change in words; its content is both states, small JSON data. What is in the record database is written in
the transaction of its record (`changing`, `record_change`). What is in the golden bank is written after its record is on
the disk (`recorded`), so a crash can leave a record without its change, never a change without its record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from sqlalchemy import Connection, Row, select

from refdiff.memory.audit_chain import AuditRecord, append
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.kinds import ChangeKind
from refdiff.memory.rows.digests import canonical, content_digest, product_state
from refdiff.model.errors import UnavailableError

PRODUCT, CALIBRATION, NETWORK, GOLDEN, KEY, SETTINGS, CAPTURE, JOB, PRUNE = get_args(ChangeKind)
PRESENT = "present"  # what an older version had kept without records, digests alone

_VALUE, _CHANGE = 160, 1000  # most characters of a value and of a change in words

State = Mapping[str, Any]  # JSON data

_A = t.audit.c
_ANY_CHANGE = select(_A.seq).where(_A.inspection_id == "").limit(1)


@contextlib.contextmanager
def changing(db: Database) -> Iterator[Connection]:
    """A write transaction for a change and its record."""
    with db.transaction() as conn:
        record_present(conn)
        yield conn


def record_change(
    conn: Connection, kind: str, subject: str, by: str, before: State | None, after: State | None, **more: Any
) -> AuditRecord:
    """Add the record of a change within the caller's `changing`.

    subject: what was changed, e.g. a product's name. before, after: its states; None: it was not there. more: further facts.
    """
    facts = {"subject": subject, "before": state_digest(before), "after": state_digest(after),
             "change": in_words(before, after)}  # fmt: skip
    content = {"before": before, "after": after}
    return append(conn, kind, "", by or "unknown", content, facts=facts | more)


@contextlib.contextmanager
def recorded(
    db: Database | None, kind: str, subject: str, by: str, before: State | None, after: State | None
) -> Iterator[None]:
    """Record a change that the block makes in another store. If the block fails, a second record takes the first back.

    db: None for a store that belongs to no home; nothing is recorded then.
    """
    if db is None:
        yield
        return
    with changing(db) as conn:
        record_change(conn, kind, subject, by, before, after)
    try:
        yield
    except BaseException as e:
        failed = f"{type(e).__name__}: {e}"[:_CHANGE]
        # a disk that is full refuses this record too; then the first one stays, which `audit verify` reports
        with contextlib.suppress(UnavailableError), changing(db) as conn:
            record_change(conn, kind, subject, by, after, before, failed=failed)
        raise


def record_settings(db: Database, settings: State, by: str) -> None:
    """Record the settings that change verdicts, unless they are those that were recorded last."""
    with db.connection() as conn:
        if _last_settings(conn) == settings:
            return  # the usual case takes no write lock
    with changing(db) as conn:
        before = _last_settings(conn)
        if before != settings:
            record_change(conn, SETTINGS, SETTINGS, by, before, settings)


def _last_settings(conn: Connection) -> State | None:
    row = t.find(conn, t.audit, _A.inspection_id == "", _A.kind == SETTINGS, order=[_A.seq.desc()])
    try:
        found: State | None = json.loads(row.content)["after"] if row else None
    except (ValueError, KeyError, TypeError):  # tampered with, which `audit verify` reports; no reason to stop a line
        return None
    return found


# -- states


def product_state_of(row: Row[Any]) -> dict[str, Any]:
    """The same of a row of `products`."""
    window = None if row.window_lo is None else (row.window_lo, row.window_hi)
    return product_state(row.scale_mm_per_px, window, json.loads(row.spec), json.loads(row.component_names), row.kind)


def calibration_state(row: Row[Any]) -> dict[str, Any]:
    """A row of `calibrations`, with a digest in place of its hundreds of numbers."""
    extra = json.loads(row.extra)
    measured = [json.loads(row.scores), extra.get("peaks"), extra.get("similarities")]
    # earlier versions measured none of these, and their digests stay what they are
    measured += [extra[name] for name in ("levels", "unregistered", "edges") if name in extra]
    return {
        "key": row.key, "parts": row.n, "references": row.reference_count, "alpha": extra.get("alpha"),
        "pixel_threshold": row.pixel_threshold, "created_at": row.created_at,
        "scores": content_digest(measured),
    } | _components(extra)  # fmt: skip


def _components(extra: dict[str, Any]) -> dict[str, str]:
    if "components" not in extra:  # nor did earlier versions count, and their digests stay what they are
        return {}
    return {"components": content_digest([extra["components"], extra["per_miscount"]])}


def calibration_subject(row: Row[Any]) -> str:
    return f"{row.product}, {row.key[:12]}"


def network_state(row: Row[Any]) -> dict[str, Any]:
    """A row of `networks`, with the sha256 of its weights."""
    more = json.loads(row.more)
    state = {
        "sha256": row.sha256, "shared": row.shared, "created_at": row.created_at,
        "golden_samples": content_digest(more["trained_on"]),
    }  # fmt: skip
    if (confirmed := more.get("confirmed")) is None:  # of an earlier version
        return state
    learned_from = {"golden_samples": sum(map(len, more["trained_on"])), "confirmed_defects": len(confirmed)}
    return state | {"confirmed_defects": content_digest(confirmed), "learned_from": learned_from}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


NOTHING_SET = content_digest(product_state())


def present(conn: Connection) -> dict[str, dict[str, str]]:
    """Digests of all that decides in the main database now: kind -> subject -> sha256."""
    products = {r.name: content_digest(product_state_of(r)) for r in conn.execute(select(t.products)).all()}
    calibrations = conn.execute(select(t.calibrations)).all()
    networks = conn.execute(select(t.networks)).all()
    return {
        PRODUCT: {name: digest for name, digest in products.items() if digest != NOTHING_SET},
        CALIBRATION: {calibration_subject(r): content_digest(calibration_state(r)) for r in calibrations},
        NETWORK: {r.product: content_digest(network_state(r) | {"sha256": _sha256(r.weights)}) for r in networks},
    }


def record_present(conn: Connection) -> None:
    """In a home of an older version, record once what it had kept without records."""
    if conn.scalar(_ANY_CHANGE) is None:
        kept = present(conn)
        if any(kept.values()):
            append(conn, PRESENT, "", "refdiff", kept, facts={"change": "set before changes were recorded"})


# -- words


def state_digest(state: State | None) -> str | None:
    """sha256 (hex) of a state; None for None."""
    return None if state is None else content_digest(state)


def in_words(before: State | None, after: State | None) -> str:
    """What differs, e.g. `status: "active" -> "retired"; note: "" -> "old"`; cut off where it is long."""
    if after is None:
        return "removed"
    lines = list(_differences(before or {}, after, ""))
    words = "; ".join(lines) if lines else "the same again"
    words = words if len(words) <= _CHANGE else f"{words[:_CHANGE]}..."
    return words if before is not None else f"new: {words}"


def _differences(before: State, after: State, path: str) -> Iterator[str]:
    for name in sorted({*before, *after}):
        old, new, place = before.get(name), after.get(name), f"{path}{name}"
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{place}.")
        elif name not in before:
            yield f"{place}: {_short(new)}"
        else:
            yield f"{place}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}..."
