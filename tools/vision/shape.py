"""Length and width of a mask, skeleton lengths included."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from refdiff.model.images import Mask

_EIGHT = np.ones((3, 3), np.uint8)  # 8-connected neighbours

MIN_LINE_ASPECT = 4.0  # length over width from which a shape is a line


def is_line(mask: Mask) -> bool:
    _, sides, _ = cv2.minAreaRect(cv2.findNonZero(mask.astype(np.uint8)))
    long = max(sides) + 1.0
    return bool(long**2 >= MIN_LINE_ASPECT * mask.sum())


def filled(mask: NDArray[np.uint8]) -> Mask:
    """Without holes: a place where a part and what lies under it happen to be of one colour belongs to what is missing."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros_like(mask), outlines, -1, (1,), cv2.FILLED) > 0)


def length_and_width(mask: Mask, sigma: float) -> tuple[float, float]:
    """(length, width) in px of a mask that was cut after smoothing by `sigma` px."""
    points = cv2.findNonZero(mask.astype(np.uint8))
    _, sides, _ = cv2.minAreaRect(points)
    long, short = max(sides) + 1.0, min(sides) + 1.0  # from pixel centres to pixel borders
    area = float(mask.sum())
    joined = bridged(mask)
    inner = cv2.distanceTransform(np.pad(joined, 1).astype(np.uint8), cv2.DIST_L2, 5)
    if 2 * float(inner.max()) * MIN_LINE_ASPECT > 1.5 * long or area > 20_000:
        return long, short
    path = path_length(joined, inner[1:-1, 1:-1])
    bridges = float((joined & ~mask).sum())
    width = area / max(path - bridges, 1.0)
    if path < MIN_LINE_ASPECT * width:
        return long, short
    # a line seen through a smoothing filter is wider at half height: take that out again (2.355 sigma is its width there)
    return max(path, long), math.sqrt(max(width**2 - (2.355 * sigma) ** 2, 0.5**2))


def bridged(mask: Mask) -> Mask:
    """The mask with its pieces joined by one-pixel lines where they are nearest, so a path can run through."""
    joined = mask.astype(np.uint8)
    labels, n = ndimage.label(joined, structure=_EIGHT)
    if n < 2 or n > 32:
        return mask
    pieces = [np.argwhere(labels == i) for i in range(1, n + 1)]
    connected, waiting = pieces[0], pieces[1:]
    while waiting:
        tree = cKDTree(connected)
        reached = [tree.query(piece) for piece in waiting]
        k = int(np.argmin([float(distance.min()) for distance, _ in reached]))
        distance, at = reached[k]
        end, start = waiting[k][int(distance.argmin())], connected[int(at[int(distance.argmin())])]
        cv2.line(joined, (int(start[1]), int(start[0])), (int(end[1]), int(end[0])), (1,))
        connected = np.concatenate([connected, waiting.pop(k)])
    return joined > 0


def path_length(mask: Mask, inner: NDArray) -> float:
    """Length in px of the longest of the shortest paths through the mask, kept to its middle (geodesic diameter)."""
    ys, xs = np.nonzero(mask)
    number = np.full(np.add(mask.shape, 2), -1)
    number[ys + 1, xs + 1] = np.arange(len(ys))
    starts, ends, costs = [], [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = number[ys + 1 + dy, xs + 1 + dx]
        at = np.flatnonzero(other >= 0)
        depth = inner[ys[at], xs[at]] + inner[ys[other[at]], xs[other[at]]]
        starts.append(at)
        ends.append(other[at])
        costs.append(math.hypot(dy, dx) * (1 + 1 / np.maximum(depth, 1)))
    n = len(ys)
    links = (np.concatenate(starts), np.concatenate(ends))
    graph = sparse.csr_matrix((np.concatenate(costs), links), shape=(n, n))
    first = csgraph.dijkstra(graph, directed=False, indices=0)
    start = int(np.argmax(np.where(np.isfinite(first), first, -1)))
    cost, back = csgraph.dijkstra(graph, directed=False, indices=start, return_predecessors=True)
    node = int(np.argmax(np.where(np.isfinite(cost), cost, -1)))
    path = []
    while node >= 0:
        path.append((xs[node], ys[node]))
        node = int(back[node])
    # a staircase of pixels is longer than the line it represents
    line = cv2.approxPolyDP(np.array(path, np.float32), 1.0, False)
    return float(cv2.arcLength(line, False)) + 1.0
