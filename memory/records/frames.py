"""Where goldens lie in their frames. A frame is the pixel grid of one golden, the anchor of a variant of a product."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from refdiff.memory.database import Database

VERSION = 2  # raise when goldens have to be registered to each other anew; scores change then (patch_distance.VERSION)


@dataclass(frozen=True)
class GoldenPlace:
    """How a golden lies on its anchor; an anchor lies on itself. It outlasts the anchor's retirement: photos stay."""

    golden_id: str
    product: str
    anchor_id: str
    anchor_sha256: str  # of its photo
    size: tuple[int, int]  # (H, W) px of the golden
    anchor_size: tuple[int, int]  # (H, W) px
    matrix: tuple[float, ...]  # (9,) row by row: golden px -> anchor px, at original resolution
    # of the registration of the anchor to the golden, as measured
    method: str = "identity"
    residual_px: float | None = 0.0  # in px of the golden
    overlap: float = 1.0
    ncc: float = 1.0

    @property
    def is_anchor(self) -> bool:
        return self.golden_id == self.anchor_id


class FrameStore:
    """The places of all goldens."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, golden_id: str) -> GoldenPlace | None:
        """The place of a golden; None if it was not registered yet."""
        with self._db.connection() as conn:
            row = conn.execute(
                "SELECT place FROM frames WHERE golden_id = ? AND version = ?", (golden_id, VERSION)
            ).fetchone()
        return None if row is None else _place(row["place"])

    def put(self, place: GoldenPlace) -> GoldenPlace:
        """Keep a place; returns what is kept, which is the earlier one where another process was first."""
        row = (place.golden_id, place.product, place.anchor_id, VERSION, json.dumps(asdict(place)))
        with self._db.transaction() as conn:
            conn.execute("DELETE FROM frames WHERE golden_id = ? AND version != ?", (place.golden_id, VERSION))
            conn.execute("INSERT OR IGNORE INTO frames VALUES (?, ?, ?, ?, ?)", row)
            kept = conn.execute("SELECT place FROM frames WHERE golden_id = ?", (place.golden_id,)).fetchone()
        return _place(kept["place"])

    def of(self, product: str) -> dict[str, str]:
        """Golden id -> id of its anchor, of all goldens of a product that have a place."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT golden_id, anchor_id FROM frames WHERE product = ? AND version = ?", (product, VERSION)
            ).fetchall()
        return {row["golden_id"]: row["anchor_id"] for row in rows}


def _place(text: str) -> GoldenPlace:
    place = json.loads(text)
    return GoldenPlace(**place | {name: tuple(place[name]) for name in ("size", "anchor_size", "matrix")})
