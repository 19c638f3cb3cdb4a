"""Measure a finding: place, extent and area in native pixels, in mm where the scale is known, with an uncertainty.

The anomaly map says where to look but is coarse; what is measured is the photometrically matched difference of photo and
registered reference, or, without a registration, the contrast against the surroundings, or, where no pixel stands out,
the region of the map itself. Knows nothing about verdicts or limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.errors import InputError
from refdiff.model.images import Box, Mask, RgbImage, widen
from refdiff.tools.vision.crops import clip_box, warp_window
from refdiff.tools.vision.regions import MAP_PX, map_size, map_window, place_name
from refdiff.tools.vision.registration import Alignment, steepness
from refdiff.tools.vision.shape import filled, is_line, length_and_width, tight, union

Method = Literal["difference", "contrast", "map"]  # the surest first
Plane = NDArray[np.float32]

_MIN_EXPLAINED = 0.75  # part of the region that the pixels found must explain
_CELL_PART = 8 / 320  # one cell of the anomaly map, as a part of the image's long side
_WINDOW_PX = 800  # a larger window is measured shrunk: a defect that fills it needs no finer pixels
_MIN_WINDOW_PX = 64
_START_SIGMAS, _BELONG_SIGMAS = 5.0, 3.0  # hysteresis: sigmas that start a defect, and that belong to one
_MIN_RELATIVE_STRENGTH = 0.18  # part of a defect's own strength that its faint parts must have
_SMOOTHING_PX = (0.7, 2.0)  # px of smoothing; the second finds what is faint but wide
_THRESHOLD_FACTORS = (0.5, 1.8)  # factors on the thresholds: how much does the size depend on them?
_MAX_MEDIAN_PX = 255  # px
_MAX_SHIFT_PX = 6  # px of misregistration forgiven at most
_MAX_TAIL_FACTOR = 2.5  # how far structure that good samples do not share may raise the thresholds
_EIGHT_NEIGHBOURS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Measurement:
    """The size of a finding. The mm values are None unless the scale is known."""

    box: Box  # tight, query px
    mask: Mask  # (y1 - y0, x1 - x0) bool in the box
    place: str
    length_px: float  # along the line for thin shapes, along the main axis for compact ones
    width_px: float  # across it
    uncertainty_px: float  # about one standard deviation of either
    method: Method
    smoothed_px: float = 0.0  # sigma of the smoothing before its pixels were cut out
    length_mm: float | None = None
    width_mm: float | None = None
    area_mm2: float | None = None
    uncertainty_mm: float | None = None  # with the scale's own uncertainty

    @property
    def area_px(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True)
class _Window:
    """What one attempt works on: a padded cut of the photo, shrunk by `shrink` (1 = native)."""

    box: Box
    shrink: float
    query: Plane  # (h, w, 3)
    support: Mask  # where the map says the defect is
    heat: Plane  # the map itself, 0 at the window's floor .. 1 at the defect's peak
    reachable: Mask  # where the map is high enough for the defect to continue
    quiet: Mask  # where the map says there is none


@dataclass(frozen=True)
class _Residual:
    """In units of the noise, (h, w) >= 0. strict: what no small shift of the reference explains; plain: all of it."""

    strict: Plane
    plain: Plane
    reach: int  # px by which `strict` may have eaten into a defect


def measure(
    query: RgbImage,
    reference: RgbImage | None,
    alignment: Alignment,
    anomaly_map: NDArray[np.float32],
    box: Box,
    *,
    mask: Mask | None = None,
    mm_per_px: float | None = None,
    scale_uncertainty: float = 0.0,
    cell: float | None = None,
) -> Measurement:
    """Measure what the anomaly map found in `box` (x0, y0, x1, y1, exclusive end) of the query (H, W, 3).

    anomaly_map: of the query's `map_size`. mask: (y1 - y0, x1 - x0) bool, the region's own shape in the box.
    scale_uncertainty: relative, one standard deviation. cell: query px that the map cannot tell apart; default that of a map
    of one tile.
    Deterministic. Raises InputError: box outside the image, map or mask of another size, scale not above 0.
    """
    size = query.shape[:2]
    if anomaly_map.shape != map_size(size):
        raise InputError(f"anomaly map of {anomaly_map.shape} does not fit the photo of {size}; score this photo again")
    if mm_per_px is not None and not (math.isfinite(mm_per_px) and mm_per_px > 0):
        raise InputError(f"scale {mm_per_px} mm/px must be above 0; leave it out if it is unknown")
    if not (math.isfinite(scale_uncertainty) and scale_uncertainty >= 0):
        raise InputError(f"scale uncertainty {scale_uncertainty} must be >= 0 (0.01 is one percent)")
    inside = clip_box(box, size)
    region = _region(anomaly_map, box, inside, size, mask)
    cell = max(1.0, _CELL_PART * max(size) if cell is None else cell)
    measured = _measure_px(query, reference, alignment, anomaly_map, inside, region, cell)
    return _in_mm(measured, mm_per_px, scale_uncertainty)


def measured_as_one(
    parts: Sequence[Measurement], size: tuple[int, ...], mm_per_px: float | None, scale_uncertainty: float = 0.0
) -> Measurement:
    """Measured pieces of one thing in a photo of `size` (H, W, ...); as sure of it as of the least sure of them."""
    if len(parts) == 1:
        return parts[0]
    box, mask = union([(m.box, m.mask) for m in parts])
    sigma = max(m.smoothed_px for m in parts)
    # of a long line many px are shrunk to one, which keeps the length but not the width
    line_width = float(np.average([m.width_px for m in parts], weights=[m.length_px for m in parts]))
    length, width = _length_and_width(mask, sigma, _WINDOW_PX, line_width)
    u = math.hypot(*(m.uncertainty_px for m in parts))
    method = max((m.method for m in parts), key=get_args(Method).index)
    place = place_name(box, (size[0], size[1]))
    return _in_mm(Measurement(box, mask, place, length, width, u, method, sigma), mm_per_px, scale_uncertainty)


def _length_and_width(mask: Mask, sigma: float, most_px: int, line_width: float | None = None) -> tuple[float, float]:
    """As of `length_and_width`, for a mask of any size: of one shrunk to `most_px` on its long side."""
    h, w = mask.shape
    huge = max(1.0, max(w, h) / most_px)
    target = (max(1, round(w / huge)), max(1, round(h / huge)))
    # of a thin line nothing may get lost
    small = cv2.resize(mask * np.uint8(255), target, interpolation=cv2.INTER_AREA) > 0 if huge > 1 else mask
    length, width = length_and_width(small, sigma / huge, None if line_width is None else line_width / huge)
    return huge * length, huge * width


def _in_mm(m: Measurement, mm_per_px: float | None, scale_uncertainty: float) -> Measurement:
    if mm_per_px is None:
        return m
    length, width = m.length_px * mm_per_px, m.width_px * mm_per_px
    u = math.hypot(m.uncertainty_px * mm_per_px, length * scale_uncertainty)
    return replace(m, length_mm=length, width_mm=width, area_mm2=m.area_px * mm_per_px**2, uncertainty_mm=u)


def _region(anomaly_map: NDArray[np.float32], box: Box, inside: Box, size: tuple[int, int], mask: Mask | None) -> Mask:
    """(h, w) bool in the clipped box: the given shape, or the map's upper half."""
    x0, y0, x1, y1 = inside
    if mask is not None:
        bx, by = int(box[0]), int(box[1])
        if mask.shape != (int(box[3]) - by, int(box[2]) - bx):
            raise InputError(
                f"region mask of {mask.shape} does not fit the box {tuple(box)}; pass the region's own box"
            )
        cut = mask[y0 - by : y1 - by, x0 - bx : x1 - bx].astype(bool)
        if cut.any():
            return cut
    cut_map = map_window(anomaly_map, inside, size)
    lo, hi = float(cut_map.min()), float(cut_map.max())
    return np.asarray(cut_map >= (lo + hi) / 2)


def _measure_px(
    query: RgbImage,
    reference: RgbImage | None,
    alignment: Alignment,
    anomaly_map: NDArray[np.float32],
    inside: Box,
    region: Mask,
    cell: float,
) -> Measurement:
    size = query.shape[:2]
    pad = round(max(2 * cell, 0.4 * max(inside[2] - inside[0], inside[3] - inside[1])))
    for _ in range(3):
        window = _cut(query, anomaly_map, widen(inside, pad, _MIN_WINDOW_PX, size), inside, region, cell)
        found, method, misfit, sigma = _segment(window, reference, alignment)
        if found is None or not _touches(found, window, size):
            break
        pad *= 2  # the defect continues outside: enlarge the window
    if found is None:
        return _from_map(inside, region, cell, size)
    tried = [length_and_width(m, sigma) for m in found]
    length, width = tried[0]
    spread = max((max(abs(a - length), abs(b - width)) for a, b in tried[1:]), default=0.0)
    quantum = 0.7 * window.shrink  # half a pixel at either end
    # a defect that leaves what the map shows may end anywhere within a cell; contrast has no reference to trust
    unsure = 0.5 * cell if (found[0] & ~window.support).any() else 0.0
    guess = 0.1 * length * window.shrink if method == "contrast" else 0.0
    u = math.hypot(spread * window.shrink / 2, quantum, misfit, unsure, guess)
    at, full = _native(found[0], window)
    if _explained(region, inside, full, at, 2 * cell) < _MIN_EXPLAINED:
        return _from_map(inside, region, cell, size)  # only single pixels of the defect stand out
    length, width = length * window.shrink, width * window.shrink
    return Measurement(at, full, place_name(at, size), length, width, u, method, sigma * window.shrink)


def _explained(region: Mask, inside: Box, found: Mask, at: Box, reach: float) -> float:
    """Part 0..1 of the map's region that lies within `reach` px of the pixels found (a mask on the box `at`)."""
    near = np.ones(region.shape, np.uint8)
    x0, y0, x1, y1 = max(at[0], inside[0]), max(at[1], inside[1]), min(at[2], inside[2]), min(at[3], inside[3])
    if x0 < x1 and y0 < y1:
        shared = found[y0 - at[1] : y1 - at[1], x0 - at[0] : x1 - at[0]]
        near[y0 - inside[1] : y1 - inside[1], x0 - inside[0] : x1 - inside[0]] = ~shared
    if near.all():
        return 0.0
    far = cv2.distanceTransform(near, cv2.DIST_L2, 5)
    return float((far[region] <= reach).mean())


def _cut(
    query: RgbImage, anomaly_map: NDArray[np.float32], outer: Box, inside: Box, region: Mask, cell: float
) -> _Window:
    x0, y0, x1, y1 = outer
    h, w = y1 - y0, x1 - x0
    cut: NDArray[np.uint8] = query[y0:y1, x0:x1]
    heat: Plane = map_window(anomaly_map, outer, query.shape)
    support = np.zeros((h, w), np.uint8)
    support[inside[1] - y0 : inside[3] - y0, inside[0] - x0 : inside[2] - x0] = region
    huge = max(1.0, max(h, w) / MAP_PX)
    if huge > 1:
        h, w, cell = round(h / huge), round(w / huge), cell / huge
        cut = np.asarray(cv2.resize(cut, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
        heat = np.asarray(cv2.resize(heat, (w, h), interpolation=cv2.INTER_AREA), np.float32)
        # no part of the region may get lost
        support = (cv2.resize(support * 255, (w, h), interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    near = _grow(support, round(cell / 2))
    # a second defect in the window is not noise
    peak = float(heat[support > 0].max())
    quiet = (_grow(support, round(2 * cell)) == 0) & (heat < 0.5 * peak)
    floor = float(np.median(heat[support == 0])) if (support == 0).any() else 0.0
    heat = np.clip((heat - floor) / max(peak - floor, 1e-9), 0, 1).astype(np.float32)
    reachable = _grow(((near > 0) | (heat > 0.25)).astype(np.uint8), round(cell / 2))
    if quiet.mean() < 0.1:
        quiet = near == 0
    if quiet.mean() < 0.1:
        quiet = np.ones((h, w), bool)
    shrink = max(1.0, max(h, w) / _WINDOW_PX)
    picture: Plane = cut.astype(np.float32)
    if shrink > 1:
        target = (round(w / shrink), round(h / shrink))
        picture = np.asarray(cv2.resize(picture, target, interpolation=cv2.INTER_AREA), np.float32)
        near = np.asarray(cv2.resize(near, target, interpolation=cv2.INTER_NEAREST), np.uint8)
        heat = np.asarray(cv2.resize(heat, target, interpolation=cv2.INTER_AREA), np.float32)
        reachable = np.asarray(cv2.resize(reachable, target, interpolation=cv2.INTER_NEAREST), np.uint8)
        quiet = cv2.resize(quiet.astype(np.uint8), target, interpolation=cv2.INTER_NEAREST) > 0
    return _Window(outer, shrink * huge, picture, near > 0, heat, reachable > 0, quiet)


def _grow(mask: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Square dilation by `radius` px."""
    if radius < 1:
        return mask
    return np.asarray(cv2.dilate(mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)), np.uint8)


def _touches(found: list[Mask], window: _Window, size: tuple[int, int]) -> bool:
    """Does the defect reach a side of the window that is not a side of the image?"""
    m, (x0, y0, x1, y1) = found[0], window.box
    open_sides = ((m[:2], y0 > 0), (m[-2:], y1 < size[0]), (m[:, :2], x0 > 0), (m[:, -2:], x1 < size[1]))
    return any(more and side.any() for side, more in open_sides)


# --- what differs


def _segment(
    window: _Window, reference: RgbImage | None, alignment: Alignment
) -> tuple[list[Mask] | None, Method, float, float]:
    """Masks at the nominal and the perturbed thresholds (None: nothing stands out), how, and two lengths in px:

    how far registration may be off, and how much the picture was smoothed.
    """
    if reference is not None and alignment.ok:
        other, covered = _reference(window, reference, alignment)
        if covered[window.support].mean() > 0.5:
            misfit = (0.5 if alignment.residual_px is None else alignment.residual_px) / window.shrink
            other, misfit = _nudge(window, other, misfit)
            signed = np.stack([_matched(window, other, c, covered) for c in range(3)], -1)
            signed -= _drift(signed, window, covered)
            signed[~covered] = 0
            for sigma in _SMOOTHING_PX:
                found = _found(window, _difference(window, other, signed, misfit, sigma))
                if found is not None:
                    return found, "difference", misfit * window.shrink, sigma
            return None, "map", 0.0, 0.0
    for sigma in _SMOOTHING_PX:
        found = _found(window, _contrast(window, sigma))
        if found is not None:
            return found, "contrast", 0.5, sigma
    return None, "map", 0.0, 0.0


def _reference(window: _Window, reference: RgbImage, alignment: Alignment) -> tuple[Plane, Mask]:
    other, covered = warp_window(reference, alignment, window.box)
    h, w = window.query.shape[:2]
    if window.shrink > 1:
        other = np.asarray(cv2.resize(other, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
        covered = cv2.resize(covered.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0
    return other.astype(np.float32), covered


def _nudge(window: _Window, other: Plane, misfit: float) -> tuple[Plane, float]:
    """Registration worked on a small copy of the whole photo: shift what it left over here, if that fits better."""
    h, w = window.query.shape[:2]
    a, b = (_edges(p) for p in (other, window.query))
    b = np.where(window.quiet, b, a).astype(np.float32)  # the defect itself must not pull
    # copies: OpenCV 5 applies the window to its inputs in place
    (dx, dy), response = cv2.phaseCorrelate(a.copy(), b.copy(), cv2.createHanningWindow((w, h), cv2.CV_32F))
    if response < 0.1 or not 0.1 < math.hypot(dx, dy) <= 2 * misfit + 2:
        return other, misfit
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    moved = np.asarray(cv2.warpAffine(other, move, (w, h), borderMode=cv2.BORDER_REPLICATE), np.float32)
    before = np.abs(a - b)[window.quiet].mean()
    after = np.abs(_edges(moved) - b)[window.quiet].mean()
    return (moved, min(misfit, 0.5)) if after < 0.97 * before else (other, misfit)


def _edges(picture: Plane) -> Plane:
    return steepness(cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (0, 0), 1.0))


def _matched(window: _Window, other: Plane, channel: int, covered: Mask) -> Plane:
    """Query minus the reference under the query's light, one channel, signed grey levels. Alters `other` in place.

    Light: a curve (gain, offset, gamma's bend) and a slope across the window, fitted where the map is quiet, twice
    without the worst fifth.
    """
    h, w = covered.shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    r, q = other[..., channel] / 255, window.query[..., channel]
    base = np.stack([np.ones_like(r), r, r * r, x, y, x * r, y * r], -1)
    at = np.flatnonzero(window.quiet & covered)
    if len(at) < 50:
        at = np.flatnonzero(covered)
    at = at[:: max(1, len(at) // 4000)]
    columns, values = base.reshape(-1, base.shape[-1])[at].astype(np.float64), q.ravel()[at].astype(np.float64)
    ridge = np.diag([1e-6, 1e-6, 1e-1, 1e-2, 1e-2, 1e-2, 1e-2]) * len(at) * 0.02
    keep = np.ones(len(at), bool)
    weights = np.zeros(base.shape[-1])
    for _ in range(3):
        a = columns[keep]
        # the prior "same picture" keeps a window without contrast from inventing a gain
        weights = np.linalg.solve(a.T @ a + ridge, a.T @ values[keep] + ridge @ np.array([0, 255.0, 0, 0, 0, 0, 0]))
        error = np.abs(values - columns @ weights)
        keep = error <= np.quantile(error, 0.8)
    other[..., channel] = base @ weights.astype(np.float32)
    return np.asarray(q - other[..., channel], np.float32)


def _drift(signed: Plane, window: _Window, covered: Mask) -> Plane:
    """Residual shading from another lamp: the slow part of the residual, interpolated across the defect."""
    side = max(window.support.shape) // 4 | 1
    weight = (window.quiet & covered).astype(np.float32)
    limited = np.clip(signed, -25, 25) * weight[..., None]  # no single edge may dominate its surroundings
    total = cv2.blur(cv2.blur(weight, (side, side)), (side, side))[..., None]
    slow = cv2.blur(cv2.blur(limited, (side, side)), (side, side))
    return np.asarray(slow / np.maximum(total, 0.02), np.float32)


def _sigma(values: NDArray) -> float:
    """Robust standard deviation (MAD), at least the half grey level that rounding leaves."""
    return max(0.5, 1.4826 * float(np.median(np.abs(values - np.median(values)))))


def _difference(window: _Window, other: Plane, signed: Plane, misfit: float, sigma: float) -> _Residual:
    """Residual against the reference itself, and against all that it shows within the misregistration."""
    radius = int(np.clip(round(misfit + 1), 1, _MAX_SHIFT_PX))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    q, r = (np.asarray(cv2.GaussianBlur(p, (0, 0), sigma), np.float32) for p in (other + signed, other))
    above, below = q - cv2.dilate(r, kernel), cv2.erode(r, kernel) - q
    strict = np.maximum(np.maximum(above, below), 0)
    plain = q - r
    noise = np.array([_sigma(plain[window.quiet][:, c]) for c in range(3)], np.float32)
    strict, plain = (strict / noise).max(-1), (np.abs(plain) / noise).max(-1)
    # texture and highlights differ between good samples too: the tail of the quiet part is not a defect
    tail = float(np.clip(np.quantile(strict[window.quiet], 0.99) / _BELONG_SIGMAS, 1, _MAX_TAIL_FACTOR))
    return _Residual(strict / np.float32(tail), plain, radius + 2)


def _wide_median(picture: NDArray[np.uint8], k: int) -> Plane:
    """Median of (h, w, 3) uint8 over k x k, k odd, as float32. A wide one is taken on a shrunken picture.

    OpenCV counts equal pixels in 16 bits: on a plain area its median fails from somewhere above 301 px on.
    """
    h, w = picture.shape[:2]
    if k > _MAX_MEDIAN_PX:
        f = _MAX_MEDIAN_PX / k
        small = cv2.resize(picture, (max(1, round(w * f)), max(1, round(h * f))), interpolation=cv2.INTER_AREA)
        median = cv2.medianBlur(small, _MAX_MEDIAN_PX)
        return np.asarray(cv2.resize(median, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(cv2.medianBlur(picture, k), np.float32)


def _contrast(window: _Window, sigma: float) -> _Residual:
    """Contrast against the median of the surroundings, dark or bright."""
    ys, xs = np.nonzero(window.support)
    k = int(min(max(np.ptp(ys), np.ptp(xs)) + 1, min(window.support.shape) - 1)) | 1
    flat = _wide_median(np.clip(window.query + 0.5, 0, 255).astype(np.uint8), max(5, k))
    plain = cv2.GaussianBlur(window.query, (0, 0), sigma) - flat
    noise = np.array([_sigma(plain[window.quiet][:, c]) for c in range(3)], np.float32)
    size = np.asarray((np.abs(plain) / noise).max(-1), np.float32)
    tail = max(1.0, float(np.quantile(size[window.quiet], 0.99)) / _START_SIGMAS)
    return _Residual(size / np.float32(tail), size / np.float32(math.sqrt(tail)), 2)


# --- which pixels belong to it


def _found(window: _Window, residual: _Residual) -> list[Mask] | None:
    nominal = _select(window, residual, 1.0)
    if nominal is None:
        return None
    others = (_select(window, residual, f) for f in _THRESHOLD_FACTORS)
    return [nominal, *(m for m in others if m is not None)]


def _select(window: _Window, residual: _Residual, factor: float) -> Mask | None:
    """The supported pixels of the defect at `factor` times the thresholds, near pieces joined."""
    seeds = (residual.strict > _START_SIGMAS * factor) & window.support
    if not seeds.any():
        return None
    # next to a strong defect, ignore weak lighting or texture differences
    floor = max(_BELONG_SIGMAS, _MIN_RELATIVE_STRENGTH * _strength(residual.strict, window, seeds)) * factor
    seeds &= residual.strict > 1.5 * floor
    low = (residual.strict > floor) & window.reachable
    _, labels = cv2.connectedComponents(low.astype(np.uint8))
    core = low & np.isin(labels, labels[seeds])
    if not core.any():
        return None
    plain_floor = (
        max(_BELONG_SIGMAS, _MIN_RELATIVE_STRENGTH * _strength(residual.plain, window, core & window.support)) * factor
    )
    # the strict residual loses the rim of what the reference shows, the plain one has it
    body = ((residual.plain > plain_floor) & window.reachable) | core
    body &= _grow(core.astype(np.uint8), residual.reach) > 0
    body = _slim(body, residual.plain)
    n, labels = cv2.connectedComponents(body.astype(np.uint8))
    n -= 1  # the first is the background
    # the map peaks on the defect, not on what is changed beside it
    strength = residual.plain * window.support * window.heat**2
    weight = np.bincount(labels.ravel(), strength.ravel(), n + 1)[1:]
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    if n == 0:
        return None
    keep = (weight >= 0.2 * weight.max()) & (area >= 3)
    if not keep.any():
        return None
    return _joined(labels, keep, weight)


def _strength(residual: Plane, window: _Window, where: Mask) -> float:
    """Peak strength of the defect, robust against single pixels."""
    values = np.sort((residual * window.heat)[where])
    return float(values[-max(12, len(values) // 10) :].mean())


def _slim(body: Mask, plain: Plane) -> Mask:
    """Lines cut at half their height: camera blur and smoothing widen a line by more than it is wide."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    thick = _grow(np.asarray(cv2.morphologyEx(body.astype(np.uint8), cv2.MORPH_OPEN, disc), np.uint8), 2)
    crest = cv2.dilate(plain, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    return np.asarray(body & ((thick > 0) | (plain > 0.5 * crest)))


def _joined(labels: NDArray, keep: NDArray[np.bool_], weight: NDArray) -> Mask:
    """The kept pieces: of a line with its fainter pieces nearby, of a spot without attached threads."""
    main = labels == int(np.argmax(weight)) + 1
    if not is_line(main):
        chosen = np.concatenate([[False], keep])[labels].astype(np.uint8)
        # residue along an edge that runs into the spot is a thread of a pixel or two
        solid = np.asarray(cv2.morphologyEx(chosen, cv2.MORPH_OPEN, _EIGHT_NEIGHBOURS), np.uint8)
        return filled(chosen & _grow(solid, 1) if (solid & main).any() else chosen)
    pieces = labels > 0
    for _ in range(4):
        chosen = np.concatenate([[0], keep])[labels].astype(np.uint8)
        ys, xs = np.nonzero(chosen)
        gap = float(np.clip(0.15 * math.hypot(np.ptp(ys), np.ptp(xs)), 3, 16))
        far = cv2.distanceTransform(1 - chosen, cv2.DIST_L2, 5)
        nearest = np.full(len(keep), np.inf)
        np.minimum.at(nearest, labels[pieces] - 1, far[pieces])
        more = keep | ((nearest <= gap) & (weight >= 0.02 * weight.max()))
        if (more == keep).all():
            break
        keep = more
    return np.asarray(np.concatenate([[False], keep])[labels])


def _native(mask: Mask, window: _Window) -> tuple[Box, Mask]:
    """The mask cut to its tight box, in native query px."""
    x0, y0, x1, y1 = window.box
    full = mask
    if window.shrink > 1:
        full = cv2.resize(mask.astype(np.uint8), (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST) > 0
    return tight(full, (x0, y0))


# --- how large they are


def of_mask(
    box: Box, mask: Mask, size: tuple[int, ...], mm_per_px: float | None, scale_uncertainty: float = 0.0
) -> Measurement:
    """The size of what another measurement found: mask (y1 - y0, x1 - x0) in a box of an image of `size` (H, W, ...)."""
    at, inside = tight(mask, box[:2])
    length, width = _length_and_width(inside, 0.0, MAP_PX)
    found = Measurement(at, inside, place_name(at, (size[0], size[1])), length, width, 1.0, "map")
    return _in_mm(found, mm_per_px, scale_uncertainty)


def _from_map(inside: Box, region: Mask, cell: float, size: tuple[int, int]) -> Measurement:
    """Fallback: measure the map region itself, with a correspondingly large uncertainty."""
    box, mask = tight(region, inside[:2])
    length, width = _length_and_width(mask, 0.0, MAP_PX)
    # a map blurs by its cells and by how far the network sees: true sizes from a point to the region itself
    u = max(2 * cell, 0.5 * length)
    return Measurement(box, mask, place_name(box, size), length, width, u, "map")
