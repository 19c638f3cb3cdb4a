"""What was measured piece by piece, as the things that a person would name: pieces of one line are one, and its extent.

The extent is what people see of a finding: its outline is drawn round it, and its box is the box of the outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import Box, Mask, Outline
from refdiff.tools.vision.measurement import Measurement
from refdiff.tools.vision.regions import Region, map_window
from refdiff.tools.vision.shape import Shape, belong_together, tight, union

Piece = tuple[Region, Measurement]

_CORE = 0.5  # of a region's peak: there the map is sure of it, whatever the pixels say
_WINDOW_PX = 2048  # long side of what distances are measured on; of more px, less
_EXPLAINED_CELLS = 2.0  # how far from a defect's pixels the map may still be high because of them


@dataclass(frozen=True)
class Extent:
    """box: tight, px of the photo. mask: (y1 - y0, x1 - x0) bool on it."""

    box: Box
    mask: Mask

    @property
    def outline(self) -> Outline:
        """Filled, its polygons are the mask without holes; the box is theirs."""
        found, _ = cv2.findContours(
            self.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=self.box[:2]
        )
        return [polygon[:, 0].astype(np.int32) for polygon in found]


def things(pieces: Sequence[Piece], cell: float) -> list[list[Piece]]:
    """The pieces by the thing that they are of, in the order of its first piece.

    Measured px decide: what lies at most a cell apart belongs together, and so do pieces of one line. cell: px of the photo
    that the map cannot tell apart.
    """
    thing = list(range(len(pieces)))
    shapes = [Shape.of(m.box, m.mask) for _, m in pieces]
    for i, one in enumerate(shapes):
        for j, other in enumerate(shapes[:i]):
            if thing[i] != thing[j] and belong_together(one, other, cell):
                low, high = sorted((thing[i], thing[j]))
                thing = [low if t == high else t for t in thing]
    return [[p for p, t in zip(pieces, thing, strict=True) if t == number] for number in sorted(set(thing))]


def extent_of(
    pieces: Sequence[Piece],
    measurement: Measurement,
    anomaly_map: NDArray[np.float32],
    size: tuple[int, ...],
    cell: float,
) -> Extent:
    """All measured px of a thing, and what the map is sure of where they do not explain it.

    size: (H, W, ...) of the photo; anomaly_map: of its `map_size`.
    """
    measured = (measurement.box, measurement.mask)
    sure = [map_window((anomaly_map >= _CORE * r.peak).astype(np.uint8), r.box, size) > 0 for r, _ in pieces]
    box, whole = union([measured, *((r.box, r.mask & core) for (r, _), core in zip(pieces, sure, strict=True))])
    (x0, y0, x1, y1), (left, top) = measurement.box, box[:2]
    found = np.zeros_like(whole)
    found[y0 - top : y1 - top, x0 - left : x1 - left] = measurement.mask
    if np.array_equal(found, whole):
        return Extent(*measured)
    h, w = whole.shape
    shrink = max(1.0, max(h, w) / _WINDOW_PX)
    target = (max(1, round(w / shrink)), max(1, round(h / shrink)))
    small = cv2.resize(found * np.uint8(255), target, interpolation=cv2.INTER_AREA) > 0
    far = cv2.distanceTransform((~small).astype(np.uint8), cv2.DIST_L2, 5) > _EXPLAINED_CELLS * cell / shrink
    added = cv2.resize(far.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0
    return Extent(*tight(found | (whole & added), (left, top)))
