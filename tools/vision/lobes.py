"""Lobes of an anomaly map: which peaks of a connected region are things of their own, and which are parts of one.

Every defect has a halo in the map, and the halos of neighbours run together. Two peaks are two lobes where the map falls to
half of the lower one between them, unless what joins them there is longer than it is wide: then it is not where two halos
meet, but a faint stretch of one line. Basins by steepest ascent, merged over their passes from the highest down
(topological persistence).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32, Mask

_HALF = 0.5  # of a peak: the height between two that makes them two
_CELL_PX = 8  # cells are shrunk to this: the map shows nothing finer


def lobes(heat: F32, region: Mask, smallest: float, cell: float) -> list[Mask]:
    """The lobes of a connected region (H, W) bool of a map (H, W); together they are the region.

    heat: with some of what surrounds the region. smallest: px of area that a lobe has at least. cell: px of the map that it
    cannot tell apart.
    """
    step = max(1.0, cell / _CELL_PX)
    size = (max(1, round(heat.shape[1] / step)), max(1, round(heat.shape[0] / step)))
    small, inside = heat, region
    if step > 1:
        small = np.asarray(cv2.resize(heat, size, interpolation=cv2.INTER_AREA), np.float32)
        inside = cv2.resize(region.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    lobe = _merged(small, inside, smallest / step**2)
    if step > 1:
        lobe = np.asarray(cv2.resize(lobe, heat.shape[::-1], interpolation=cv2.INTER_NEAREST))
    return [(lobe == number) & region for number in np.unique(lobe[region])]


def _merged(heat: F32, inside: Mask, smallest: float) -> NDArray[np.int32]:
    """(H, W): the number of the lobe that each px belongs to, or would belong to."""
    basin, top = _basins(np.where(inside, heat, 0))
    peak = heat.ravel()[top]
    area = np.bincount(basin[inside], minlength=len(top)).astype(float)
    root = np.arange(len(top))  # of the basins: the lobe each is part of
    apart: list[tuple[int, int]] = []
    for one, other, height, place in _passes(heat, basin, inside):
        a, b = sorted((int(root[one]), int(root[other])), key=lambda k: -peak[k])
        # of several passes between two lobes the highest, which came first, has decided
        if a == b or any({root[i], root[j]} == {a, b} for i, j in apart):
            continue
        if (
            height <= _HALF * peak[b]
            and min(area[a], area[b]) >= smallest
            and not _is_line(heat, root[basin], a, b, height, divmod(place, heat.shape[1]))
        ):
            apart.append((a, b))
            continue
        root[root == b] = a
        area[a] += area[b]
    return np.asarray(root[basin], np.int32)


def _is_line(heat: F32, lobe: NDArray[np.int64], a: int, b: int, height: float, at: tuple[int, int]) -> bool:
    """Is what joins two lobes over a pass of that height at (y, x) longer than wide, each measured by a factor of two?"""
    strong = heat > height / _HALF
    long = 0.0
    for number in (a, b):
        points = np.argwhere(strong & (lobe == number))
        long += float(np.hypot(*(points - at).T).min()) if len(points) else 0.0
    low = np.argwhere(heat <= _HALF * height)
    return bool(len(low)) and 2 * float(np.hypot(*(low - at).T).min()) < long


def _basins(heat: F32) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(H, W): the basin of each px, numbered from 0; and the flat index of the peak of each."""
    h, w = heat.shape
    number = np.arange(heat.size).reshape(h, w)
    around, named = np.pad(heat, 1, constant_values=-1), np.pad(number, 1)
    highest, to = heat, number
    for dy in range(3):
        for dx in range(3):
            other = around[dy : dy + h, dx : dx + w]
            up = other > highest
            highest, to = np.where(up, other, highest), np.where(up, named[dy : dy + h, dx : dx + w], to)
    top_of = to.ravel()
    while not np.array_equal(further := top_of[top_of], top_of):
        top_of = further
    top, basin = np.unique(top_of, return_inverse=True)
    return basin.reshape(h, w), top


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
    _, first = np.unique(np.stack([a, b]), axis=1, return_index=True)
    return [(int(a[i]), int(b[i]), float(height[i]), int(place[i])) for i in np.sort(first)]
