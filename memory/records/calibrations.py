"""Calibrations: the scores of a product's good samples against each other, per state of its bank."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any

from refdiff.memory.database import Database
from refdiff.memory.records.products import check_product_name
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import RefDiffError


@dataclass(frozen=True)
class Calibration:
    """`key`: what the calibration depends on, hashed by its maker; another key means a stale calibration.

    `scores`: one image score per group of goldens; `n`: the number of groups; `references`: K, compared per
    query; `seconds`: how long it took.
    """

    product: str
    key: str
    scores: list[float]
    pixel_threshold: float
    n: int
    references: int
    created_at: str = field(default_factory=utc_now)
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


class CalibrationStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, calibration: Calibration) -> None:
        """Keep it as the product's latest; one of the same product and key is replaced."""
        c = calibration
        product, created_at = check_product_name(c.product), to_utc(c.created_at)
        try:
            scores, extra = json.dumps(c.scores, allow_nan=False), json.dumps(c.extra, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise RefDiffError(f"calibration of {product!r} cannot be kept: {e}; calibrate again") from e
        with self._db.transaction() as conn:
            # not an upsert: the new row must also become the newest
            conn.execute("DELETE FROM calibrations WHERE product = ? AND key = ?", (product, c.key))
            conn.execute(
                "INSERT INTO calibrations (product, key, scores, pixel_threshold, n, reference_count, "
                "created_at, seconds, extra) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (product, c.key, scores, c.pixel_threshold, c.n, c.references, created_at, c.seconds, extra),
            )

    def latest(self, product: str) -> Calibration | None:
        return self._one("product = ? ORDER BY seq DESC LIMIT 1", check_product_name(product))

    def get(self, product: str, key: str) -> Calibration | None:
        return self._one("product = ? AND key = ?", check_product_name(product), key)

    def _one(self, where: str, *values: str) -> Calibration | None:
        with self._db.connection() as conn:
            row = conn.execute(f"SELECT * FROM calibrations WHERE {where}", values).fetchone()
        return None if row is None else _calibration(row)


def _calibration(row: sqlite3.Row) -> Calibration:
    return Calibration(
        product=row["product"],
        key=row["key"],
        scores=json.loads(row["scores"]),
        pixel_threshold=row["pixel_threshold"],
        n=row["n"],
        references=row["reference_count"],
        created_at=row["created_at"],
        seconds=row["seconds"],
        extra=json.loads(row["extra"]),
    )
