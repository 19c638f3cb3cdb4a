"""Measured values of golden samples on the pixels of a photo, and their registration refined on the values themselves."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.height.difference import nearest_filled
from refdiff.model.images import F32
from refdiff.tools.vision.registration import Matrix, coverage, warp

_ECC = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-5)
_FAR_PX = 3.0
_HALF = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # from px whose centres are whole numbers to corners that are
_TURNED_PX = 96  # long side at which turns are tried
_TURN_DEG = 6.0
_TURNS_TRIED = 6  # of the best, that are refined
_MIN_SHARED = 0.7  # of what the first registration shares, what a turn must share
_CLEARLY = 0.8  # of what the first registration leaves, what a turn may leave at most
_MEASURED = 0.99  # of a px between others: all that it is made of must be measured


def on_query(values: F32, matrix: Matrix, size: tuple[int, int]) -> F32:
    """Values on a photo's pixels, (H, W) of `size`, NaN where they end and in their holes. matrix: their px -> photo px."""
    known = np.isfinite(values)
    there = np.asarray(warp(values if known.all() else nearest_filled(values), matrix, size), np.float32)
    if not known.all():
        there[warp(known.astype(np.float32), matrix, size, cv2.BORDER_CONSTANT) < _MEASURED] = np.nan
    there[~coverage(matrix, values.shape, size)] = np.nan
    return there


def refined(query: F32, golden: F32, matrix: Matrix) -> Matrix:
    """`matrix`, golden px -> query px, corrected on the values themselves. As it is where that fails or goes far.

    Beside a steep edge a tenth of a px is a whole kelvin or a tenth of a mm, and pictures of 8 bits tell it less exactly.
    """
    lying = np.asarray(warp(_filled(golden), matrix, query.shape), np.float32)
    inside = coverage(matrix, golden.shape, query.shape)
    if not np.isfinite(golden).all():
        known = np.isfinite(golden).astype(np.float32)
        inside &= warp(known, matrix, query.shape, cv2.BORDER_CONSTANT) >= _MEASURED
    mask = inside.astype(np.uint8) * 255
    try:
        _, found = cv2.findTransformECC(
            _filled(query), lying, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _ECC, mask, 3
        )
    except cv2.error:  # too little to go by
        return matrix
    back = np.linalg.inv(np.vstack([found, [0, 0, 1.0]]))  # px whose centres are whole numbers
    correction = _HALF @ back @ np.linalg.inv(_HALF)
    h, w = query.shape
    corners = np.array([[[0, 0], [w, 0], [0, h], [w, h]]], np.float64)
    if float(np.abs(cv2.perspectiveTransform(corners, correction) - corners).max()) > _FAR_PX:
        return matrix
    return np.asarray(correction @ matrix, np.float64)


def turned(query: F32, golden: F32, matrix: Matrix) -> Matrix:
    """`matrix`, golden px -> query px, turned about the part's middle where its heights fit clearly better that way.

    A part that is nearly the same after a turn (a wheel, a plate with four holes) shows hardly any edge in a picture that
    says which way round it lies.
    """
    f = min(1.0, _TURNED_PX / max(query.shape))
    size = max(8, round(query.shape[0] * f)), max(8, round(query.shape[1] * f))
    small = np.diag([size[1] / query.shape[1], size[0] / query.shape[0], 1.0])
    ours, known = _shrunk(query, size)
    theirs = on_query(golden, matrix, (query.shape[0], query.shape[1]))
    lying, there = _shrunk(theirs, size)
    if not (known & there).any():
        return matrix
    height = np.where(there, np.abs(lying - np.median(lying[there])), 0.0)
    ys, xs = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    total = max(float(height.sum()), 1e-9)
    middle = float((xs * height).sum()) / total, float((ys * height).sum()) / total
    cap = max(float(np.ptp(np.percentile(lying[there], (1, 99)))) / 4, 1e-6)

    def off(turn: Matrix) -> float:
        moved = np.asarray(warp(lying, turn, size), np.float32)
        both = known & (warp(there.astype(np.float32), turn, size, cv2.BORDER_CONSTANT) > _MEASURED)
        if both.sum() < _MIN_SHARED * (known & there).sum():
            return cap
        apart = (ours - moved)[both]
        return float(np.minimum(np.abs(apart - np.median(apart)), cap).mean())

    turns = [_turn(angle, middle) for angle in np.arange(0, 360, _TURN_DEG)]
    found = [off(turn) for turn in turns]
    best = sorted(range(1, len(turns)), key=lambda i: found[i])[:_TURNS_TRIED]
    settled = {i: _settled(ours, lying, there, turns[i]) for i in (0, *best)}
    errors = {i: off(turn) for i, turn in settled.items()}
    chosen = min(errors, key=lambda i: errors[i])
    if chosen == 0 or errors[chosen] > _CLEARLY * errors[0]:
        return matrix
    return np.asarray(np.linalg.inv(small) @ settled[chosen] @ small @ matrix, np.float64)


def _turn(angle_deg: float, middle: tuple[float, float]) -> Matrix:
    """(3, 3) about a point x, y (corners of px at whole numbers)."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    x, y = middle
    return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y], [0, 0, 1.0]])


def _settled(ours: F32, lying: F32, there: NDArray[np.bool_], turn: Matrix) -> Matrix:
    """A turn, and a shift with it, refined on small heights."""
    mask = there.astype(np.uint8) * 255
    start = np.linalg.inv(np.linalg.inv(_HALF) @ turn @ _HALF)[:2].astype(np.float32)
    try:
        _, found = cv2.findTransformECC(ours, lying, start, cv2.MOTION_EUCLIDEAN, _ECC, mask, 3)
    except cv2.error:
        return turn
    return np.asarray(_HALF @ np.linalg.inv(np.vstack([found, [0, 0, 1.0]])) @ np.linalg.inv(_HALF), np.float64)


def _shrunk(values: F32, size: tuple[int, int]) -> tuple[F32, NDArray[np.bool_]]:
    """Values at another size (H, W), holes filled, and where none was."""
    known = np.isfinite(values).astype(np.float32)
    small = cv2.resize(_filled(values), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32), cv2.resize(known, size[::-1], interpolation=cv2.INTER_AREA) > 0.5


def _filled(values: F32) -> F32:
    return values if np.isfinite(values).all() else nearest_filled(values)
