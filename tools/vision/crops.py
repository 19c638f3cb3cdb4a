"""Crops for a close look: a box of the photo and the same place of the registered reference, at native resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from refdiff.model.errors import InputError
from refdiff.model.images import MIN_CROP_PX, Box, RgbImage, widen
from refdiff.tools.vision.registration import Alignment, warp_reference

_MIN_COVERED_PART = 0.9  # part of the crop that the reference must reach to stand beside it
_OUTSIDE_GREY = 128  # grey shown where the reference ends: a smeared border would look like a defect


@dataclass(frozen=True)
class Crops:
    """box: the crop in query px. query: (h, w, 3) uint8. reference: same size, or None where there is nothing to show.

    covered: the reference is registered and reaches (nearly) all of the crop, so the two may be compared px by px.
    """

    box: Box
    query: RgbImage
    reference: RgbImage | None
    covered: bool


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """`box` within an image of `size` (H, W). Raises InputError if it is empty or nothing of it is inside."""
    h, w = size
    x0, y0, x1, y1 = (int(v) for v in box)
    inside = max(0, x0), max(0, y0), min(w, x1), min(h, y1)
    if x1 <= x0 or y1 <= y0 or inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise InputError(
            f"box {(x0, y0, x1, y1)} holds nothing of the image of {w} x {h} px; "
            f"give x0, y0, x1, y1 with 0 <= x0 < x1 <= {w} and 0 <= y0 < y1 <= {h}"
        )
    return inside


def warp_window(reference: RgbImage, alignment: Alignment, box: Box) -> tuple[RgbImage, np.ndarray]:
    """The reference on the query's pixels of `box` only: (h, w, 3) uint8, and which of them it covers, (h, w) bool."""
    move = np.array([[1, 0, -box[0]], [0, 1, -box[1]], [0, 0, 1.0]])
    return warp_reference(reference, move @ alignment.matrix, (box[3] - box[1], box[2] - box[0]))


def zoom(
    query: RgbImage,
    reference: RgbImage | None,
    alignment: Alignment,
    box: Box,
    *,
    margin: float = 0.25,
    max_px: int = 512,
) -> Crops:
    """Crop `box` and a margin (a part of its longer side) from the query and from the reference as it lies on it.

    Crops are at the photo's own resolution, never enlarged; one longer than `max_px` is shrunk for display. Without a
    registration the reference crop is the same relative place, and `covered` is False.
    Raises InputError: box outside the image, negative margin, max_px under 16.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"zoom margin {margin} must be a number >= 0; 0.25 adds a quarter of the box's long side")
    if max_px < 16:
        raise InputError(f"zoom max_px {max_px} must be 16 or more")
    size = query.shape[:2]
    inside = clip_box(box, size)
    margin_px = round(min(margin, 1e3) * max(inside[2] - inside[0], inside[3] - inside[1]))
    used = widen(inside, margin_px, MIN_CROP_PX, size)
    x0, y0, x1, y1 = used
    crop = query[y0:y1, x0:x1]
    other: RgbImage | None = None
    covered = False
    if reference is not None and alignment.ok:
        other, reached = warp_window(reference, alignment, used)
        other[~reached] = _OUTSIDE_GREY
        covered = bool(reached.mean() >= _MIN_COVERED_PART)
        if not reached.any():
            other = None
    elif reference is not None:
        other = _same_place(reference, used, size)
    return Crops(used, _shrink(crop, max_px), None if other is None else _shrink(other, max_px), covered)


def _same_place(reference: RgbImage, box: Box, size: tuple[int, int]) -> RgbImage:
    """The same relative place of an unregistered reference, resized to the box's pixels."""
    fy, fx = reference.shape[0] / size[0], reference.shape[1] / size[1]
    x0, y0 = min(int(box[0] * fx), reference.shape[1] - 1), min(int(box[1] * fy), reference.shape[0] - 1)
    x1, y1 = max(x0 + 1, round(box[2] * fx)), max(y0 + 1, round(box[3] * fy))
    shrinking = fx * fy > 1
    crop = reference[y0:y1, x0:x1]
    target = (box[2] - box[0], box[3] - box[1])
    how = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, target, interpolation=how), np.uint8)


def _shrink(crop: RgbImage, max_px: int) -> RgbImage:
    h, w = crop.shape[:2]
    f = max_px / max(h, w)
    if f >= 1:
        return np.ascontiguousarray(crop)
    target = (max(1, round(w * f)), max(1, round(h * f)))
    return np.asarray(cv2.resize(crop, target, interpolation=cv2.INTER_AREA), np.uint8)
