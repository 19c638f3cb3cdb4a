"""Difference networks that were fitted to one product: their weights, and which golden samples each was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, bindparam, delete, select

from refdiff.memory.changes import NETWORK, changing, network_state, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.rows.networks import LearnedDefect, ProductNetworks
from refdiff.memory.rows.products import check_product_name
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DamagedError

_N = t.networks.c
# weights are large; prepared, as every inspection asks
_WITHOUT_WEIGHTS = select(*(c for c in _N if c is not _N.weights)).where(_N.product == bindparam("product"))


# declined: a person stopped it, or removed what came of it; stopped: by itself it goes on, or begins anew
# asked: it waits for a worker
FitOutcome = Literal["asked", "begun", "kept", "not kept", "failed", "stopped", "declined"]

_OPEN: tuple[FitOutcome, ...] = ("asked", "begun")


@dataclass(frozen=True)
class FitAttempt:
    """How the last fit of a product went."""

    product: str
    outcome: FitOutcome
    shared: str  # sha256 of the shared network that it began from; "" if that is unknown
    by: str
    n: int = 0  # golden samples that it learned from
    vain: int = 0  # how often in a row it was begun and failed, or ended with the process
    message: str = ""  # why it failed or stopped, where there is more to say
    found: tuple[int, int, int] | None = None  # as of `ProductNetworks`, once it is known
    created_at: str = field(default_factory=utc_now)


class NetworkStore:
    """The networks of all products, the newest of each, and how their last fits went."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, networks: ProductNetworks, weights: bytes, by: str, attempt: FitAttempt | None = None) -> bool:
        """Keep them in place of the product's earlier ones. Raises DamagedError where the weights are others.

        attempt: of which they came; it ends as "kept" in the same moment. False, and nothing is kept, if another was begun
        since, or a person does without.
        """
        if hashlib.sha256(weights).hexdigest() != networks.sha256:
            raise DamagedError(f"networks of {networks.product!r}: the weights are not those of the record; fit again")
        product, created_at = check_product_name(networks.product), to_utc(networks.created_at)
        more = json.dumps({
            "trained_on": networks.trained_on, "found": networks.found, "seconds": networks.seconds,
            "confirmed": [asdict(defect) for defect in networks.confirmed],
        })  # fmt: skip
        new = {"product": product, "sha256": networks.sha256, "shared": networks.shared, "more": more,
               "created_at": created_at, "weights": weights}  # fmt: skip
        with changing(self._db) as conn:
            if attempt is not None:
                if not _is_last(conn, attempt):
                    return False
                _put_attempt(conn, _ended(attempt, "kept", found=networks.found))
            known = _row(conn, product)
            t.put(conn, t.networks, new)
            kept = _row(conn, product)
            assert kept is not None
            record_change(
                conn, NETWORK, product, by, None if known is None else network_state(known), network_state(kept)
            )
        return True

    def remove(self, product: str, by: str) -> bool:
        """Forget them, and what a fit that runs will bring: the shared network inspects the product again, until a person
        asks for others. False, and nothing is changed, if there are none and none are being fitted."""
        with changing(self._db) as conn:
            known, last = _row(conn, check_product_name(product)), _attempt(conn, product)
            if known is not None:
                conn.execute(delete(t.networks).where(_N.product == known.product))
                record_change(conn, NETWORK, known.product, by, network_state(known), None)
                last = last or FitAttempt(known.product, "kept", "", by)
            elif last is None or last.outcome not in _OPEN:
                return False
            _put_attempt(conn, replace(last, outcome="declined", by=by, created_at=utc_now()))
        return True

    def decline(self, product: str, by: str) -> None:
        """Note that a person stopped the fit of a product, which waits, runs, or has just stopped or failed: none begins by
        itself until a person asks for one. One that ended otherwise meanwhile keeps its outcome: what it brought is in use.

        As any other end of a fit it changes nothing that decides, so the audit chain does not hold it.
        """
        with self._db.transaction() as conn:
            last = _attempt(conn, check_product_name(product))
            if last is not None and last.outcome in (*_OPEN, "stopped", "failed"):
                _put_attempt(conn, replace(last, outcome="declined", by=by, created_at=utc_now()))

    def ask(self, product: str, by: str) -> FitAttempt:
        """Note that a person wants a fit, for a worker to begin."""
        asked = FitAttempt(check_product_name(product), "asked", "", by)
        with self._db.transaction() as conn:
            _put_attempt(conn, asked)
        return asked

    def asked(self) -> list[FitAttempt]:
        """Those that wait for a worker, oldest first."""
        with self._db.connection() as conn:
            found = map(_read_attempt, conn.scalars(select(t.fit_attempts.c.attempt)))
            return sorted((a for a in found if a.outcome == "asked"), key=lambda a: a.created_at)

    def begin(self, product: str, shared: str, n: int, by: str) -> FitAttempt:
        """Note that a fit begins. shared: sha256 of the shared network; n: how many golden samples it learns from."""
        with self._db.transaction() as conn:
            last = _attempt(conn, check_product_name(product))
            again = last is not None and last.shared == shared and last.outcome in ("begun", "failed", "stopped")
            vain = last.vain if last is not None and again else 0
            # until its end is noted, it counts as one that ended with the process
            made = FitAttempt(product, "begun", shared, by, n, vain + 1)
            _put_attempt(conn, made)
        return made

    def end(
        self, attempt: FitAttempt, outcome: FitOutcome, message: str = "", found: tuple[int, int, int] | None = None
    ) -> None:
        """Note how a fit that was begun or asked for ended, unless another was begun since, or a person does without."""
        with self._db.transaction() as conn:
            if _is_last(conn, attempt):
                _put_attempt(conn, _ended(attempt, outcome, message, found))

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
        more = json.loads(row.more)
        return ProductNetworks(
            product=row.product,
            sha256=row.sha256,
            shared=row.shared,
            trained_on=more["trained_on"],
            created_at=row.created_at,
            seconds=more["seconds"],
            found=tuple(more["found"]),
            confirmed=[LearnedDefect(**defect) for defect in more.get("confirmed", [])],
        )

    def weights(self, networks: ProductNetworks) -> bytes:
        """Their weights, a safetensors file. Raises DamagedError where they are not those that were kept."""
        with self._db.connection() as conn:
            same = (_N.product == networks.product, _N.sha256 == networks.sha256)
            weights: bytes | None = conn.scalar(select(_N.weights).where(*same))
        if weights is None or hashlib.sha256(weights).hexdigest() != networks.sha256:
            what = "were replaced meanwhile" if weights is None else "are damaged"
            raise DamagedError(
                f"the networks of product {networks.product!r} {what}; fit them again: refdiff fit --product, or go back to "
                "the shared network: refdiff fit --remove"
            )
        return weights


def _put_attempt(conn: Connection, attempt: FitAttempt) -> None:
    t.put(conn, t.fit_attempts, {"product": attempt.product, "attempt": json.dumps(asdict(attempt))})


def _ended(
    attempt: FitAttempt, outcome: FitOutcome, message: str = "", found: tuple[int, int, int] | None = None
) -> FitAttempt:
    vain = attempt.vain if outcome == "failed" else attempt.vain - 1
    return replace(attempt, outcome=outcome, message=message, found=found, vain=vain)


def _is_last(conn: Connection, attempt: FitAttempt) -> bool:
    """Whether a fit is still the product's last one and has not ended."""
    return attempt.outcome in _OPEN and _attempt(conn, attempt.product) == attempt


def _attempt(conn: Connection, product: str) -> FitAttempt | None:
    row = t.get(conn, t.fit_attempts, product=product)
    return None if row is None else _read_attempt(row.attempt)


def _read_attempt(text: str) -> FitAttempt:
    kept = json.loads(text)
    return FitAttempt(**kept | {"found": None if kept["found"] is None else tuple(kept["found"])})


def _row(conn: Connection, product: str) -> Row[Any] | None:
    return conn.execute(_WITHOUT_WEIGHTS, {"product": product}).first()
