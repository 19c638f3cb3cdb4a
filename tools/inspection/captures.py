"""The photo that an inspection is about."""

from __future__ import annotations

from refdiff.memory.records.captures import Capture, normalise_part_id
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError


def find_part(stores: Stores, part_id: str, product: str | None = None, capture_id: str | None = None) -> Capture:
    """The photo of a part: that capture, else the newest.

    Raises UnknownPartError (naming near part ids), UnknownRecordError, InputError (several products; not of that part).
    """
    wanted = normalise_part_id(part_id)
    if capture_id is None:
        return stores.captures.latest(wanted, product)
    capture = stores.captures.get(capture_id)
    if capture.part_id != wanted or product not in (None, capture.product):
        raise InputError(
            f"capture {capture_id} is of part {capture.part_id}, product {capture.product}; name that part"
        )
    return capture
