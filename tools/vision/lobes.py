"""Lobes of an anomaly map: which peaks of a connected region are things of their own, and which are parts of one.

Every defect has a halo in the map, and the halos of neighbours run together. Two peaks are two lobes where the map falls to
half of the lower one between them, unless what joins them there is longer than it is wide: then it is not where two halos
meet, but a faint stretch of one line. Basins by steepest ascent, merged over their passes from the highest down
(topological persistence).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32, Mask

_HALF = 0.5  # of a peak: the height between two that makes them two
_CELL_PX = 8  # cells are shrunk to this: the map shows nothing finer


def lobes(heat: F32, connected: Mask, above: Mask, smallest: float, cell: float) -> list[Mask]:
    """The lobes of what is above the threshold, (H, W) bool, in a connected area (H, W) of a map (H, W).

    heat: with some of what surrounds the area. smallest: px above the threshold that a lobe has at least, where there are
    several. cell: px of the map that it cannot tell apart.
    """
    region = connected & above
    step = max(1.0, cell / _CELL_PX)
    size = (max(1, round(heat.shape[1] / step)), max(1, round(heat.shape[0] / step)))
    small, inside, counted = heat, connected, region
    if step > 1:
        small = np.asarray(cv2.resize(heat, size, interpolation=cv2.INTER_AREA), np.float32)
        inside, counted = (
            cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for m in (connected, region)
        )
    lobe = _merged(small, inside, counted, smallest / step**2)
    if step > 1:
        lobe = np.asarray(cv2.resize(lobe.astype(np.int32), heat.shape[::-1], interpolation=cv2.INTER_NEAREST))
    return [(lobe == number) & region for number in np.unique(lobe[region])]


def _merged(heat: F32, inside: Mask, counted: Mask, smallest: float) -> NDArray[np.int64]:
    """(H, W): the number of the lobe that each px inside belongs to. counted: what counts as its area."""
    basin, top = _basins(heat, inside)
    peaks = heat.ravel()[top]  # of the basins
    peak, area = peaks.tolist(), np.bincount(basin[counted], minlength=len(top)).tolist()  # of the lobes
    parent = list(range(len(top)))

    def lobe(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    def is_line(lobes: tuple[int, int], height: float, at: tuple[int, int]) -> bool:
        """Is what joins two lobes over a pass at (y, x) longer than wide, each by a factor of two in height?"""
        high = np.flatnonzero(peaks >= height / _HALF)
        owner = np.full(len(top), -1)
        owner[high] = [lobe(k) for k in high.tolist()]
        strong = heat >= height / _HALF
        long = sum(_distance(strong & inside & (owner[basin] == one), at) for one in lobes)
        return 2 * _distance(heat <= _HALF * height, at) < long

    apart: list[tuple[int, int]] = []
    for one, other, height, place in _passes(heat, basin, inside):
        a, b = sorted((lobe(one), lobe(other)), key=lambda k: -peak[k])
        # of several passes between two lobes the highest, which came first, has decided
        if a == b or any({lobe(i), lobe(j)} == {a, b} for i, j in apart):
            continue
        two = height <= _HALF * peak[b] and min(area[a], area[b]) >= smallest
        if two and not is_line((a, b), height, divmod(place, heat.shape[1])):
            apart.append((a, b))
            continue
        parent[b] = a
        area[a] += area[b]
    return np.array([lobe(k) for k in range(len(top))])[basin]


def _distance(mask: Mask, at: tuple[int, int]) -> float:
    """px from (y, x) to the nearest px of a mask; infinite for none."""
    points = np.argwhere(mask)
    return float(np.hypot(*(points - at).T).min()) if len(points) else math.inf


def _basins(heat: F32, inside: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(H, W): the basin of each px inside, numbered from 0; and the flat index of the peak of each."""
    heat = np.where(inside, heat, -1)
    h, w = heat.shape
    number = np.arange(heat.size).reshape(h, w)
    around, named = np.pad(heat, 1, constant_values=-2), np.pad(number, 1)
    highest, to = heat, number
    for dy in range(3):
        for dx in range(3):
            other = around[dy : dy + h, dx : dx + w]
            up = other > highest
            highest, to = np.where(up, other, highest), np.where(up, named[dy : dy + h, dx : dx + w], to)
    top_of = to.ravel()
    while not np.array_equal(further := top_of[top_of], top_of):
        top_of = further
    top = np.flatnonzero((top_of == number.ravel()) & inside.ravel())
    numbered = np.zeros(heat.size, np.int64)
    numbered[top] = np.arange(len(top))
    return numbered[top_of].reshape(h, w), top


def _passes(heat: F32, basin: NDArray[np.int64], inside: Mask) -> list[tuple[int, int, float, int]]:
    """The highest pass between each two adjacent basins, highest first: both, its height, its flat index."""
    h, w = heat.shape
    number = np.arange(heat.size).reshape(h, w)
    found = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.s_[: h - dy, max(0, -dx) : w - max(0, dx)]
        there = np.s_[dy:, max(0, dx) : w - max(0, -dx)]
        border = (basin[here] != basin[there]) & inside[here] & inside[there]
        lower = heat[here] < heat[there]
        found.append((
            np.minimum(basin[here], basin[there])[border], np.maximum(basin[here], basin[there])[border],
            np.minimum(heat[here], heat[there])[border], np.where(lower, number[here], number[there])[border],
        ))  # fmt: skip
    a, b, height, place = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.argsort(-height, kind="stable")
    a, b, height, place = a[order], b[order], height[order], place[order]
    _, first = np.unique(a * heat.size + b, return_index=True)
    return [(int(a[i]), int(b[i]), float(height[i]), int(place[i])) for i in np.sort(first)]
