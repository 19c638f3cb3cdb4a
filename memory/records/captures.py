"""Captures: which photo was taken of which part, and when. All are kept; the one of a part taken last is inspected."""

from __future__ import annotations

import builtins
import difflib
import heapq
import itertools
import uuid
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select

from refdiff.memory.changes import CAPTURE, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.photos.image_store import check_sha256
from refdiff.memory.records.products import known_name
from refdiff.memory.rows.captures import Capture, normalise_part_id
from refdiff.memory.rows.products import check_scale
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import InputError, UnknownPartError, UnknownRecordError

_C = t.captures.c
_AT_ONCE = 500  # parameters of one statement
_NEAR_POOL = 2_000  # newest part ids among which the ones like an unknown id are sought
_COMPARED = 20  # of them, those that look most like it
_NEWEST_FIRST = (_C.created_at.desc(), _C.seq.desc())  # of a device, one may arrive after others that were taken later


class CaptureStore:
    """The captures of all parts."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self,
        part_id: str,
        product: str,
        sha256: str,
        scale_mm_per_px: float | None = None,
        filename: str = "",
        taken_at: str | None = None,
    ) -> Capture:
        """Record a photo of a part; the product is created if new.

        taken_at: ISO 8601, of a photo that arrives later than it was taken; default: now, which makes it the newest one.
        The same photo with the same scale as the part's newest capture returns that capture.
        Raises InputError (part id, product name, sha256, scale or time).
        """
        part_id = normalise_part_id(part_id)
        check_sha256(sha256)
        scale = check_scale(scale_mm_per_px)
        with self._db.transaction() as conn:
            product = known_name(conn, product)
            newest = _newest(conn, part_id, product)
            if newest and (newest.sha256, newest.scale_mm_per_px) == (sha256, scale):
                return newest
            now = utc_now()
            # the newest, also where the clock was set back meanwhile, unless it was taken earlier
            at = max(now, newest.created_at) if newest else now
            if taken_at is not None:
                at = min(to_utc(taken_at), now)
            t.insert_new(conn, t.products, {"name": product, "updated_at": now})
            capture = Capture(f"c-{uuid.uuid4().hex[:12]}", part_id, product, sha256, scale, filename, at)
            conn.execute(insert(t.captures), vars(capture))
        return capture

    def latest(self, part_id: str, product: str | None = None) -> Capture:
        """The newest capture of that part.

        Raises UnknownPartError (suggesting similar part ids), InputError if the part id exists in several products
        and none is given.
        """
        part_id = normalise_part_id(part_id)
        with self._db.connection() as conn:
            product = None if product is None else known_name(conn, product)
            of_part = select(_C.product).distinct().where(_C.part_id == part_id).order_by(_C.product)
            products = conn.scalars(of_part).all()
            newest_ids = [] if products else _newest_ids(conn)
            if product is None and len(products) > 1:
                raise InputError(f"part {part_id} is in the products {', '.join(products)}; say which product")
            newest = _newest(conn, part_id, product or products[0]) if products else None
        if not products:
            raise UnknownPartError(_unknown(part_id, newest_ids))
        if newest is None:
            raise UnknownPartError(
                f"part {part_id} has no capture in product {product}; it has in {', '.join(products)}"
            )
        return newest

    def history(self, part_id: str) -> list[Capture]:
        """All captures of that part in any product, newest first; [] for an unknown part."""
        with self._db.connection() as conn:
            return _captures(conn, [_C.part_id == normalise_part_id(part_id)])

    def stored(self, ids: Collection[str]) -> set[str]:
        """Those of the texts that are ids of captured parts."""
        found: set[str] = set()
        with self._db.connection() as conn:
            wanted = sorted(ids)
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                found.update(conn.scalars(select(_C.part_id).distinct().where(_C.part_id.in_(some))))
        return found

    def list(self, part_id: str | None = None, product: str | None = None) -> builtins.list[Capture]:
        """Captures, newest first."""
        with self._db.connection() as conn:
            return _captures(conn, [_C[k] == v for k, v in _wanted(conn, None, part_id, product).items()])

    def remove(
        self, capture_id: str | None = None, part_id: str | None = None, product: str | None = None, *, by: str
    ) -> builtins.list[Capture]:
        """Forget the captures that match all that is given; filed reports keep their photos. by: who, for the audit.

        Raises UnknownRecordError if there is none, InputError if nothing is given.
        """
        with changing(self._db) as conn:
            wanted = _wanted(conn, capture_id, part_id, product)
            if not wanted:
                raise InputError("name what to remove: a capture, a part or a product")
            where = [_C[name] == value for name, value in wanted.items()]
            gone = _captures(conn, where)[::-1]
            if not gone:
                raise UnknownRecordError(
                    f"no captured photo of {', '.join(wanted.values())}; see `refdiff captures list`"
                )
            for capture in gone:
                record_change(conn, CAPTURE, capture.capture_id, by, asdict(capture), None)
            conn.execute(delete(t.captures).where(*where))
        return gone

    def get(self, capture_id: str) -> Capture:
        """The capture of that id. Raises UnknownRecordError."""
        with self._db.connection() as conn:
            row = t.get(conn, t.captures, capture_id=capture_id)
        if row is None:
            raise UnknownRecordError(f"no capture {capture_id!r}; record the photo with `refdiff capture`")
        return _capture(row)


def _newest_ids(conn: Connection) -> list[str]:
    newest = select(_C.part_id).group_by(_C.part_id).order_by(func.max(_C.seq).desc()).limit(_NEAR_POOL)
    return [*conn.scalars(newest)]


def _unknown(part_id: str, others: list[str]) -> str:
    """The message about an unknown part, with the most similar ones of the others."""
    folded = {other.casefold(): other for other in others}
    wanted = part_id.casefold()
    pairs = _pairs(wanted)
    # comparing takes milliseconds a pair of long ids, so only those that share most pairs of characters are compared
    likely = heapq.nlargest(_COMPARED, folded, key=lambda other: len(pairs & _pairs(other)))
    near = difflib.get_close_matches(wanted, likely, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(folded[n] for n in near)}?" if near else "no part id looks like it."
    return f"no capture of part {part_id}; {hint} Record its photo with `refdiff capture --part {part_id} --product P IMAGE`"


def _pairs(text: str) -> set[str]:
    """Its neighbouring characters, and its ends: ids of one character have pairs too."""
    return {a + b for a, b in itertools.pairwise(f" {text} ")}


def _wanted(conn: Connection, capture_id: str | None, part_id: str | None, product: str | None) -> dict[str, str]:
    """What is given, by column."""
    given = {
        "capture_id": capture_id,
        "part_id": None if part_id is None else normalise_part_id(part_id),
        "product": None if product is None else known_name(conn, product),
    }
    return {name: value for name, value in given.items() if value is not None}


def _captures(conn: Connection, where: builtins.list[ColumnElement[bool]]) -> builtins.list[Capture]:
    """Newest first."""
    return [_capture(row) for row in conn.execute(select(t.captures).where(*where).order_by(*_NEWEST_FIRST)).all()]


def _newest(conn: Connection, part_id: str, product: str) -> Capture | None:
    row = t.find(conn, t.captures, _C.part_id == part_id, _C.product == product, order=_NEWEST_FIRST)
    return None if row is None else _capture(row)


def _capture(row: Row[Any]) -> Capture:
    return Capture(**t.fields(row, Capture))
