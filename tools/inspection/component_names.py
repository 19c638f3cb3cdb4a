"""What people call counted components. A name belongs to what a component looks like, so it outlives a calibration.

Names decide nothing: counts, scores and verdicts are the same without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.rows.calibrations import Calibration, Component, packed_rows, unpacked_rows
from refdiff.memory.rows.products import Product
from refdiff.model.errors import InputError, UnknownRecordError

if TYPE_CHECKING:
    from refdiff.memory.stores import Stores

# cosine of looks. Of rendered clips and screws, calibrated from other photos of them, those of one kind had .88 to 1, head
# and shaft of a screw .60 to .71, and those of two kinds .49 to .79
_ALIKE = 0.85


def look_of(component: Component) -> NDArray[np.float32]:
    """(C,) of unit norm: how its clusters differ from all of the photo's.

    The same things may be their cores in one calibration, and cores and rims in the next: a rim is a mixture with what lies
    around, so it differs from everything in the same direction, only less.
    """
    away = component.centres[component.members].mean(0) - component.centres.mean(0)
    return np.asarray(away / max(float(np.linalg.norm(away)), 1e-12), np.float32)


def recognised(components: Sequence[Component], names: Mapping[str, Mapping[str, Any]]) -> list[str | None]:
    """What each component is called; None for one without a name. names: as `Product` has them.

    The most alike first; number, count and area of a component play no part.
    """
    pairs = []
    for name, packed in names.items():
        (known,) = unpacked_rows(packed)
        looks = [look_of(one) for one in components]
        pairs += [(-float(known @ x), name, i) for i, x in enumerate(looks) if x.shape == known.shape]
    found: list[str | None] = [None] * len(components)
    for unlike, name, i in sorted(pairs):
        if -unlike >= _ALIKE and found[i] is None and name not in found:
            found[i] = name
    return found


def names_of(stores: Stores, product: str, components: Sequence[Component]) -> tuple[list[str | None], list[str]]:
    """What each component of the product is called; and the names of which no component is recognised, sorted."""
    known = stores.products.get(product)
    names = known.component_names if known else {}
    found = recognised(components, names)
    return found, sorted(set(names) - set(found))


def name_component(
    stores: Stores, product: str, component: str, name: str | None, by: str, shown: Calibration | None = None
) -> Product:
    """Call a component of a calibration something, `shown` or the product's newest; None takes its name away.

    component: its number (1, 2, ...) or its name; a name is taken away also if no component is recognised by it. Both are
    normalised here, for every way in. Raises InputError, UnknownRecordError.
    """
    from refdiff.memory.records.defect_names import check_given_name, plain_name

    known = stores.products.get(product)
    if known is None:
        raise UnknownRecordError(f"no product {product!r}")
    calibration = shown or stores.calibrations.latest(known.name)
    components = calibration.components if calibration else []
    names, unrecognised = names_of(stores, known.name, components)
    asked = plain_name(component)
    if name is None and asked in unrecognised:
        return stores.products.name_component(known.name, None, None, by, instead_of=asked)
    if asked in names:
        at = names.index(asked)
    elif asked.isdecimal() and 1 <= int(asked) <= len(components):
        at = int(asked) - 1
    else:
        counted = ", ".join(n or str(i) for i, n in enumerate(names, start=1)) or "none"
        raise UnknownRecordError(f"product {known.name!r} has no component {asked!r}; counted are: {counted}")
    before = names[at]
    if name is None:
        if before is None:
            raise InputError(f"component {at + 1} of product {known.name!r} has no name; nothing to remove")
        return stores.products.name_component(known.name, None, None, by, instead_of=before)
    name = check_given_name(name, "a component")
    if name.isdecimal():
        raise InputError(f"name of a component {name!r}: a mere number could be the number of another; add a letter")
    if name in names and name != before:
        raise InputError(
            f"component {names.index(name) + 1} of product {known.name!r} is called {name!r} already; choose another name"
        )
    return stores.products.name_component(
        known.name, name, packed_rows(look_of(components[at])[None]), by, instead_of=before
    )
