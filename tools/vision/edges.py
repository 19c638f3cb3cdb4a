"""An edge that has moved along its normal: how far, and which way. A fill level is one, a shifted lid or a rim another.

The golden sample and the photo are cut round a finding, the golden registered. Where the finding differs, the direction
across its straight edges is found; along it, both become one-dimensional profiles, and the edge that only the golden has is
sought among those that only the photo has. Said only if both edges are clear, straight and alike, and if moving one to the
other explains most of the finding. An edge may also have gone behind something that both show, as a level behind a label:
then it has moved at least so far. Knows nothing about types, products or limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_REACHES = (6, 12, 24)  # px from an edge at which a picture may show plainly what is beyond it, not foam or a rim

Line = NDArray[np.float64]
Plane = NDArray[np.float32]
Cut = tuple[Plane, Plane, Mask]  # (rows, columns, 4) of photo and golden, (rows, columns) of the finding


@dataclass(frozen=True)
class MovedEdge:
    """An edge of the golden sample that lies elsewhere in the photo: (dx, dy) query px, along its normal.

    uncertainty_px: one standard deviation, with what registration left over. at_least: in the photo it is hidden, or in the
    golden sample it was: it has moved by (dx, dy) or further the same way.
    """

    dx: float
    dy: float
    uncertainty_px: float
    at_least: bool = False

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


def moved_edge(
    query: RgbImage, reference: RgbImage, alignment: Alignment, box: Box, mask: Mask, *, may_be_hidden: bool = False
) -> MovedEdge | None:
    """The edge whose move explains a finding, or None if there is none, or none that is clear.

    query, reference: (H, W, 3) uint8, each at its own resolution. box: of the finding, query px, exclusive end; mask: its
    pixels, (y1 - y0, x1 - x0) bool. may_be_hidden: the finding is one of an edge, such as a fill level, which may have gone
    behind something that both pictures show; otherwise such a finding may as well be a thing that is gone. Deterministic.
    """
    if not alignment.ok or not mask.any():
        return None
    size = query.shape[:2]
    outer = widen(box, max(_PAD_PX, round(0.5 * math.sqrt(mask.size))), 0, size)
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
    photo, golden = _under_one_light(photo, golden, here > 0, covered)
    cuts = [(angle, _cut(photo, golden, here, covered, angle)) for angle in _normals((photo - golden)[..., 0], here)]
    found = [_along(cut, angle) for angle, cut in cuts if cut is not None]
    best = max((f for f in found if f is not None), key=lambda f: f.explained, default=None)
    if best is None and may_be_hidden:
        found = [_hidden(cut, angle) for angle, cut in cuts if cut is not None]
        best = max((f for f in found if f is not None), key=lambda f: f.explained, default=None)
    if best is None:
        return None
    residual = 0.5 if alignment.residual_px is None else alignment.residual_px
    u = math.hypot(best.uncertainty * shrink, residual)
    moved = best.by * shrink
    if abs(best.by) < _MIN_PX or abs(moved) < _MIN_SIGMAS * u:
        return None
    return MovedEdge(moved * math.cos(best.angle), moved * math.sin(best.angle), u, best.at_least)


# ---- pieces ----


@dataclass(frozen=True)
class _Found:
    angle: float  # of the normal, radians, x right, y down
    by: float  # px along it
    uncertainty: float  # px
    explained: float  # 0..1
    at_least: bool = False


def _under_one_light(photo: Plane, golden: Plane, here: Mask, covered: Mask) -> tuple[Plane, Plane]:
    """(h, w, 4) both, under one light: the colour in which they differ most, then red, green and blue."""
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
    both = (np.concatenate([(p @ colour)[..., None], p], 2) for p in (photo, golden))
    return tuple(np.asarray(cv2.GaussianBlur(p, (0, 0), _SMOOTHING_PX), np.float32) for p in both)  # type: ignore[return-value]


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


def _cut(photo: Plane, golden: Plane, here: NDArray[np.uint8], covered: Mask, angle: float) -> Cut | None:
    """Photo, golden and finding turned so that the normal points down, cut to the columns that hold most of the finding and
    the rows that the golden covers; None if too little is left."""
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
    return q[rows][:, columns], r[rows][:, columns], finding[rows][:, columns]


def _along(cut: Cut, angle: float) -> _Found | None:
    """The move along a normal, if there is one."""
    q, r, _ = cut
    dq, dr = _slopes(q), _slopes(r)
    at = _edge(dq, dr)
    if at is None:
        return None
    in_golden, in_photo = at
    if _same_edge(dr, dq, in_photo) or _same_edge(dq, dr, in_golden):
        return None  # both show an edge there, with something else beside it
    reach = int(np.clip(abs(in_photo - in_golden) // 2, 2, 6))
    moved = _shift(dq, dr, in_golden, in_photo - in_golden, reach, 2)
    if moved is None:
        return None
    by, alike = moved
    pieces = _strips(q)
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
    explained = max(
        _explained(cut, clear, _moved_rows(len(q), in_golden, by, beyond)) for beyond in (*_REACHES, abs(by))
    )
    if explained < _MIN_EXPLAINED:
        return None
    return _Found(angle, by, math.hypot(spread / math.sqrt(len(agreeing)), 0.1), explained)


def _slopes(plane: Plane) -> Line:
    """(rows,): slopes of the mean of each row in the colour in which both differ most, grey levels a px."""
    return np.asarray(np.gradient(plane[..., 0].mean(1).astype(np.float64)))


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


def _moved_rows(n: int, at: int, by: float, reach: float) -> Line:
    """(n,): the row that each shows of another picture, whose edge at a row has moved by so much.

    What it has moved over looks like what was beyond it: like the row there that the edge does not reach.
    """
    rows = np.arange(n, dtype=np.float64)
    low, high = min(at, at + by) - reach, max(at, at + by) + reach
    moved = np.clip(rows - by, at - reach, at + reach)
    return np.where((rows >= low) & (rows <= high), moved, rows)


def _explained(cut: Cut, strips: Sequence[NDArray[np.intp]], source: Line) -> float:
    """Part of the finding that goes if the golden shows these rows of itself: of its px that differ clearly (a finding may
    be larger than what differs), and of their squared difference, whichever is less; in the middle one of some strips."""
    photo, golden, finding = cut
    columns, lines = np.meshgrid(np.arange(golden.shape[1], dtype=np.float32), source.astype(np.float32))
    moved = cv2.remap(golden, columns, lines, cv2.INTER_LINEAR)
    before, after = (np.linalg.norm((photo - other)[..., 1:], axis=2) for other in (golden, moved))
    elsewhere = before[~finding]
    clear = finding & (before > 3 * 1.4826 * float(np.median(elsewhere)) if len(elsewhere) else finding)
    parts = []
    for strip in strips:
        at = clear[:, strip]
        if at.any():
            b, a = before[:, strip][at], after[:, strip][at]
            parts.append(min(1 - float((a**2).sum() / max(float((b**2).sum()), 1e-9)), float((a < 0.5 * b).mean())))
    return float(np.median(parts)) if parts else 0.0


def _strips(plane: Plane) -> list[NDArray[np.intp]]:
    """The columns of a plane in up to eight parts."""
    n = plane.shape[1]
    return np.array_split(np.arange(n), min(_STRIPS, n // 4) or 1)


def _same_edge(one: Line, other: Line, at: int) -> bool:
    """Whether `one` has an edge of either sign next to the row at which `other` has one that is not much stronger."""
    near = one[max(0, at - _NEAR_PX) : at + _NEAR_PX + 1]
    return bool(np.abs(near).max() > abs(other[at]) / 2)


def _hidden(cut: Cut, angle: float) -> _Found | None:
    """The least move along a normal of an edge that went, or in the golden was, behind something that both show."""
    q, r, finding = cut
    gone, come = _behind(cut), _behind((r, q, finding))
    found = [_Found(angle, way * by, 1.0, explained, True) for way, by, explained in ((1, *gone), (-1, *come)) if by]
    return found[0] if len(found) == 1 else None


def _behind(cut: Cut) -> tuple[float, float]:
    """(px, explained): from an edge that only the golden shows to the next one that both do, if the photo shows what is
    beyond the first up to there; (0, 0) if not."""
    q, r, finding = cut
    difference, strips = (q - r)[..., 0].mean(1), _strips(q)
    rows = np.flatnonzero(finding.mean(1) > 0.5)
    if len(rows) < _MIN_PX:
        return 0.0, 0.0
    plateau = float(np.median(difference[rows]))
    _, labels = cv2.connectedComponents((difference * np.sign(plateau) > abs(plateau) / 2).astype(np.uint8)[:, None])
    run = np.flatnonzero(labels[:, 0] == np.bincount(labels[rows, 0]).argmax())
    ends = int(run[0]), int(run[-1]) + 1
    if labels[run[0], 0] == 0 or ends[0] < _NEAR_PX or ends[1] > len(q) - 1 - _NEAR_PX:
        return 0.0, 0.0
    dq, dr = _slopes(q), _slopes(r)
    near = [np.s_[max(0, end - _NEAR_PX) : end + _NEAR_PX + 1] for end in ends]
    if any(np.abs(dr[at]).max() < np.abs((dq - dr)[at]).max() / 2 for at in near):
        return 0.0, 0.0  # what ends there is the photo's alone
    in_photo = [float(np.abs(dq[at]).max()) for at in near]
    first = int(np.argmin(in_photo))  # the photo goes on there as if nothing were
    noise = 1.4826 * float(np.median(np.abs(dq - dr)))
    if in_photo[first] > in_photo[1 - first] / 2 or in_photo[1 - first] < max(0.5, _MIN_CLEAR * noise):
        return 0.0, 0.0
    at = np.arange(len(q), dtype=np.float64)
    within = (at > ends[0] - _NEAR_PX) & (at < ends[1] + _NEAR_PX)
    way = 1 if first == 0 else -1
    explained = max(
        _explained(cut, strips, np.where(within, np.clip(ends[first] - way * reach, 0, len(q) - 1), at))
        for reach in _REACHES
    )
    return (float(way * (ends[1] - ends[0])), explained) if explained >= _MIN_EXPLAINED else (0.0, 0.0)
