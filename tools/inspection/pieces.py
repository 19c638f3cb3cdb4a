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
from refdiff.tools.vision.shape import belong_together, tight, union

Piece = tuple[Region, Measurement]

_CORE = 0.5  # of a region's peak: there the map is sure of it, whatever the pixels say
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
    for i, (_, one) in enumerate(pieces):
        for j, (_, other) in enumerate(pieces[:i]):
            if thing[i] != thing[j] and belong_together((one.box, one.mask), (other.box, other.mask), cell):
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
    parts = [(measurement.box, measurement.mask)]
    cores = [(r.box, r.mask & (map_window(anomaly_map, r.box, size) >= _CORE * r.peak)) for r, _ in pieces]
    box, whole = union([*parts, *cores])
    _, found = union([*parts, *((at, np.zeros_like(core)) for at, core in cores)])
    far = cv2.distanceTransform((~found).astype(np.uint8), cv2.DIST_L2, 5)
    mask = found | (whole & (far > _EXPLAINED_CELLS * cell))
    return Extent(*tight(mask, (box[0], box[1])))
