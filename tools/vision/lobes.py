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


def lobes(heat: F32, connected: Mask, above: Mask, smallest: float, halo: float, cell: float, most: int) -> list[Mask]:
    """The lobes of what is above the threshold, (H, W) bool, in a connected area (H, W) of a map (H, W) >= 0.

    heat: with some of what surrounds the area. smallest: px above the threshold, and above the part `halo` of its peak, that
    a lobe has at least, where there are several. cell: px of the map that it cannot tell apart. More than `most` are one.
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
    if not inside.any():
        return [region]
    lobe = _merged(small, inside, counted, smallest / step**2, halo)
    if step > 1:
        lobe = np.asarray(cv2.resize(lobe, heat.shape[::-1], interpolation=cv2.INTER_NEAREST))
    numbers = np.flatnonzero(np.bincount(lobe[region]))
    return [(lobe == number) & region for number in numbers] if len(numbers) <= most else [region]


def _merged(heat: F32, inside: Mask, counted: Mask, smallest: float, halo: float) -> NDArray[np.int32]:
    """(H, W): the number of the lobe that each px inside belongs to. counted: what counts as its area."""
    padded = np.pad(np.where(inside, heat, -1), 1, constant_values=-1).astype(np.float32)
    at = np.flatnonzero(padded >= 0)  # of the px inside, here by their number
    number = np.full(padded.size, -1, np.int32)
    number[at] = np.arange(len(at))
    basin, top = _basins(padded, at, number)
    basins = np.full(padded.shape, -1, np.int32)
    basins.ravel()[at] = basin
    basins = basins[1:-1, 1:-1]
    peak = padded.ravel()[at[top]].tolist()  # of the lobes
    order = np.argsort(basins[counted], kind="stable")
    ends = np.cumsum(np.bincount(basins[counted], minlength=len(top)))[:-1]
    values = [[v] for v in np.split(heat[counted][order], ends)]  # of the lobes: what counts
    parent = list(range(len(top)))

    def lobe(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    def area(of: int, in_lobe: int) -> int:
        """px of a lobe that count in another, or in itself."""
        return sum(int(np.count_nonzero(v > halo * peak[in_lobe])) for v in values[of])

    def is_line(lobes: tuple[int, int], height: float, y: int, x: int) -> bool:
        """Is what joins two lobes over a pass at (y, x) longer than wide, each by a factor of two in height?"""
        low = _nearest_low(heat, _HALF * height, y, x)
        if math.isinf(low):
            return False
        around, middle = _window(heat, y, x, math.ceil(2 * low))
        strong = (heat[around] >= height / _HALF) & (basins[around] >= 0)
        points, owners = np.argwhere(strong), [lobe(k) for k in basins[around][strong].tolist()]
        far = np.hypot(*(points - middle).T)
        # what is not in the window is further away than counts
        return 2 * low < sum(float(far[np.equal(owners, one)].min(initial=math.inf)) for one in lobes)

    areas = [area(k, k) for k in range(len(top))]
    apart: list[set[int]] = [set() for _ in top]
    for one, other, height, place in _passes(padded, at, number, basin):
        a, b = sorted((lobe(one), lobe(other)), key=lambda k: -peak[k])
        # of several passes between two lobes the highest, which came first, has decided
        if a == b or b in apart[a]:
            continue
        two = height <= _HALF * peak[b] and min(areas[a], areas[b]) >= smallest
        y, x = divmod(place, padded.shape[1])
        if two and not is_line((a, b), height, y - 1, x - 1):
            apart[a].add(b)
            apart[b].add(a)
            continue
        parent[b] = a
        areas[a] += area(b, a)
        values[a] += values[b]
        for k in apart[b]:
            apart[k].add(a)
        apart[a] |= apart[b]
    return np.array([lobe(k) for k in range(len(top))], np.int32)[basins]


def _window(heat: F32, y: int, x: int, reach: int) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """What lies at most `reach` px beside a place, and where the place is in it."""
    y0, x0 = max(0, y - reach), max(0, x - reach)
    return np.s_[y0 : y + reach + 1, x0 : x + reach + 1], (y - y0, x - x0)


def _nearest_low(heat: F32, height: float, y: int, x: int) -> float:
    """px from a place to the nearest that is at most so high; infinite for none."""
    reach, end = 4, 2 * max(heat.shape)
    while True:
        around, middle = _window(heat, y, x, reach)
        points = np.argwhere(heat[around] <= height)
        nearest = float(np.hypot(*(points - middle).T).min(initial=math.inf))
        if nearest <= reach or reach >= end:
            return nearest
        reach *= 2


def _basins(
    padded: F32, at: NDArray[np.int64], number: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(N,): the basin of each of the N px inside, numbered from 0; and the px that is the peak of each.

    padded: the map, -1 outside. at: the px, flat index. number: of each px of the map, -1 outside.
    """
    heat, row = padded.ravel(), padded.shape[1]
    highest, to = heat[at], number[at]
    for step in (-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1):
        other, its = heat[at + step], number[at + step]
        up = (other > highest) | ((other == highest) & (its > to))  # a plain has one peak, not many
        highest, to = np.where(up, other, highest), np.where(up, its, to)
    while not np.array_equal(further := to[to], to):
        to = further
    top = np.flatnonzero(to == np.arange(len(at)))
    numbered = np.zeros(len(at), np.int32)
    numbered[top] = np.arange(len(top))
    return numbered[to], top


def _passes(
    padded: F32, at: NDArray[np.int64], number: NDArray[np.int32], basin: NDArray[np.int32]
) -> list[tuple[int, int, float, int]]:
    """The highest pass between each two adjacent basins, highest first: both, its height, its flat index."""
    heat, row = padded.ravel(), padded.shape[1]
    found = []
    for step in (1, row - 1, row, row + 1):
        its = number[at + step]
        border = np.flatnonzero((its >= 0) & (basin[its] != basin))
        here, there = at[border], at[border] + step
        mine, other = basin[border].astype(np.int64), basin[its[border]]
        lower = np.where(heat[here] < heat[there], here, there)
        found.append((np.minimum(mine, other), np.maximum(mine, other), heat[lower], lower))
    a, b, height, place = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.argsort(-height, kind="stable")
    a, b, height, place = a[order], b[order], height[order], place[order]
    first = np.sort(np.unique(a * len(at) + b, return_index=True)[1])
    return list(zip(*(v[first].tolist() for v in (a, b, height, place)), strict=True))
