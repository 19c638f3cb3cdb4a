"""Brings a board's reference onto its photo: an affine map, then what is left, locally and in the width of the tracks.

A template lies off by a few pixels, differently from place to place, and its tracks are wider or narrower than etched.
Both are alike in a whole neighbourhood, which a defect is not. Works on grey pictures with copper dark. Knows no network.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

_MOST_OFF_PX = 12  # a reference that lies farther off is not brought nearer
_SMALLEST_PX = 32  # smaller pictures hold nothing to register by
_RIM_PX = 2  # of the reference's border: how far copper reaches beyond it is not known
_EVERY = 3  # edge pixel is looked at
_CELL_PX = 16  # displacements are found on a grid of cells as large
_REACH = (8.0, 4.0, 2.0, 1.5)  # cells that a displacement is found from, pass by pass
_OUTLIER_PX = (7.0, 5.0, 3.0, 3.0)  # edges that lie farther apart are a defect's, pass by pass
_FAR_PX = 32.0  # edges beyond do not matter; without any, OpenCV says the largest number there is
_STIFFNESS = 0.05  # of the weight of a place's edges, against moving along them


def fitted(reference: NDArray[np.uint8], query: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The reference (H, W) as it would lie and be drawn in the photo (H, W), both grey with a range of 0 to 255.

    Where the reference does not reach, nothing is known to differ: there it is the photo.
    """
    if min(query.shape) < _SMALLEST_PX:
        return reference
    move = _mapping(reference, query)
    h, w = query.shape
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    mapped = np.asarray(cv2.warpAffine(reference, move, (w, h), flags=how, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    settled, x, y = _settled(mapped, query)
    xs, ys = (m[0] * x + m[1] * y + m[2] for m in move.astype(np.float32))
    shown = (xs >= _RIM_PX) & (ys >= _RIM_PX) & (xs <= w - 1 - _RIM_PX) & (ys <= h - 1 - _RIM_PX)
    return np.where(shown, settled, query)


def _mapping(reference: NDArray[np.uint8], query: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(2, 3) affine map, photo -> reference, that makes them most alike; templates of data sets lie up to 5 px off."""
    h, w = query.shape
    half = [
        cv2.resize(i, (w // 2, h // 2), interpolation=cv2.INTER_AREA).astype(np.float32) for i in (query, reference)
    ]
    (dx, dy), _ = cv2.phaseCorrelate(half[1], half[0])
    if max(abs(dx), abs(dy)) > _MOST_OFF_PX / 2:
        dx = dy = 0.0
    start = np.array([[1, 0, -dx], [0, 1, -dy]], np.float32)  # photo -> reference
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 25, 1e-4)
    try:
        everywhere = np.full(half[0].shape, 255, np.uint8)
        _, found = cv2.findTransformECC(half[0], half[1], start, cv2.MOTION_AFFINE, stop, everywhere, 5)
    except cv2.error:  # nothing in the pictures to go by
        return np.eye(2, 3)
    move = np.asarray(found, np.float64)
    move[:, 2] = 2 * move[:, 2] + (move[:, 0] + move[:, 1] - [1, 1]) / 2  # pixel centres of the full picture
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]], np.float64)
    if np.abs(corners @ move.T - corners[:, :2]).max() > 2 * _MOST_OFF_PX:
        return np.eye(2, 3)
    return move


def _settled(
    reference: NDArray[np.uint8], query: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """The reference displaced smoothly, and drawn wider or narrower, so that most of its edges lie on the photo's; with the
    (H, W) places x and y of the reference that its pixels come from.

    Point-to-line ICP with a field of displacements: at the photo's edges the distance to the reference's edge is known,
    along its normal; a neighbourhood's displacement is what explains most of them (robust least squares on a coarse grid).
    """
    h, w = query.shape
    depth = _depth(reference)
    smooth = cv2.GaussianBlur(depth, (0, 0), 1.0)
    slopes = [cv2.Sobel(smooth, cv2.CV_32F, dx, dy, ksize=3, scale=0.125) for dx, dy in ((1, 0), (0, 1))]
    here = _depth(query)
    y, x = (n[::_EVERY] for n in np.nonzero(np.abs(here) < 1))
    here, grid = here[y, x], (-(-h // _CELL_PX), -(-w // _CELL_PX))
    cell = (y // _CELL_PX) * grid[1] + x // _CELL_PX
    field = np.zeros((2, *grid), np.float32)
    wider = 0.0
    for reach, outlier in zip(_REACH, _OUTLIER_PX, strict=True):
        u, v = (f[y, x] for f in _upsampled(field, (h, w)))
        there, nx, ny = (map_coordinates(p, (y + v, x + u), order=1, mode="nearest") for p in (depth, *slopes))
        apart = there - here + wider
        weight = np.clip(1 - (apart / outlier) ** 2, 0, None) ** 2

        def gathered(values: NDArray[np.float32], reach: float = reach) -> NDArray[np.float64]:
            total = np.bincount(cell, values, grid[0] * grid[1]).reshape(grid).astype(np.float64)  # whole where empty
            return np.asarray(cv2.GaussianBlur(total, (0, 0), reach, borderType=cv2.BORDER_CONSTANT), np.float64)

        xx, xy, yy = (gathered(weight * a * b) for a, b in ((nx, nx), (nx, ny), (ny, ny)))
        bx, by = gathered(weight * nx * apart), gathered(weight * ny * apart)
        stiff = _STIFFNESS * (xx + yy) + 1e-3
        xx, yy = xx + stiff, yy + stiff
        det = xx * yy - xy * xy
        step = np.stack([xy * by - yy * bx, xy * bx - xx * by]) / det
        field += step.astype(np.float32)
        moved = _upsampled(step.astype(np.float32), (h, w))[:, y, x]
        left = apart + nx * moved[0] + ny * moved[1]
        inlier = np.abs(left) < outlier
        if inlier.any():
            wider -= float(np.mean(left[inlier]))
    u, v = _upsampled(field, (h, w))
    u += np.arange(w, dtype=np.float32)
    v += np.arange(h, dtype=np.float32)[:, None]
    placed = cv2.remap(depth, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(127.5 - 127.5 * (placed + wider), 0, 255).astype(np.uint8), u, v


def _depth(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) px to the nearest edge of copper, positive in copper, within -32..32."""
    copper = (grey < 128).astype(np.uint8)
    inside, outside = (cv2.distanceTransform(p, cv2.DIST_L2, 3) for p in (copper, 1 - copper))
    return np.clip(np.where(copper > 0, inside - 0.5, 0.5 - outside), -_FAR_PX, _FAR_PX).astype(np.float32)


def _upsampled(field: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(2, rows, columns) of cells -> (2, H, W) of pixels."""
    full = (field.shape[1] * _CELL_PX, field.shape[2] * _CELL_PX)
    return np.stack([cv2.resize(f, full[::-1], interpolation=cv2.INTER_LINEAR)[: size[0], : size[1]] for f in field])
