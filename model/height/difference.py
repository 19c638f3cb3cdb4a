"""The difference of two height maps in millimetres: where a part is higher or lower than its golden samples, by how much.

All planes are (H, W) float32 in mm on one pixel grid; NaN where nothing was measured or a reference does not reach. Holes
are neither a difference nor its absence: they are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from refdiff.model.height.plane import Plane, Removal, fit, height_of
from refdiff.model.height.statistics import around, extreme_of, spread_of
from refdiff.model.images import F32, Box, Mask

TOLERATED_PX = 1  # of misregistration, beside steep flanks
_BESIDE_HOLE_PX = 3
SMOOTHING_PX = 1.2  # sigma; a place of 6 px keeps 95 % of its height
_AROUND_PX = 3  # of a place's extreme: as far as smoothing takes something from it
_LEAST_WEIGHT = 0.3  # of the smoothing window that must be measured
_NORMAL_MAD = 1.4826
_COVERAGE = 2.0  # of an expanded uncertainty: about 95 %
_UNIFORM = math.sqrt(3.0)  # from the half width of a range to its standard uncertainty
_RIM_PX = 2  # at the rim of a hole sensors invent heights, and registration leaves a px: no hole of its own


@dataclass(frozen=True)
class HeightDifference:
    """A height map against its references, nearest first."""

    deviation: F32  # (H, W) mm >= 0: how far it lies outside of what the references show; 0 where that is not known
    signed: F32  # (H, W) mm, query minus nearest reference as it was fitted; NaN where either has a hole
    reference: F32  # (H, W) mm, that reference, fitted
    plane: Plane  # that was added to the nearest reference, mm on the query's px
    factor: float  # by which its heights were multiplied
    noise_mm: float  # standard deviation of `signed` where nothing differs
    spread: F32  # (H, W) mm, standard deviation of the references there; 0 where fewer than two reach
    covered: Mask  # (H, W), query and some reference have a height
    missing: Mask  # (H, W), some reference has a height and the query has none
    beyond: Mask  # (H, W), the query has a height and the references, which reach there, have none
    outside: float = 0.0  # part 0..1 of what all golden samples show that lies outside of the query's picture


def compare(
    query: F32, references: Sequence[F32], reaches: Sequence[Mask], *, removal: Removal, ignore: Mask | None = None
) -> HeightDifference:
    """Where `query` is higher than the highest, or lower than the lowest, of its references within `TOLERATED_PX`.

    references: on the query's pixels, NaN in holes and where they end; reaches: (H, W), where each ends. removal: what of
    the whole part's position is fitted to each reference first. ignore: what does not count.
    """
    measured = np.isfinite(query)
    counted = measured if ignore is None else measured & ~ignore
    plain = _median(query)
    low, high = np.full(query.shape, np.inf, np.float32), np.full(query.shape, -np.inf, np.float32)
    lying: list[F32] = []
    nearest: tuple[F32, Plane, float] | None = None
    anywhere, inside = np.zeros(query.shape, bool), np.zeros(query.shape, bool)
    for reference, reach in zip(references, reaches, strict=True):
        there = np.isfinite(reference)
        plane, factor = fit(query, reference, there & counted, removal)
        moved = (factor * _median(reference) + height_of(plane, query.shape)).astype(np.float32)
        if nearest is None:
            nearest = (moved, plane, factor)
        lying.append(moved)
        lowest, highest = _envelope(moved, there)
        low, high = np.minimum(low, lowest), np.maximum(high, highest)
        anywhere |= there
        inside |= reach
    assert nearest is not None, "a height map is compared with at least one reference"
    covered = anywhere & measured
    outside = np.maximum(np.maximum(plain - high, low - plain), 0.0)
    kept = covered if ignore is None else covered & ~ignore
    outside[~kept] = 0.0
    deviation = _smoothed(outside, kept)
    reference, plane, factor = nearest
    signed = np.where(np.isfinite(reference) & measured, plain - reference, np.nan).astype(np.float32)
    seen = signed[np.isfinite(signed)]
    noise = _NORMAL_MAD * float(np.median(np.abs(seen - np.median(seen)))) if seen.size else 0.0
    for other in lying[1:]:  # where the nearest has a hole, the next one that has none
        signed = np.where(np.isfinite(signed) | ~measured, signed, plain - other).astype(np.float32)
    missing, beyond = anywhere & ~measured, measured & inside & ~anywhere
    if ignore is not None:
        missing, beyond = missing & ~ignore, beyond & ~ignore
    return HeightDifference(
        deviation, signed, reference, plane, factor, noise, spread_of(lying), covered, missing, beyond
    )  # fmt: skip


def _envelope(plane: F32, known: Mask) -> tuple[F32, F32]:
    """The lowest and highest height within `TOLERATED_PX` of each px; beside a hole, which may hide a flank, within
    `_BESIDE_HOLE_PX`. Infinite where there is none."""
    below, above = (np.where(known, plane, v).astype(np.float32) for v in (np.inf, -np.inf))
    near, wide = (np.ones((2 * r + 1, 2 * r + 1), np.uint8) for r in (TOLERATED_PX, _BESIDE_HOLE_PX))
    lowest, highest = cv2.erode(below, near), cv2.dilate(above, near)
    if known.all():
        return np.asarray(lowest, np.float32), np.asarray(highest, np.float32)
    beside = cv2.dilate((~known).astype(np.uint8), near) > 0
    return (
        np.where(beside, cv2.erode(below, wide), lowest).astype(np.float32),
        np.where(beside, cv2.dilate(above, wide), highest).astype(np.float32),
    )


def largest_patch(mask: Mask) -> tuple[int, Box | None]:
    """px of the largest connected place of a mask without its rim, and its box; (0, None) if nothing is left."""
    side = 2 * _RIM_PX + 1
    inner = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    n, _, stats, _ = cv2.connectedComponentsWithStats(inner)
    if n < 2:
        return 0, None
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    x, y, w, h, area = (int(v) for v in stats[best])
    return area, (x, y, x + w, y + h)


@dataclass(frozen=True)
class Sensor:
    """accuracy_mm: limits of error of a difference of two heights, as its manual says; 0: not stated."""

    accuracy_mm: float = 0.0


@dataclass(frozen=True)
class Place:
    """A place that is higher (or lower) than on the golden sample. Uncertainties are expanded (about 95 %)."""

    high: bool
    deviation_mm: float  # signed: the extreme
    deviation_uncertainty_mm: float
    highest_mm: float
    lowest_mm: float
    mean_mm: float
    volume_px_mm: float  # sum over its px of the signed difference: times mm² a px, its volume
    at: tuple[float, float]  # x, y px of the extreme, px centres at .5


def measure_place(
    query: F32, difference: HeightDifference, box: Box, mask: Mask, sensor: Sensor, residual_px: float
) -> Place:
    """Heights of a place: box x0, y0, x1, y1 (exclusive end) and mask (y1 - y0, x1 - x0) in px of the query.

    residual_px: of the registration. The uncertainty has the sensor's, how much good parts differ there (noise at least),
    what the registration leaves on a flank, and what smoothing takes from a small place.
    """
    x0, y0, x1, y1 = box
    at = np.s_[y0:y1, x0:x1]
    signed = _smoothed(np.nan_to_num(difference.signed), np.isfinite(difference.signed))[at]
    inside = mask & np.isfinite(difference.signed[at])
    if not inside.any():
        inside = mask
    peak = extreme_of(difference.deviation[at], signed, inside)
    extreme = float(signed[peak])
    sign = 1.0 if extreme >= 0 else -1.0
    raw = np.nan_to_num(difference.signed[at])  # median of 3 x 3 alone
    near = around(peak, _AROUND_PX)
    lost = max(0.0, float((sign * raw[near])[inside[near]].max()) - abs(extreme))
    others = math.sqrt(2.0) * float(np.median(difference.spread[at][inside]))
    edge = residual_px * _steepness(difference.reference, box, inside)
    sure = _standard(sensor.accuracy_mm / _UNIFORM, max(difference.noise_mm, others), edge, lost)
    return Place(
        sign > 0, extreme, _COVERAGE * sure, float(signed[inside].max()), float(signed[inside].min()),
        float(signed[inside].mean()), float(raw[inside].sum()), (x0 + int(peak[1]) + 0.5, y0 + int(peak[0]) + 0.5),
    )  # fmt: skip


def _standard(*parts: float) -> float:
    return math.sqrt(sum(p * p for p in parts))


def _steepness(reference: F32, box: Box, inside: Mask) -> float:
    """mm a px of the golden sample where a place is: the median of its gradient."""
    x0, y0, x1, y1 = box
    right = cv2.Sobel(reference, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(reference, cv2.CV_32F, 0, 1, scale=1 / 8)
    there = np.hypot(right, down)[y0:y1, x0:x1][inside]
    there = there[np.isfinite(there)]
    return float(np.median(there)) if there.size else 0.0


def _smoothed(values: F32, known: Mask) -> F32:
    """Gaussian of what is known; 0 where that is too little."""
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), SMOOTHING_PX)
    total = cv2.GaussianBlur(np.where(known, values, 0.0).astype(np.float32), (0, 0), SMOOTHING_PX)
    shown = np.where(known & (weight >= _LEAST_WEIGHT), total / np.maximum(weight, _LEAST_WEIGHT), 0.0)
    return np.asarray(shown, np.float32)


def _median(plane: F32) -> F32:
    """The median of 3 x 3 px; as it is beside a hole, where half of them may be of another height. NaN stays."""
    known = np.isfinite(plane)
    smooth = np.asarray(cv2.medianBlur(np.where(known, plane, 0.0).astype(np.float32), 3), np.float32)
    if known.all():
        return smooth
    whole = cv2.erode(known.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.where(whole, smooth, plane).astype(np.float32)


def nearest_filled(plane: F32) -> F32:
    """The plane with each hole filled by its nearest px; 0 where there is none at all."""
    known = np.isfinite(plane)
    if not known.any():
        return np.zeros_like(plane)
    at = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(plane[tuple(at)], np.float32)
