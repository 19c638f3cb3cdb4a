"""Zones of the specification, carried over to a photo by registration."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import Golden
from refdiff.model.errors import UnknownProductError, UnknownRecordError
from refdiff.tools.framing.frames import matrix_of, place_of
from refdiff.tools.framing.photos import Query, alignment
from refdiff.tools.inspection.specification import ProductSpec, parse_spec, zone_mask
from refdiff.tools.vision.regions import map_size
from refdiff.tools.vision.registration import scaling
from refdiff.tools.workspace import Workspace

_MAX_OUTSIDE = 0.1  # part of a zone: parts do not lie to the pixel as the golden sample does


def product_spec(workspace: Workspace, product: str) -> ProductSpec:
    known = workspace.stores.products.get(product)
    return parse_spec(known.spec if known else {}, f"specification of {product}")


def zone_golden(workspace: Workspace, product: str, spec: ProductSpec) -> Golden:
    """The golden whose pixels the zones are drawn in. Raises UnknownRecordError, UnknownProductError."""
    if spec.frame:
        golden = workspace.bank.get(spec.frame)
        if golden.product != product:
            raise UnknownRecordError(f"zones of {product!r} are drawn on {spec.frame}, a golden of {golden.product!r}")
        return golden
    goldens = workspace.bank.list(product)
    if not goldens:
        raise UnknownProductError(f"product {product!r} has no golden to draw zones on; enrol one: refdiff enroll")
    return goldens[0]


def ignored(workspace: Workspace, query: Query, product: str) -> tuple[NDArray[np.bool_] | None, bool]:
    """What lies in ignore zones, bool at the photo's `map_size`, None without zones; and whether they could be placed."""
    masks, placed = place_zones(workspace, query, product, "ignore")
    return (np.logical_or.reduce(list(masks.values())) if masks else None), placed


def ignored_on_golden(workspace: Workspace, golden: Golden, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) of `size`, its own: what lies in ignore zones of a golden; nothing where they are drawn in another frame."""
    spec = product_spec(workspace, golden.product)
    zones = [z for z in spec.zones if z.kind == "ignore"]
    mask = np.zeros(size, np.bool_)
    if zones:
        drawn, own = place_of(workspace, zone_golden(workspace, golden.product, spec)), place_of(workspace, golden)
        if drawn.anchor_id == own.anchor_id:
            matrix = np.linalg.inv(matrix_of(own)) @ matrix_of(drawn)
            mask = np.logical_or.reduce([zone_mask(zone, matrix, size) for zone in zones])
    return mask


def zones_outside(workspace: Workspace, query: Query, product: str, kind: str) -> str:
    """Which zones of one kind lie outside of the photo by more than a tenth: "critical zone bore lies"; "" for none, and
    where the zone golden did not register."""
    spec = product_spec(workspace, product)
    zones = [z for z in spec.zones if z.kind == kind]
    if not zones:
        return ""
    golden = zone_golden(workspace, product, spec)
    found, size = alignment(workspace, query, golden), place_of(workspace, golden).size
    if not found.ok:
        return ""
    drawn = map_size(size)
    height, width = query.image.shape[:2]
    outside = []
    for zone in zones:
        y, x = np.nonzero(zone_mask(zone, scaling(size, drawn), drawn))
        points = cv2.perspectiveTransform(np.stack([x, y], 1)[None] + 0.5, found.matrix @ scaling(drawn, size))[0]
        seen = (points >= 0).all(1) & (points < (width, height)).all(1)
        if len(seen) and 1 - seen.mean() > _MAX_OUTSIDE:
            outside.append(zone.name)
    names = sorted(set(outside))
    return f"{kind} zone{'s' * (len(names) > 1)} {', '.join(names)} lie{'s' * (len(names) == 1)}" if names else ""


def place_zones(
    workspace: Workspace, query: Query, product: str, kind: str
) -> tuple[dict[str, NDArray[np.bool_]], bool]:
    """Zones of one kind on the photo: name -> bool at the photo's `map_size`, and whether the zone golden registered."""
    spec = product_spec(workspace, product)
    zones = [z for z in spec.zones if z.kind == kind]
    if not zones:
        return {}, True
    found = alignment(workspace, query, zone_golden(workspace, product, spec))
    size = map_size(query.image.shape)
    matrix = scaling(query.image.shape, size) @ found.matrix
    masks: dict[str, NDArray[np.bool_]] = {}
    for zone in zones:  # zones of one name add up
        mask = zone_mask(zone, matrix, size)
        masks[zone.name] = masks[zone.name] | mask if zone.name in masks else mask
    return masks, found.ok
