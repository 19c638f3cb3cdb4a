"""Measured values of golden samples on the pixels of a photo, and their registration refined on the values themselves."""

from __future__ import annotations

import cv2
import numpy as np

from refdiff.model.height.difference import nearest_filled
from refdiff.model.images import F32
from refdiff.tools.vision.registration import Matrix, coverage, warp

_ECC = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-5)
_FAR_PX = 3.0
_HALF = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # from px whose centres are whole numbers to corners that are
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


def _filled(values: F32) -> F32:
    return values if np.isfinite(values).all() else nearest_filled(values)
