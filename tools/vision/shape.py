"""Masks: length and width, skeleton lengths included; which of them touch or continue each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from refdiff.model.images import Box, Mask

_EIGHT = np.ones((3, 3), np.uint8)  # 8-connected neighbours

MIN_LINE_ASPECT = 4.0  # length over width from which a shape is a line
_MIN_STRIP = 3.0  # the same of a stretch, a gap and a stretch, each as long as the others: no wider than one is long


def tight(mask: Mask, corner: tuple[int, int]) -> tuple[Box, Mask]:
    """A mask cut to what is in it, and its box; corner: x, y of its first px. At least one px must be set."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    box = (corner[0] + x, corner[1] + y, corner[0] + x + w, corner[1] + y + h)
    return box, np.ascontiguousarray(mask[y : y + h, x : x + w])


def union(parts: Sequence[tuple[Box, Mask]]) -> tuple[Box, Mask]:
    """Masks, each on its box, as one on the box round all."""
    boxes = np.array([box for box, _ in parts])
    (x0, y0), (x1, y1) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    whole = np.zeros((y1 - y0, x1 - x0), bool)
    for box, mask in parts:
        whole[box[1] - y0 : box[3] - y0, box[0] - x0 : box[2] - x0] |= mask
    return (x0, y0, x1, y1), whole


@dataclass(frozen=True)
class Shape:
    """A mask on its box, with its outline, for comparing it with others."""

    box: Box
    mask: Mask
    outline: NDArray[np.float32]  # (n, 2) x, y of the px at its borders, holes included
    sides: tuple[float, float]  # length, width px of the smallest box round it
    is_line: bool

    @classmethod
    def of(cls, box: Box, mask: Mask) -> Shape:
        found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=box[:2])
        outline = np.concatenate(found)[:, 0].astype(np.float32)
        sides = _sides(outline)
        return cls(box, mask, outline, sides, bool(sides[0] ** 2 >= MIN_LINE_ASPECT * mask.sum()))


def belong_together(one: Shape, other: Shape, reach: float) -> bool:
    """Are two masks pieces of one thing: at most `reach` px apart, or of one line?

    Of a line: neither is shorter than the gap, and the gap with as much of both lies on a strip no wider than the gap is
    long, and wider than theirs by a third of it at most. One of them has to be a line itself: two spots stay two.
    """
    shorter = min(one.sides[0], other.sides[0])
    lines = one.is_line or other.is_line
    ours, its = np.array(one.box), np.array(other.box)
    apart = np.maximum(np.maximum(ours[:2] - its[2:], its[:2] - ours[2:]) + 1, 0)
    if math.hypot(*apart) > (max(reach, shorter) if lines else reach):
        return False
    if _overlap((one.box, one.mask), (other.box, other.mask)):
        return True
    a, b = one.outline, other.outline
    distance, nearest = cKDTree(a).query(b)
    k = int(distance.argmin())
    gap = float(distance[k])
    if gap <= reach:
        return True
    if gap > shorter or not lines:
        return False
    ends = [p[np.hypot(*(p - at).T) <= gap] for p, at in ((a, a[int(nearest[k])]), (b, b[k]))]
    long, wide = _sides(np.concatenate(ends))
    aside = wide - max(_sides(end)[1] for end in ends)
    return long >= _MIN_STRIP * wide and gap >= _MIN_STRIP * aside


def _sides(points: NDArray) -> tuple[float, float]:
    """(length, width) px of the smallest box, turned in any way, round the px at those centres."""
    _, sides, _ = cv2.minAreaRect(points)
    return max(sides) + 1.0, min(sides) + 1.0


def _overlap(one: tuple[Box, Mask], other: tuple[Box, Mask]) -> bool:
    (a, mine), (b, its) = one, other
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    if x0 >= x1 or y0 >= y1:
        return False
    shared = mine[y0 - a[1] : y1 - a[1], x0 - a[0] : x1 - a[0]] & its[y0 - b[1] : y1 - b[1], x0 - b[0] : x1 - b[0]]
    return bool(shared.any())


def is_line(mask: Mask) -> bool:
    long, _ = _sides(cv2.findNonZero(mask.astype(np.uint8)))
    return bool(long**2 >= MIN_LINE_ASPECT * mask.sum())


def filled(mask: NDArray[np.uint8]) -> Mask:
    """Without holes: a place where a part and what lies under it happen to be of one colour belongs to what is missing."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros_like(mask), outlines, -1, (1,), cv2.FILLED) > 0)


def length_and_width(mask: Mask, sigma: float, line_width: float | None = None) -> tuple[float, float]:
    """(length, width) in px of a mask that was cut after smoothing by `sigma` px.

    line_width: px of its pieces, where they were measured already; it counts if the mask is a line.
    """
    long, short = _sides(cv2.findNonZero(mask.astype(np.uint8)))
    area = float(mask.sum())
    if area > 20_000:
        return long, short
    joined = bridged(mask)
    inner = cv2.distanceTransform(np.pad(joined, 1).astype(np.uint8), cv2.DIST_L2, 5)
    if 2 * float(inner.max()) * MIN_LINE_ASPECT > 1.5 * long:
        return long, short
    path = path_length(joined, inner[1:-1, 1:-1])
    bridges = float((joined & ~mask).sum())
    width = area / max(path - bridges, 1.0)
    if path < MIN_LINE_ASPECT * width:
        return long, short
    if line_width is not None:
        return max(path, long), line_width
    # a line seen through a smoothing filter is wider at half height: take that out again (2.355 sigma is its width there)
    return max(path, long), math.sqrt(max(width**2 - (2.355 * sigma) ** 2, 0.5**2))


def bridged(mask: Mask) -> Mask:
    """The mask with its pieces joined by one-pixel lines where they are nearest, so a path can run through."""
    joined = mask.astype(np.uint8)
    n, labels = cv2.connectedComponents(joined)
    if n <= 2:
        return mask
    far, nearest = cv2.distanceTransformWithLabels(1 - joined, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    pixel = np.zeros(int(nearest.max()) + 1, np.int64)  # flat index of each px of the mask by its label
    pixel[nearest[mask]] = np.flatnonzero(mask)
    nearest = pixel[nearest]
    # where the areas that are nearest to two pieces meet is the shortest way between them
    ways = []
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        one, other = nearest[here], nearest[there]
        meet = labels.ravel()[one] != labels.ravel()[other]
        ways.append((far[here][meet] + far[there][meet], one[meet], other[meet]))
    length, one, other = (np.concatenate(values) for values in zip(*ways, strict=True))
    order = np.argsort(length, kind="stable")
    one, other = one[order], other[order]
    a, b = (labels.ravel()[ends].astype(np.int64) for ends in (one, other))
    _, shortest = np.unique(np.minimum(a, b) * n + np.maximum(a, b), return_index=True)
    ways_between = (shortest + 1.0, (a[shortest], b[shortest]))  # by their place in the order, so that it names them
    tree = csgraph.minimum_spanning_tree(sparse.csr_matrix(ways_between, shape=(n, n)))
    for k in tree.data.astype(int) - 1:
        start, end = (divmod(int(ends[k]), mask.shape[1])[::-1] for ends in (one, other))  # x, y
        cv2.line(joined, start, end, (1,))
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
