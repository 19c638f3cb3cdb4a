"""Where goldens lie in their frames. A frame is the pixel grid of one golden, the anchor of a variant of a product."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

from sqlalchemy import delete, select

from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.rows.frames import GoldenPlace, place_from

VERSION = 2  # raise when goldens have to be registered to each other anew; scores change then (patch_distance.VERSION)
_F = t.frames.c


class FrameStore:
    """The places of all goldens."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, golden_id: str) -> GoldenPlace | None:
        """The place of a golden; None if it was not registered yet."""
        with self._db.connection() as conn:
            row = t.find(conn, t.frames, _F.golden_id == golden_id, _F.version == VERSION)
        return None if row is None else place_from(json.loads(row.place))

    def put(self, place: GoldenPlace) -> GoldenPlace:
        """Keep a place; returns what is kept, which is the earlier one where another process was first."""
        row = {"golden_id": place.golden_id, "product": place.product, "anchor_id": place.anchor_id,
               "version": VERSION, "place": json.dumps(asdict(place))}  # fmt: skip
        with self._db.transaction() as conn:
            conn.execute(delete(t.frames).where(_F.golden_id == place.golden_id, _F.version != VERSION))
            t.insert_new(conn, t.frames, row)
            kept = conn.scalars(select(_F.place).where(_F.golden_id == place.golden_id)).one()
        return place_from(json.loads(kept))

    def of(self, product: str) -> dict[str, str]:
        """Golden id -> id of its anchor, of all goldens of a product that have a place."""
        with self._db.connection() as conn:
            of = select(_F.golden_id, _F.anchor_id).where(_F.product == product, _F.version == VERSION)
            rows = conn.execute(of).all()
        return {row.golden_id: row.anchor_id for row in rows}

    def main_anchor(self, product: str) -> str:
        """sha256 of the photo of the anchor of `main_place`; "" if none has a place."""
        place = self.main_place(product)
        return "" if place is None else place.anchor_sha256

    def main_place(self, product: str) -> GoldenPlace | None:
        """The place of the anchor of the frame that most goldens of a product are in; None if none has a place."""
        counts = Counter(self.of(product).values())
        return self.get(min(counts, key=lambda anchor: (-counts[anchor], anchor))) if counts else None
