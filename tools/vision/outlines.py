"""Does the golden sample have something where a finding is that the photo does not show?

Compared is how clearly the outline of a finding stands out in each picture, under one light, and against what is beside
it. Knows nothing about types or limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import Box, Mask, RgbImage, widen
from refdiff.tools.vision.crops import warp_window
from refdiff.tools.vision.registration import Alignment

_RING_PX = 3  # on either side of the outline
_SMOOTHING_PX = 1.5
_TIMES = 2.0  # as clear in the one as in the other, to be in that one alone
_LEAST = 0.5  # grey levels a px: less is no outline that anybody sees
_GAINS = (0.5, 2.0)  # of brightness, that another light explains
_CLEAREST = 0.75  # quantile of the slopes along the outline: part of it may lie on something like it


@dataclass(frozen=True)
class Outline:
    """Slopes along the outline of a finding, grey levels a px, in the golden sample and in the photo; the photo's as if it
    were as bright as the golden sample."""

    golden: float
    photo: float
    beside: float  # usual slope of the golden sample next to the finding: texture, noise

    @property
    def only_golden(self) -> bool:
        """Whether the golden sample has something there that the photo does not show. Where it is not, nothing follows: an
        empty socket may stand out more than the screw in it."""
        return self.golden >= _TIMES * max(self.photo, self.beside, _LEAST)


def outline_of(query: RgbImage, reference: RgbImage, alignment: Alignment, box: Box, mask: Mask) -> Outline | None:
    """How clear the outline of a finding is in each picture; None where they cannot be compared px by px, or
    the finding is all of the photo.

    query, reference: (H, W, 3) uint8. box: query px, exclusive end; mask: (y1 - y0, x1 - x0) bool in it.
    """
    if not alignment.ok or not mask.any():
        return None
    outer = widen(box, 4 * _RING_PX, 0, query.shape[:2])
    other, covered = warp_window(reference, alignment, outer)
    x0, y0, x1, y1 = outer
    here = np.zeros(covered.shape, np.uint8)
    here[box[1] - y0 : box[3] - y0, box[0] - x0 : box[2] - x0] = mask
    kernel = np.ones((2 * _RING_PX + 1, 2 * _RING_PX + 1), np.uint8)
    ring = (cv2.dilate(here, kernel) > 0) & (cv2.erode(here, kernel) == 0)
    if not ring.any() or not covered[ring].all():
        return None
    around = covered & (cv2.dilate(here, kernel) == 0)
    pictures = other, query[y0:y1, x0:x1]
    (golden, beside), (photo, _) = (_along_and_beside(_slopes(p), ring, around) for p in pictures)
    bright, photo_bright = (float(p[around].mean()) if around.any() else 0.0 for p in pictures)
    gain = float(np.clip(bright / photo_bright, *_GAINS)) if photo_bright > 1 else 1.0
    return Outline(golden, gain * photo, beside)


def _along_and_beside(slopes: NDArray[np.float32], ring: Mask, around: Mask) -> tuple[float, float]:
    """How steep it is along the outline, and usually next to it (0 where nothing is)."""
    return float(np.quantile(slopes[ring], _CLEAREST)), float(np.median(slopes[around])) if around.any() else 0.0


def _slopes(picture: RgbImage) -> NDArray[np.float32]:
    """(h, w) grey levels a px, of the channel where they are steepest."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), _SMOOTHING_PX)
    return np.asarray(np.hypot(*np.gradient(smooth, axis=(0, 1))).max(2), np.float32)
