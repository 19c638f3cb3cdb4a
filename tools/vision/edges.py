"""An edge that has moved along its normal: how far, and which way. A fill level is one, a shifted lid or a rim another.

The golden sample and the photo are cut round a finding, the golden registered. Where the finding differs, the direction
across its straight edges is found; along it, both become one-dimensional profiles, and the edge that only the golden has is
sought among those that only the photo has. Said only if both edges are clear, straight and alike, and if moving one to the
other explains most of the finding. Knows nothing about types, products or limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import Box, Mask, RgbImage, widen
from refdiff.tools.vision.crops import warp_window
from refdiff.tools.vision.registration import Alignment

_WINDOW_PX = 400  # a larger window is looked at shrunk
_PAD_PX = 12  # px looked at around a finding at least
_SMOOTHING_PX = 1.0
_MIN_COLUMNS = 8  # an edge is at least so long, px
_MIN_ALIKE = 0.8  # correlation of the two edges' profiles
_ALIKE_IN_STRIP = 0.95  # the same of a part of them that nothing else disturbs; at least half of them
_MIN_EXPLAINED = 0.75  # part of the squared difference that the move explains there
_MIN_CLEAR = 6.0  # standard deviations of what else differs
_MIN_SIGMAS = 3.0  # standard deviations that a move must have
_MIN_PX = 3.0  # px of the window that it must have: less is registration or light
_NEAR_PX = 2  # px within which an edge that both have is the same edge
_STRIPS = 8

Line = NDArray[np.float64]


@dataclass(frozen=True)
class MovedEdge:
    """An edge of the golden sample that lies elsewhere in the photo: (dx, dy) query px, along its normal.

    uncertainty_px: one standard deviation, with what registration left over.
    """

    dx: float
    dy: float
    uncertainty_px: float

    @property
    def distance_px(self) -> float:
        return math.hypot(self.dx, self.dy)

    @property
    def direction(self) -> str:
        """Which way, in the photo: lower, higher, further left, ..., on the diagonals `lower and further left`."""
        along_y = "lower" if self.dy > 0 else "higher"
        along_x = "further right" if self.dx > 0 else "further left"
        if abs(self.dy) >= 2 * abs(self.dx):
            return along_y
        return along_x if abs(self.dx) >= 2 * abs(self.dy) else f"{along_y} and {along_x}"


def moved_edge(query: RgbImage, reference: RgbImage, alignment: Alignment, box: Box, mask: Mask) -> MovedEdge | None:
    """The edge whose move explains a finding, or None if there is none, or none that is clear.

    query, reference: (H, W, 3) uint8, each at its own resolution. box: of the finding, query px, exclusive end; mask: its
    pixels, (y1 - y0, x1 - x0) bool. Deterministic.
    """
    if not alignment.ok or not mask.any():
        return None
    size = query.shape[:2]
    outer = widen(box, max(_PAD_PX, round(0.5 * min(mask.shape))), 0, size)
    other, covered = warp_window(reference, alignment, outer)
    x0, y0, x1, y1 = outer
    here = np.zeros(covered.shape, np.uint8)
    here[box[1] - y0 : box[3] - y0, box[0] - x0 : box[2] - x0] = mask
    photo, golden = query[y0:y1, x0:x1].astype(np.float32), other.astype(np.float32)
    shrink = max(1.0, max(covered.shape) / _WINDOW_PX)
    if shrink > 1:
        target = round((x1 - x0) / shrink), round((y1 - y0) / shrink)
        photo = np.asarray(cv2.resize(photo, target, interpolation=cv2.INTER_AREA), np.float32)
        golden = np.asarray(cv2.resize(golden, target, interpolation=cv2.INTER_AREA), np.float32)
        here = (cv2.resize(here * np.uint8(255), target, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
        covered = cv2.resize(covered.astype(np.uint8), target, interpolation=cv2.INTER_NEAREST) > 0
    if here.sum() < _MIN_COLUMNS or not covered[here > 0].all():
        return None
    planes = _one_channel(photo, golden, here > 0, covered)
    found = [_along(*planes, here, covered, angle) for angle in _normals(planes[0] - planes[1], here)]
    best = max((f for f in found if f is not None), key=lambda f: f.explained, default=None)
    if best is None:
        return None
    residual = 0.5 if alignment.residual_px is None else alignment.residual_px
    u = math.hypot(best.uncertainty * shrink, residual)
    moved = best.by * shrink
    if abs(best.by) < _MIN_PX or abs(moved) < _MIN_SIGMAS * u:
        return None
    return MovedEdge(moved * math.cos(best.angle), moved * math.sin(best.angle), u)


# ---- pieces ----


@dataclass(frozen=True)
class _Found:
    angle: float  # of the normal, radians, x right, y down
    by: float  # px along it
    uncertainty: float  # px
    explained: float  # 0..1


def _one_channel(
    photo: NDArray[np.float32], golden: NDArray[np.float32], here: Mask, covered: Mask
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(h, w) both, under one light, in the colour in which they differ most."""
    around = covered & (cv2.dilate(here.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    at = around if around.sum() >= 50 else covered
    for c in range(3):
        a, b = golden[..., c][at], photo[..., c][at]
        spread = float(a.std())
        gain = float(np.clip(((a - a.mean()) * (b - b.mean())).mean() / spread**2, 0.5, 2)) if spread > 1 else 1.0
        golden[..., c] = gain * (golden[..., c] - a.mean()) + b.mean()
    differs = (photo - golden)[here]
    _, axes = np.linalg.eigh(differs.T @ differs)
    colour = axes[:, -1].astype(np.float32)
    return tuple(cv2.GaussianBlur(p @ colour, (0, 0), _SMOOTHING_PX) for p in (photo, golden))  # type: ignore[return-value]


def _normals(difference: NDArray[np.float32], here: NDArray[np.uint8]) -> list[float]:
    """The one or two directions across most of the edges of what differs, radians in 0..pi."""
    gx, gy = cv2.Sobel(difference, cv2.CV_32F, 1, 0), cv2.Sobel(difference, cv2.CV_32F, 0, 1)
    near = cv2.dilate(here, np.ones((7, 7), np.uint8)) > 0
    weight, angle = (gx**2 + gy**2)[near], np.arctan2(gy, gx)[near] % np.pi
    bins = 36
    counts = np.bincount((angle * bins / np.pi).astype(int) % bins, weight, bins)
    counts = counts + np.roll(counts, 1) + np.roll(counts, -1)
    found: list[float] = []
    for peak in np.argsort(-counts):
        middle = (peak + 0.5) * np.pi / bins
        if any(abs((middle - f + np.pi / 2) % np.pi - np.pi / 2) < np.pi / 5 for f in found):
            continue
        off = (angle - middle + np.pi / 2) % np.pi - np.pi / 2
        close = np.abs(off) < np.pi / 15
        if weight[close].sum() > 0:
            found.append(float(middle + np.average(off[close], weights=weight[close])))
        if len(found) == 2:
            break
    return found


def _along(
    photo: NDArray[np.float32], golden: NDArray[np.float32], here: NDArray[np.uint8], covered: Mask, angle: float
) -> _Found | None:
    """The move along a normal, if there is one."""
    h, w = here.shape
    side = math.ceil(math.hypot(h, w)) + 2
    turn = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), math.degrees(angle) - 90, 1.0)
    turn[:, 2] += (side - w) / 2, (side - h) / 2

    def turned(plane: NDArray, how: int = cv2.INTER_LINEAR) -> NDArray[np.float32]:
        return np.asarray(cv2.warpAffine(plane, turn, (side, side), flags=how), np.float32)

    q, r = turned(photo), turned(golden)
    finding, known = turned(here, cv2.INTER_NEAREST) > 0, turned(covered.astype(np.uint8), cv2.INTER_NEAREST) > 0
    per_column = finding.sum(0)
    columns = np.flatnonzero(per_column > 0.5 * np.quantile(per_column[per_column > 0], 0.9))
    if len(columns) < _MIN_COLUMNS:
        return None
    rows = np.flatnonzero(known[:, columns].mean(1) > 0.9)
    if len(rows) < 8:
        return None
    rows = np.arange(rows[0], rows[-1] + 1)
    q, r, finding = q[rows][:, columns], r[rows][:, columns], finding[rows][:, columns]
    dq, dr = _slopes(q), _slopes(r)
    at = _edge(dq, dr)
    if at is None:
        return None
    in_golden, in_photo = at
    reach = int(np.clip(abs(in_photo - in_golden) // 2, 2, 6))
    moved = _shift(dq, dr, in_golden, in_photo - in_golden, reach, 2)
    if moved is None:
        return None
    by, alike = moved
    pieces = np.array_split(np.arange(len(columns)), min(_STRIPS, len(columns) // 4) or 1)
    strips = [_shift(_slopes(q[:, s]), _slopes(r[:, s]), in_golden, round(by), reach, 3) for s in pieces]
    agreeing = np.array([s[0] for s in strips if s is not None])
    if alike < _MIN_ALIKE or len(agreeing) < 0.75 * len(strips):
        return None
    spread = 1.4826 * float(np.median(np.abs(agreeing - np.median(agreeing))))
    if spread > max(1.0, 0.15 * abs(by)):
        return None
    # at its ends the edge meets others, such as the walls of a bottle, that have not moved
    clear = [p for p, s in zip(pieces, strips, strict=True) if s is not None and s[1] >= _ALIKE_IN_STRIP]
    if len(clear) < len(pieces) / 2:
        return None
    between = min(at) - reach, max(at) + reach + 1
    explained = float(np.median([_explained(q[:, s], r[:, s], finding[:, s], by, between) for s in clear]))
    if explained < _MIN_EXPLAINED:
        return None
    return _Found(angle, by, math.hypot(spread / math.sqrt(len(agreeing)), 0.1), explained)


def _slopes(plane: NDArray[np.float32]) -> Line:
    """(rows,): slopes of the mean of each row, grey levels a px."""
    return np.asarray(np.gradient(plane.mean(1).astype(np.float64)))


def _edge(dq: Line, dr: Line) -> tuple[int, int] | None:
    """Row of the strongest edge that only the golden has, and of the strongest like it that only the photo has."""
    only_golden, only_photo = _without(dr, dq), _without(dq, dr)
    a = int(np.abs(only_golden).argmax())
    same_sign = np.maximum(only_photo * np.sign(only_golden[a]), 0)
    b = int(same_sign.argmax())
    low, high = min(a, b), max(a, b)
    rest = np.concatenate([(dq - dr)[: max(0, low - 3)], (dq - dr)[high + 4 :]])
    noise = 1.4826 * float(np.median(np.abs(rest))) if len(rest) >= 8 else 0.0
    strong, weak = abs(dr[a]), abs(dq[b])
    if a == b or min(abs(only_golden[a]), same_sign[b]) < max(0.5, _MIN_CLEAR * noise):
        return None
    if not 0.5 < weak / strong < 2:
        return None
    return a, b


def _without(one: Line, other: Line) -> Line:
    """The slopes of `one` beyond those of the same sign that `other` has there or next to it."""
    near = np.ones((2 * _NEAR_PX + 1, 1), np.uint8)
    up, down = (cv2.dilate(np.maximum(s * other, 0), near).ravel() for s in (1.0, -1.0))
    return np.where(one > 0, np.maximum(one - up, 0), np.minimum(one + down, 0))


def _shift(dq: Line, dr: Line, at: int, by: int, reach: int, search: int) -> tuple[float, float] | None:
    """(px, correlation): by how much the golden's slopes around a row have moved, `by` give or take `search` rows."""
    piece = dr[at - reach : at + reach + 1]
    tried = []
    for d in range(by - search, by + search + 1):
        other = dq[at + d - reach : at + d + reach + 1] if at + d >= reach else dq[:0]
        if len(other) != len(piece) or len(piece) != 2 * reach + 1:
            return None
        tried.append(float(piece @ other / max(math.sqrt((piece @ piece) * (other @ other)), 1e-9)))
    best = int(np.argmax(tried))
    if not 0 < best < len(tried) - 1:
        return None
    left, middle, right = tried[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return by - search + best + (0.5 * (left - right) / bend if bend < 0 else 0.0), middle


def _explained(
    photo: NDArray[np.float32], golden: NDArray[np.float32], finding: Mask, by: float, between: tuple[int, int]
) -> float:
    """Part of the squared difference within the finding that goes if the golden is moved between these rows."""
    if not finding.any():
        return 0.0
    rows = np.arange(len(golden), dtype=np.float32)
    inside = (rows >= between[0]) & (rows < between[1])
    source = np.clip(np.where(inside, rows - by, rows), 0, len(rows) - 1).astype(np.float32)
    columns = np.broadcast_to(np.arange(golden.shape[1], dtype=np.float32), golden.shape)
    lines = np.ascontiguousarray(np.broadcast_to(source[:, None], golden.shape))
    moved = cv2.remap(golden, np.ascontiguousarray(columns), lines, cv2.INTER_LINEAR)
    before, after = ((photo - golden)[finding] ** 2).sum(), ((photo - moved)[finding] ** 2).sum()
    return 1 - float(after) / max(float(before), 1e-9)
