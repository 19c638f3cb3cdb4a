"""Difference networks that were fitted to one product: their weights, and which golden samples each was trained on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from refdiff.memory.changes import NETWORK, changing, learned_from, network_state, record_change
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
    # ids of inspections whose defects, which a person confirmed, all of them were trained on
    confirmed: list[str] = field(default_factory=list)

    @property
    def learned_from(self) -> str:
        """In words."""
        return learned_from(sum(map(len, self.trained_on)), len(self.confirmed))


# declined: a person stopped it, or removed what came of it; stopped: by itself it goes on where it was
FitOutcome = Literal["begun", "kept", "not kept", "failed", "stopped", "declined"]


@dataclass(frozen=True)
class FitAttempt:
    """How the last fit of a product went."""

    product: str
    outcome: FitOutcome
    taught_by: str  # digest of what it learned from; "" if that is unknown
    by: str
    n: int = 0  # golden samples that it learned from
    vain: int = 0  # how often it was begun with these and failed, or ended with the process
    message: str = ""  # why it failed
    found: tuple[int, int, int] | None = None  # as of `ProductNetworks`, once it is known
    created_at: str = field(default_factory=utc_now)


class NetworkStore:
    """The networks of all products, the newest of each, and how their last fits went."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, networks: ProductNetworks, weights: bytes, by: str) -> None:
        """Keep them in place of the product's earlier ones. Raises DamagedError where the weights are others."""
        if hashlib.sha256(weights).hexdigest() != networks.sha256:
            raise DamagedError(f"networks of {networks.product!r}: the weights are not those of the record; fit again")
        product, created_at = check_product_name(networks.product), to_utc(networks.created_at)
        more = json.dumps({
            "trained_on": networks.trained_on, "found": networks.found, "seconds": networks.seconds,
            "confirmed": networks.confirmed,
        })  # fmt: skip
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
        """Forget them: the shared network inspects the product again, until a person asks for others. False if there were
        none."""
        with changing(self._db) as conn:
            known, last = _row(conn, check_product_name(product)), _attempt(conn, product)
            if known is not None:
                conn.execute("DELETE FROM networks WHERE product = ?", (known["product"],))
                record_change(conn, NETWORK, known["product"], by, network_state(known), None)
                last = last or FitAttempt(known["product"], "kept", "", by)
            if last is not None:
                _put_attempt(conn, replace(last, outcome="declined", by=by, created_at=utc_now()))
        return known is not None

    def decline(self, product: str, by: str) -> None:
        """Note that a person stopped the fit of a product: none begins by itself until a person asks for one."""
        with self._db.transaction() as conn:
            if (last := _attempt(conn, check_product_name(product))) is not None:
                _put_attempt(conn, replace(last, outcome="declined", by=by, created_at=utc_now()))

    def begin(self, product: str, taught_by: str, n: int, by: str) -> FitAttempt:
        """Note that a fit begins. taught_by: digest of what it learns from; n: how many golden samples that are."""
        with self._db.transaction() as conn:
            last = _attempt(conn, check_product_name(product))
            again = last is not None and last.taught_by == taught_by
            vain = last.vain if last is not None and again else 0
            # until its end is noted, it counts as one that ended with the process
            made = FitAttempt(product, "begun", taught_by, by, n, vain + 1)
            _put_attempt(conn, made)
        return made

    def end(
        self, attempt: FitAttempt, outcome: FitOutcome, message: str = "", found: tuple[int, int, int] | None = None
    ) -> None:
        """Note how a fit that was begun ended, unless another was begun since, or a person does without."""
        vain = attempt.vain if outcome == "failed" else attempt.vain - 1
        with self._db.transaction() as conn:
            if attempt.outcome == "begun" and _attempt(conn, attempt.product) == attempt:
                _put_attempt(conn, replace(attempt, outcome=outcome, message=message, found=found, vain=vain))

    def last_attempt(self, product: str) -> FitAttempt | None:
        """How the last fit of a product went; None if there was none."""
        with self._db.connection() as conn:
            return _attempt(conn, check_product_name(product))

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
            confirmed=more.get("confirmed", []),
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


def _put_attempt(conn: sqlite3.Connection, attempt: FitAttempt) -> None:
    row = (attempt.product, json.dumps(asdict(attempt)))
    conn.execute("INSERT OR REPLACE INTO fit_attempts VALUES (?, ?)", row)


def _attempt(conn: sqlite3.Connection, product: str) -> FitAttempt | None:
    row = conn.execute("SELECT attempt FROM fit_attempts WHERE product = ?", (product,)).fetchone()
    if row is None:
        return None
    kept = json.loads(row["attempt"])
    return FitAttempt(**kept | {"found": None if kept["found"] is None else tuple(kept["found"])})


def _row(conn: sqlite3.Connection, product: str) -> sqlite3.Row | None:
    columns = "product, sha256, shared, more, created_at"  # not the weights, which are large
    found: sqlite3.Row | None = conn.execute(f"SELECT {columns} FROM networks WHERE product = ?", (product,)).fetchone()
    return found
