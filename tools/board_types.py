"""Type of a defect on a bare board, from topology: what changed in the copper, and what it joined or cut.

The six classes of DeepPCB (Tang et al., 2019) are defined by topology, so a rule reads them off the binarised pair: copper
that is new joins conductors (short), grows on one (spur) or stands alone (copper); copper that is gone cuts a conductor
(open), nibbles its edge (mousebite) or leaves a hole in it (pin-hole).
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from refdiff.model.images import RgbImage
from refdiff.tools.align import Alignment
from refdiff.tools.zoom import Box, warp_window, widen

BoardType = Literal["open", "short", "mousebite", "spur", "copper", "pin-hole"]
_MARGIN_PX = 10
_EDGE_PX = 2  # changes this thin are edge noise
_EIGHT = np.ones((3, 3), int)


def _copper(image: RgbImage, level: float) -> NDArray[np.bool_]:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) < level


def _labels_touched(labels: NDArray[np.int32], near: NDArray[np.bool_]) -> set[int]:
    return set(np.unique(labels[near]).tolist()) - {0}


def board_defect_type(query: RgbImage, reference: RgbImage, alignment: Alignment, box: Box) -> BoardType:
    """The class of the change inside `box` (x0, y0, x1, y1 query px). Copper is the darker material, as in DeepPCB."""
    window = widen(box, _MARGIN_PX, 0, query.shape[:2])
    x0, y0, x1, y1 = window
    part, (golden, _) = query[y0:y1, x0:x1], warp_window(reference, alignment, window)
    level = (float(golden.min()) + float(golden.max())) / 2
    now, before = _copper(part, level), _copper(golden, level)
    kernel = np.ones((_EDGE_PX, _EDGE_PX), np.uint8)
    gained = cv2.morphologyEx((now & ~before).astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)
    lost = cv2.morphologyEx((before & ~now).astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)
    inside = np.zeros(now.shape, bool)
    inside[box[1] - y0 : box[3] - y0, box[0] - x0 : box[2] - x0] = True
    if (gained & inside).sum() >= (lost & inside).sum():
        conductors, _ = ndimage.label(before, structure=_EIGHT)
        touched = _labels_touched(conductors, ndimage.binary_dilation(gained & inside, iterations=2))
        return "short" if len(touched) > 1 else "spur" if touched else "copper"
    gaps, _ = ndimage.label(~before)
    if not _labels_touched(gaps, ndimage.binary_dilation(lost & inside, iterations=2)):
        return "pin-hole"
    # does the loss leave more pieces of the conductor than there were?
    hit, _ = ndimage.label(before, structure=_EIGHT)
    pieces, _ = ndimage.label(before & ~ndimage.binary_dilation(lost & inside), structure=_EIGHT)
    for conductor in _labels_touched(hit, lost & inside):
        sizes = np.bincount(pieces[hit == conductor])[1:]
        if (sizes > 12).sum() > 1:
            return "open"
    return "mousebite"
