"""Products: the kinds of part, with the intensity window and acceptance specification of each."""

from __future__ import annotations

import builtins
import json
import math
import shlex
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, select, update

from refdiff.memory.changes import (
    CALIBRATION,
    NETWORK,
    PRODUCT,
    calibration_state,
    calibration_subject,
    changing,
    network_state,
    record_change,
)
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.kinds import PRODUCT_KINDS, ProductKind
from refdiff.memory.rows.products import Product, check_product_name, check_scale
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import ChangedError, InputError, SpecError, UnknownRecordError

_P = t.products.c
# prepared: an inspection asks for its product some thirty times
_KNOWN = select(_P.name).where(func.lower(_P.name) == bindparam("name")).order_by(_P.name)


def known_name(conn: Connection, name: str) -> str:
    """The name of a product as it was first written: "Bracket" is `bracket`, if that exists. Raises InputError."""
    name = check_product_name(name)
    known = conn.scalars(_KNOWN, {"name": name.lower()}).all()
    return name if not known or name in known else str(known[0])


def check_kind(kind: str) -> ProductKind:
    """`kind` if there is such a kind of product. Raises InputError."""
    found = next((k for k in PRODUCT_KINDS if k == kind), None)
    if found is None:
        raise InputError(f"kind {kind!r}: a product is of kind {', '.join(PRODUCT_KINDS)}")
    return found


class ProductStore:
    """The products by name."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, name: str) -> Product | None:
        """The product of that name; None if there is none. Raises InputError if it cannot be a name."""
        name = check_product_name(name)
        with self._db.connection() as conn:
            row = t.get(conn, t.products, name=name) or t.get(conn, t.products, name=known_name(conn, name))
        return None if row is None else _product(row)

    def name_of(self, name: str) -> str:
        """The name of a product as it was first written, whatever its case here; a new name as it is. Raises InputError."""
        with self._db.connection() as conn:
            return known_name(conn, name)

    def list(self) -> builtins.list[Product]:
        """All products, by name."""
        with self._db.connection() as conn:
            return [_product(row) for row in conn.execute(select(t.products).order_by(_P.name)).all()]

    def ensure(self, name: str) -> Product:
        """The product, created without specification if new."""
        with self._db.transaction() as conn:
            return _ensure(conn, name)

    def set_kind(self, name: str, kind: ProductKind, by: str = "unknown") -> Product:
        """Say of what kind the files of a product are, which is created if new. The caller has checked the golden bank.

        Raises InputError where files of another kind were captured.
        """
        kind = check_kind(kind)
        with changing(self._db) as conn:
            product = _ensure(conn, name)
            if product.kind == kind:
                return product
            if t.get(conn, t.captures, product=product.name) is not None:
                raise InputError(
                    f"product {product.name!r} is of kind {product.kind!r} and has captured files; take another name for "
                    f"a product of kind {kind!r}"
                )
            return _change(conn, product.name, by, kind=kind)

    def set_window_once(self, name: str, window: tuple[float, float], by: str = "unknown") -> Product:
        """Set the intensity window; a product that has one keeps it, because its goldens were enrolled with it.

        Raises InputError unless both ends are finite and lo < hi.
        """
        lo, hi = float(window[0]), float(window[1])
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise InputError(f"intensity window ({lo}, {hi}): lo and hi must be finite and lo < hi")
        with changing(self._db) as conn:
            product = _ensure(conn, name)
            if product.intensity_window is not None:
                return product
            return _change(conn, product.name, by, window_lo=lo, window_hi=hi)

    def set_spec(
        self,
        name: str,
        spec: dict[str, Any],
        scale_mm_per_px: float | None = None,
        by: str = "unknown",
        instead_of: int | None = None,
    ) -> Product:
        """Replace specification and scale; the product is created if new. Raises SpecError if `spec` is not JSON data.

        by: who sets them, for the audit record. instead_of: the version that `spec` was made from; raises ChangedError if
        that is no longer the newest. None: whatever is there.
        """
        name, scale = self.name_of(name), check_scale(scale_mm_per_px)
        try:
            text = json.dumps(spec, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError) as e:
            raise SpecError(f"specification of {name!r}: {e}; use numbers, text, lists and mappings only") from e
        with changing(self._db) as conn:
            if instead_of is not None and (newest := _ensure(conn, name).spec_version) != instead_of:
                raise ChangedError(
                    f"specification of {name!r}: version {newest} was set meanwhile, and this was made from version "
                    f"{instead_of}; read it again and repeat the change"
                )
            return _change(conn, name, by, spec=text, scale_mm_per_px=scale, spec_version=_P.spec_version + 1)

    def name_component(
        self, product: str, name: str | None, look: dict[str, Any] | None, by: str, *, instead_of: str | None = None
    ) -> Product:
        """Keep what a component is called, with what it looks like (see `Product`); None, None: it has no name any more.

        instead_of: the name that it had. Raises UnknownRecordError.
        """
        with changing(self._db) as conn:
            product = known_name(conn, product)
            if t.get(conn, t.products, name=product) is None:
                raise UnknownRecordError(f"no product {product!r}")
            names = dict(_ensure(conn, product).component_names)
            if instead_of is not None:
                names.pop(instead_of, None)
            if name is not None and look is not None:
                names[name] = look
            text = json.dumps(names, allow_nan=False, sort_keys=True, ensure_ascii=False)
            return _change(conn, product, by, component_names=text)

    def remove(self, name: str, by: str = "unknown") -> Product:
        """Forget a product that nothing was captured of; its calibrations too. The caller has checked the golden bank.

        Raises UnknownRecordError, InputError.
        """
        with changing(self._db) as conn:
            name = known_name(conn, name)
            row = t.get(conn, t.products, name=name)
            if row is None:
                raise UnknownRecordError(f"no product {name!r}")
            photos = conn.scalar(select(func.count()).where(t.captures.c.product == name))
            if photos:
                raise InputError(
                    f"product {name!r} has {photos} captured photos; remove them first: refdiff captures remove --product "
                    f"{shlex.quote(name)}"
                )
            for kept in conn.execute(select(t.calibrations).where(t.calibrations.c.product == name)).all():
                record_change(conn, CALIBRATION, calibration_subject(kept), by, calibration_state(kept), None)
            for fitted in conn.execute(select(t.networks).where(t.networks.c.product == name)).all():
                record_change(conn, NETWORK, name, by, network_state(fitted), None)
            record_change(conn, PRODUCT, name, by, _product(row).state, None)
            for table in (t.networks, t.fit_attempts, t.calibrations):
                conn.execute(delete(table).where(table.c.product == name))
            conn.execute(delete(t.products).where(_P.name == name))
            return _product(row)


def _change(conn: Connection, name: str, by: str, **values: Any) -> Product:
    """Set columns of a product, which is created if new, with the audit record of the change."""
    before = _ensure(conn, name)
    conn.execute(update(t.products).where(_P.name == before.name).values(updated_at=utc_now(), **values))
    after = _ensure(conn, before.name)
    record_change(conn, PRODUCT, before.name, by, before.state, after.state, spec_version=after.spec_version)
    return after


def _ensure(conn: Connection, name: str) -> Product:
    name = known_name(conn, name)
    t.insert_new(conn, t.products, {"name": name, "updated_at": utc_now()})
    return _product(conn.execute(select(t.products).where(_P.name == name)).one())


def _product(row: Row[Any]) -> Product:
    window = None if row.window_lo is None else (row.window_lo, row.window_hi)
    return Product(
        name=row.name,
        scale_mm_per_px=row.scale_mm_per_px,
        intensity_window=window,
        spec=json.loads(row.spec),
        spec_version=row.spec_version,
        updated_at=row.updated_at,
        component_names=json.loads(row.component_names),
        kind=row.kind,
    )
