"""The photo that an inspection is about, and its product. Loads neither networks nor the golden bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refdiff.memory.rows.captures import Capture, normalise_part_id
from refdiff.model.errors import InputError

if TYPE_CHECKING:
    from refdiff.memory.stores import Stores


def find_part(stores: Stores, part_id: str, product: str | None = None, capture_id: str | None = None) -> Capture:
    """The photo of a part: that capture, else the newest.

    Raises UnknownPartError (naming near part ids), UnknownRecordError, InputError (several products; not of that part).
    """
    wanted = normalise_part_id(part_id)
    if capture_id is None:
        return stores.captures.latest(wanted, product)
    capture = stores.captures.get(capture_id)
    if capture.part_id != wanted or (product is not None and stores.products.name_of(product) != capture.product):
        raise InputError(
            f"capture {capture_id} is of part {capture.part_id}, product {capture.product}; name that part"
        )
    return capture


def product_of(stores: Stores, part_id: str) -> str:
    """The product of a part that was photographed before. Raises InputError for a new part, or one of several products."""
    products = sorted({c.product for c in stores.captures.history(part_id)})
    if len(products) == 1:
        return products[0]
    known = ", ".join(p.name for p in stores.products.list()) or "none yet"
    why = f"is used in {', '.join(products)}" if products else f"is new (products: {known})"
    raise InputError(f"part {normalise_part_id(part_id)} {why}: say which product")
