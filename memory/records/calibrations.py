"""Calibrations: the scores of a product's good samples against each other, per state of its bank."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, update

from refdiff.memory.changes import CALIBRATION, calibration_state, calibration_subject, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.rows.calibrations import Calibration, MarksFound, OfMap, packed_components, unpacked_components
from refdiff.memory.rows.products import check_product_name
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import RefDiffError

_C = t.calibrations.c


class CalibrationStore:
    """The calibrations of all products."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, calibration: Calibration, by: str = "refdiff") -> None:
        """Keep it as the product's latest; one of the same product and key is replaced.

        by: who asked for it, for the audit record; an inspection that found the last one stale does so by itself.
        """
        c = calibration
        product, created_at = check_product_name(c.product), to_utc(c.created_at)
        try:
            scores = json.dumps(c.scores, allow_nan=False)
            extra = _extra(c)
        except (TypeError, ValueError) as e:
            raise RefDiffError(f"calibration of {product!r} cannot be kept: {e}; calibrate again") from e
        new = {
            "product": product, "key": c.key, "scores": scores, "pixel_threshold": c.pixel_threshold, "n": c.n,
            "reference_count": c.references, "created_at": created_at, "seconds": c.seconds, "extra": extra,
        }  # fmt: skip
        with changing(self._db) as conn:
            known = _newest(conn, product)
            # not an upsert: the new row must also become the newest
            conn.execute(delete(t.calibrations).where(_C.product == product, _C.key == c.key))
            conn.execute(insert(t.calibrations), new)
            row = _newest(conn, product)
            assert row is not None
            before = calibration_state(known) if known else None
            record_change(conn, CALIBRATION, calibration_subject(row), by, before, calibration_state(row))

    def keep_marks(self, calibration: Calibration) -> None:
        """Keep the marks of a calibration, if it is still the one that was saved. They decide nothing."""
        c = calibration
        same = (_C.product == check_product_name(c.product), _C.key == c.key, _C.created_at == to_utc(c.created_at))
        with self._db.transaction() as conn:
            conn.execute(update(t.calibrations).where(*same).values(extra=_extra(c)))

    def latest(self, product: str) -> Calibration | None:
        """The product's newest calibration, stale or not; None if there is none."""
        with self._db.connection() as conn:
            row = _newest(conn, check_product_name(product))
        return None if row is None else _calibration(row)

    def get(self, product: str, key: str) -> Calibration | None:
        """The product's calibration of that key; None if there is none.

        Its bank may be again as it was some calibrations ago. Which false-reject rate to ask for was said of the product,
        not of that state of the bank: it is that of the latest one.
        """
        with self._db.connection() as conn:
            name = check_product_name(product)
            row = t.find(conn, t.calibrations, _C.product == name, _C.key == key, order=[_C.seq.desc()])
            latest = _newest(conn, name)
        return None if row is None or latest is None else replace(_calibration(row), alpha=_calibration(latest).alpha)


def _newest(conn: Connection, product: str) -> Row[Any] | None:
    return t.find(conn, t.calibrations, _C.product == product, order=[_C.seq.desc()])


def _extra(c: Calibration) -> str:
    more: dict[str, Any] = {
        "peaks": c.peaks,
        "similarities": c.similarities,
        "alpha": c.alpha,
        "golden_ids": c.golden_ids,
    }
    if c.levels:
        more["levels"] = c.levels
    if c.components:
        more |= {"components": packed_components(c.components), "per_miscount": c.per_miscount}
    if c.unregistered is not None:
        more["unregistered"] = c.unregistered
    if c.edges:
        more["edges"] = c.edges
    if c.maps:
        more["maps"] = [asdict(m) for m in c.maps]
    if c.marks:
        more["marks"] = [asdict(m) for m in c.marks]
    return json.dumps(more, allow_nan=False)


def _calibration(row: Row[Any]) -> Calibration:
    extra = json.loads(row.extra)
    return Calibration(
        product=row.product,
        key=row.key,
        scores=json.loads(row.scores),
        pixel_threshold=row.pixel_threshold,
        n=row.n,
        references=row.reference_count,
        created_at=row.created_at,
        seconds=row.seconds,
        peaks=extra.get("peaks", []),
        similarities=extra.get("similarities", []),
        levels=extra.get("levels", []),
        alpha=extra.get("alpha"),
        golden_ids=extra.get("golden_ids", []),
        components=unpacked_components(extra.get("components", [])),
        per_miscount=extra.get("per_miscount", 0.0),
        unregistered=extra.get("unregistered"),
        edges=extra.get("edges", []),
        maps=[OfMap(**m) for m in extra.get("maps", [])],
        # earlier versions kept p-values of marks: they are drawn anew when asked for
        marks=[MarksFound(**m) for m in extra.get("marks", []) if "scores" in m],
    )
