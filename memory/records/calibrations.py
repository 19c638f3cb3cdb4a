"""Calibrations: the scores of a product's good samples against each other, per state of its bank."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Row, delete, insert, update

from refdiff.memory.changes import CALIBRATION, calibration_state, calibration_subject, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.records.products import check_product_name
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import RefDiffError

_C = t.calibrations.c


@dataclass(frozen=True)
class MarksFound:
    """What marks of one size on good samples score: how small a defect is found."""

    shape: str  # spot or stroke
    length: float  # working px
    width: float  # working px
    contrast: float  # 0..1
    scores: list[float]  # image score of a good sample with each mark


@dataclass(frozen=True, eq=False)
class Component:
    """A kind of part of which every golden sample shows the same number."""

    centres: NDArray[np.float32]  # (K, C) of clusters of cells of the encoder's map
    members: list[int]  # the clusters whose cells it consists of
    area: float  # of one, cells of a grid four times as fine as the map
    count: int  # of them on a good part


@dataclass(frozen=True)
class Calibration:
    """What the good samples of a product score against each other. A part is what one or several goldens show."""

    product: str
    key: str  # hash of what it depends on, computed by the caller; another key means it is stale
    scores: list[float]  # image score of each part, sorted
    pixel_threshold: float  # of the anomaly map, above which a place is a region
    n: int  # number of parts
    references: int  # K goldens that each was compared with
    created_at: str = field(default_factory=utc_now)
    seconds: float = 0.0  # how long it took
    peaks: list[float] = field(default_factory=list)  # highest value of each part's anomaly map, sorted
    similarities: list[float] = field(default_factory=list)  # of each part to its nearest golden, sorted
    # how much each part differs where it fits best, sorted; empty if measured by earlier versions
    levels: list[float] = field(default_factory=list)
    alpha: float | None = None  # false-reject rate that was asked for; None: the default
    # of the part of each score; empty if measured by earlier versions
    golden_ids: list[str] = field(default_factory=list)
    components: list[Component] = field(default_factory=list)  # that are counted, those told apart best first
    per_miscount: float = 0.0  # what one too many or too few of a component adds to the image score
    # goldens that register to none of those they were compared with; None if measured by earlier versions
    unregistered: list[str] | None = None
    # edge correlation -1..1 of each part with the other that it fits best, sorted; empty if measured by earlier versions
    edges: list[float] = field(default_factory=list)
    marks: list[MarksFound] = field(default_factory=list)  # empty until somebody asks how small a defect is found


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
        return self._one(_C.product == check_product_name(product))

    def get(self, product: str, key: str) -> Calibration | None:
        """The product's calibration of that key; None if there is none."""
        return self._one(_C.product == check_product_name(product), _C.key == key)

    def _one(self, *where: ColumnElement[bool]) -> Calibration | None:
        with self._db.connection() as conn:
            row = t.find(conn, t.calibrations, *where, order=[_C.seq.desc()])
        return None if row is None else _calibration(row)


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
        more |= {"components": _packed(c.components), "per_miscount": c.per_miscount}
    if c.unregistered is not None:
        more["unregistered"] = c.unregistered
    if c.edges:
        more["edges"] = c.edges
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
        components=_unpacked(extra.get("components", [])),
        per_miscount=extra.get("per_miscount", 0.0),
        unregistered=extra.get("unregistered"),
        edges=extra.get("edges", []),
        # earlier versions kept p-values of marks: they are drawn anew when asked for
        marks=[MarksFound(**m) for m in extra.get("marks", []) if "scores" in m],
    )


def _packed(components: Sequence[Component]) -> dict[str, Any]:
    """centres: kept once, however many components are of one clustering; `of` each component is the number of its own."""
    centres: list[dict[str, Any]] = []
    kept = []
    for c in components:
        if (own := packed_rows(c.centres)) not in centres:
            centres.append(own)
        kept.append({"centres": centres.index(own), "members": c.members, "area": c.area, "count": c.count})
    return {"centres": centres, "of": kept}


def _unpacked(packed: Any) -> list[Component]:
    if isinstance(packed, list):  # an earlier version kept the centres with each
        rows = [{"rows": p["clusters"], "data": p["centres"]} for p in packed]
        packed = {"centres": rows, "of": [p | {"centres": i} for i, p in enumerate(packed)]}
    centres = [unpacked_rows(p) for p in packed.get("centres", [])]
    return [Component(centres[p["centres"]], p["members"], p["area"], p["count"]) for p in packed.get("of", [])]


def packed_rows(rows: NDArray[np.float32]) -> dict[str, Any]:
    """(R, C) float32 as JSON data."""
    return {"rows": len(rows), "data": base64.b64encode(np.ascontiguousarray(rows, "<f4").tobytes()).decode()}


def unpacked_rows(packed: Mapping[str, Any]) -> NDArray[np.float32]:
    """(R, C) float32 of `packed_rows`."""
    return np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["rows"], -1)
