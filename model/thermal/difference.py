"""The difference of two thermograms in kelvin: where a part is hotter or colder than its golden samples, and by how much.

All planes are (H, W) float32 in °C on one pixel grid; NaN where nothing was measured or a reference does not reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from refdiff.model.height.statistics import around, extreme_of, spread_of
from refdiff.model.images import F32, Box, Mask

TOLERATED_PX = 1  # of misregistration: next to an edge of 10 K/px more would hide, and less would invent, whole kelvins
SMOOTHING_PX = 1.0  # sigma; a spot of 5 px keeps 95 % of its height
_AROUND_PX = 3  # of a spot's extreme: as far as smoothing takes something from it
_NORMAL_MAD = 1.4826  # sigma of normal noise, in median absolute deviations
_MEDIAN_NOISE = 0.41  # part of white noise that the median of 3 x 3 px leaves (sigma)
_COVERAGE = 2.0  # of an expanded uncertainty: about 95 %
_UNIFORM = math.sqrt(3.0)  # from the half width of a range to its standard uncertainty
_HEALTHY_K = 1.0
_ALIKE_K, _ALIKE_PART = 1.0, 0.05  # how near, in K or in parts of the golden's range, a place is as warm as another
_MIN_PEERS_PX = 25


@dataclass(frozen=True)
class Camera:
    """What is known of how well temperatures were measured."""

    accuracy_k: float  # limits of error, of the larger of the two
    accuracy_percent: float
    emissivity: float | None  # None: not known
    emissivity_uncertainty: float  # one standard deviation
    reflected_c: float | None  # None: not known, as warm as the part's healthy places


@dataclass(frozen=True)
class HeatDifference:
    """A thermogram against its references, nearest first."""

    deviation: F32  # (H, W) K >= 0: how far it lies outside of what the references show; 0 where none reaches
    signed: F32  # (H, W) K, query minus nearest reference, its shift removed if that was asked for; NaN where it ends
    reference: F32  # (H, W) °C, the nearest, without shift
    shift_k: float  # median of query minus nearest reference: as much warmer is all of the part
    removed: bool  # whether the shift is removed from `deviation` and `signed`
    noise_k: float  # standard deviation of `signed` where nothing differs
    spread: F32  # (H, W) K, standard deviation of the references there; 0 where fewer than two reach
    covered: Mask  # (H, W), some reference reaches


def compare(query: F32, references: Sequence[F32], *, remove_shift: bool, ignore: Mask | None = None) -> HeatDifference:
    """Where `query` is hotter than the hottest, or colder than the coldest, of its references within `TOLERATED_PX`.

    references: on the query's pixels, NaN where they end. remove_shift: each reference is first made as warm as the query in
    the median of their pixels: another ambient temperature, or a camera that has drifted. ignore: what does not count.
    """
    counted = np.isfinite(query) if ignore is None else np.isfinite(query) & ~ignore
    plain = _median(query)
    low, high = np.full(query.shape, np.inf, np.float32), np.full(query.shape, -np.inf, np.float32)
    side = 2 * TOLERATED_PX + 1
    kernel = np.ones((side, side), np.uint8)
    covered = np.zeros(query.shape, bool)
    lying: list[F32] = []
    nearest: tuple[F32, F32, float] | None = None
    for reference in references:
        there = np.isfinite(reference)
        both = there & counted
        shift = float(np.median(query[both] - reference[both])) if both.any() else 0.0
        smooth = _median(reference)
        if nearest is None:
            nearest = (reference, smooth, shift)
        moved = smooth + (shift if remove_shift else 0.0)
        lying.append(np.where(there, moved, np.nan).astype(np.float32))
        low = np.minimum(low, cv2.erode(np.where(there, moved, np.inf).astype(np.float32), kernel))
        high = np.maximum(high, cv2.dilate(np.where(there, moved, -np.inf).astype(np.float32), kernel))
        covered |= there
    assert nearest is not None, "a thermogram is compared with at least one reference"
    covered &= np.isfinite(query)
    outside = np.maximum(np.maximum(plain - high, low - plain), 0.0)
    outside[~(covered & counted)] = 0.0
    deviation = cv2.GaussianBlur(outside, (0, 0), SMOOTHING_PX)
    deviation[~(covered & counted)] = 0.0
    reference, smooth, shift = nearest
    signed = plain - smooth - (shift if remove_shift else 0.0)
    signed[~np.isfinite(reference) | ~np.isfinite(query)] = np.nan
    seen = signed[np.isfinite(signed)]
    noise = _NORMAL_MAD * float(np.median(np.abs(seen - np.median(seen)))) if seen.size else 0.0
    for plane in lying[1:]:  # where the nearest ends, the next one that reaches
        signed = np.where(np.isfinite(signed) | ~np.isfinite(query), signed, plain - plane)
    return HeatDifference(
        np.asarray(deviation, np.float32), np.asarray(signed, np.float32), reference, shift, remove_shift, noise,
        spread_of(lying), covered,
    )  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A place that is hotter (or colder) than on the golden sample. Uncertainties are expanded (about 95 %)."""

    hot: bool
    max_c: float  # of a hot spot; the coldest temperature of a cold one
    hottest_c: float
    mean_c: float
    temperature_uncertainty_k: float
    delta_k: float  # against the nearest golden sample, signed: its extreme
    mean_delta_k: float
    delta_uncertainty_k: float
    healthy_delta_k: float  # of the place of `delta_k`, against the part's own healthy median, signed
    healthy_c: float  # that median
    healthy_alike: bool  # it is of places as warm as this one on the golden sample; else of all healthy places


def measure_spot(
    query: F32, difference: HeatDifference, box: Box, mask: Mask, camera: Camera, residual_px: float
) -> Spot:
    """Temperatures of a place: box x0, y0, x1, y1 (exclusive end) and mask (y1 - y0, x1 - x0) in px of the query.

    residual_px: of the registration. The uncertainty of a difference has the camera's (its offset cancels where the shift is
    removed), that of the emissivity, how much good parts differ there (noise at least), what the registration leaves beside
    the golden's edges, and what a small spot loses to the smoothing.
    """
    x0, y0, x1, y1 = box
    at = np.s_[y0:y1, x0:x1]
    plain, signed = _median(query), difference.signed
    inside = mask & np.isfinite(signed[at])
    if not inside.any():  # beside the nearest golden: others reach
        inside = mask
    here = np.nan_to_num(signed[at])
    peak = extreme_of(difference.deviation[at], here, inside)
    hot = bool(here[peak] >= 0)
    sign = 1.0 if hot else -1.0
    delta, mean_delta = float(here[peak]), float(here[inside].mean())
    warm = plain[at][inside]
    extreme = float(warm.max() if hot else warm.min())
    near = around(peak, _AROUND_PX)
    raw = (query - difference.reference)[at][near][inside[near]] - (difference.shift_k if difference.removed else 0.0)
    lost = max(0.0, float(np.nanmax(sign * raw)) - abs(delta)) if np.isfinite(raw).any() else 0.0
    at_peak = (y0 + peak[0], x0 + peak[1])
    healthy, alike = _healthy(query, difference, box, mask, at_peak)
    beyond = extreme - (healthy if camera.reflected_c is None else camera.reflected_c)
    accuracy = max(camera.accuracy_k, camera.accuracy_percent / 100 * abs(extreme))
    temperature = _standard(accuracy / _UNIFORM, _emissivity(camera, beyond))
    offset = 0.0 if difference.removed else math.sqrt(2.0) * camera.accuracy_k / _UNIFORM
    gain = camera.accuracy_percent / 100 * abs(delta) / _UNIFORM
    edge = residual_px * _steepness(difference.reference, box, mask)
    # good parts differ there, too: the golden sample is one of them, and so would this part be without the spot
    others = math.sqrt(2.0) * float(np.median(difference.spread[at][inside]))
    of_delta = _standard(offset, gain, _emissivity(camera, delta), max(difference.noise_k, others), edge, lost)
    return Spot(
        hot, extreme, float(warm.max()), float(warm.mean()), _COVERAGE * temperature, delta, mean_delta,
        _COVERAGE * of_delta, float(plain[at_peak]) - healthy, healthy, alike,
    )  # fmt: skip


def _healthy(query: F32, difference: HeatDifference, box: Box, mask: Mask, peak: tuple[int, int]) -> tuple[float, bool]:
    """The median of the part's healthy places that are as warm on the golden sample as the spot's `peak` (y, x) is there;
    and whether there are enough of them, else it is of all."""
    x0, y0, x1, y1 = box
    here = np.zeros(query.shape, np.uint8)
    here[y0:y1, x0:x1] = mask
    around = cv2.dilate(here, np.ones((7, 7), np.uint8)) > 0
    signed, reference = difference.signed, difference.reference
    off = signed - (0.0 if difference.removed else difference.shift_k)
    healthy = np.isfinite(off) & (np.abs(np.nan_to_num(off)) <= max(_HEALTHY_K, 3 * difference.noise_k)) & ~around
    if not healthy.any():
        healthy = np.isfinite(query) & ~around
    own = float(_median(reference)[peak])
    if np.isfinite(reference[peak]) and healthy.any():
        lo, hi = np.nanpercentile(reference, (1, 99))
        near = max(_ALIKE_K, _ALIKE_PART * float(hi - lo))
        peers = healthy & (np.abs(np.nan_to_num(reference, nan=np.inf) - own) <= near)
        if int(peers.sum()) >= _MIN_PEERS_PX:
            return float(np.median(query[peers])), True
    return float(np.nanmedian(query[healthy] if healthy.any() else query)), False


def from_own_healthy(query: F32, reference: F32, signed: F32) -> F32:
    """(H, W) K: how much warmer each place is than the part's own healthy places that are as warm as it on the reference.

    signed: query minus reference, its shift removed. NaN where the reference ends.
    """
    known = np.isfinite(signed) & np.isfinite(reference)
    if not known.any():
        return np.full(query.shape, np.nan, np.float32)
    off = signed[known]
    sigma = _NORMAL_MAD * float(np.median(np.abs(off - np.median(off))))
    healthy = known & (np.abs(np.nan_to_num(signed) - float(np.median(off))) <= max(_HEALTHY_K, 3 * sigma))
    bins = np.floor(reference[healthy]).astype(int)
    levels, at, counts = np.unique(bins, return_inverse=True, return_counts=True)
    order = np.argsort(at, kind="stable")
    groups = np.split(query[healthy][order], np.cumsum(counts)[:-1])
    # the middle of both, so that a bin's own slope does not count
    theirs = np.split(reference[healthy][order], np.cumsum(counts)[:-1])
    enough = [i for i in range(len(levels)) if counts[i] >= _MIN_PEERS_PX] or [int(counts.argmax())]
    xs = [float(np.median(theirs[i])) for i in enough]
    offs = [float(np.median(groups[i])) - x for i, x in zip(enough, xs, strict=True)]
    expected = reference + np.interp(reference, xs, offs)
    return np.asarray(np.where(known, _median(query) - expected, np.nan), np.float32)


def _emissivity(camera: Camera, delta: float) -> float:
    """What an error of the emissivity makes of a difference of temperatures, K: it scales all radiance."""
    return abs(delta) * camera.emissivity_uncertainty / (camera.emissivity or 1.0)


def _steepness(reference: F32, box: Box, mask: Mask) -> float:
    """K per px of the golden sample where a spot is: the median of its gradient."""
    x0, y0, x1, y1 = box
    plane = _median(reference)
    gradient = np.hypot(
        cv2.Sobel(plane, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(plane, cv2.CV_32F, 0, 1, scale=1 / 8)
    )
    there = gradient[y0:y1, x0:x1][mask]
    there = there[np.isfinite(there)]
    return float(np.median(there)) if there.size else 0.0


def _standard(*parts: float) -> float:
    return math.sqrt(sum(p * p for p in parts))


def _median(plane: F32) -> F32:
    """The median of 3 x 3 px; NaN becomes the plane's coldest value where it is not the majority."""
    known = np.isfinite(plane)
    filled = np.where(known, plane, np.nanmin(plane) if known.any() else 0.0).astype(np.float32)
    return np.asarray(cv2.medianBlur(filled, 3), np.float32)
