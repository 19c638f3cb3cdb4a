"""Difference networks that were fitted to one product: their weights, and which golden samples each was trained on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass, field

from refdiff.memory.changes import NETWORK, changing, network_state, record_change
from refdiff.memory.database import Database
from refdiff.memory.records.products import check_product_name
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DamagedError


@dataclass(frozen=True)
class ProductNetworks:
    """Networks of one product. No network is asked about a golden sample that it was trained on."""

    product: str
    sha256: str  # of the weights, one safetensors file
    shared: str  # sha256 of the shared network that they began from
    trained_on: list[list[str]]  # of each network: ids of golden samples
    created_at: str = field(default_factory=utc_now)
    seconds: float = 0.0
    # how many synthetic defects were found by the shared network, by the fitted ones, and how many there were, on golden
    # samples that the network did not see
    found: tuple[int, int, int] = (0, 0, 0)


class NetworkStore:
    """The networks of all products; the newest of each."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, networks: ProductNetworks, weights: bytes, by: str) -> None:
        """Keep them in place of the product's earlier ones. Raises DamagedError where the weights are others."""
        if hashlib.sha256(weights).hexdigest() != networks.sha256:
            raise DamagedError(f"networks of {networks.product!r}: the weights are not those of the record; fit again")
        product, created_at = check_product_name(networks.product), to_utc(networks.created_at)
        more = json.dumps({"trained_on": networks.trained_on, "found": networks.found, "seconds": networks.seconds})
        row = (product, networks.sha256, networks.shared, more, created_at, weights)
        with changing(self._db) as conn:
            known = _row(conn, product)
            conn.execute("INSERT OR REPLACE INTO networks VALUES (?, ?, ?, ?, ?, ?)", row)
            kept = _row(conn, product)
            assert kept is not None
            record_change(
                conn, NETWORK, product, by, None if known is None else network_state(known), network_state(kept)
            )

    def remove(self, product: str, by: str) -> bool:
        """Forget them: the shared network inspects the product again. False if there were none."""
        with changing(self._db) as conn:
            if (known := _row(conn, check_product_name(product))) is None:
                return False
            conn.execute("DELETE FROM networks WHERE product = ?", (known["product"],))
            record_change(conn, NETWORK, known["product"], by, network_state(known), None)
        return True

    def get(self, product: str) -> ProductNetworks | None:
        """Those of a product; None if there are none."""
        with self._db.connection() as conn:
            row = _row(conn, check_product_name(product))
        if row is None:
            return None
        more = json.loads(row["more"])
        return ProductNetworks(
            product=row["product"],
            sha256=row["sha256"],
            shared=row["shared"],
            trained_on=more["trained_on"],
            created_at=row["created_at"],
            seconds=more["seconds"],
            found=tuple(more["found"]),
        )

    def weights(self, networks: ProductNetworks) -> bytes:
        """Their weights, a safetensors file. Raises DamagedError where they are not those that were kept."""
        with self._db.connection() as conn:
            row = conn.execute(
                "SELECT weights FROM networks WHERE product = ? AND sha256 = ?", (networks.product, networks.sha256)
            ).fetchone()
        if row is None or hashlib.sha256(row["weights"]).hexdigest() != networks.sha256:
            what = "were replaced meanwhile" if row is None else "are damaged"
            raise DamagedError(
                f"the networks of product {networks.product!r} {what}; fit them again: refdiff fit --product, or go back to "
                "the shared network: refdiff fit --remove"
            )
        return bytes(row["weights"])


def _row(conn: sqlite3.Connection, product: str) -> sqlite3.Row | None:
    columns = "product, sha256, shared, more, created_at"  # not the weights, which are large
    found: sqlite3.Row | None = conn.execute(f"SELECT {columns} FROM networks WHERE product = ?", (product,)).fetchone()
    return found
