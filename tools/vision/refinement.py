"""Registration finer than the small copies that it works on: what is left over is measured tile by tile and taken out.

Phase correlation of gradient images says how far each textured tile is off; an affine correction that most of them agree on
(RANSAC) follows. Where they agree on none, the registration stays as it is.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from refdiff.model.images import F32, RgbImage
from refdiff.tools.vision.registration import Matrix, edges, on_grid

_LONG_SIDE = 1024  # px at which it is measured, at most
_TILES = 10  # along the long side
_MIN_TILE_PX = 48
_MIN_RESPONSE = 0.15  # of phase correlation; below, the tile says nothing
_MIN_TILES = 6  # that agree
_AGREE_PX = 1.0
_SMALL_PX = 400  # long side up to which the small copy was as good as the image
_NOTICED_PX = 0.3  # a smaller correction is noise


def refined(query: RgbImage, reference: RgbImage, matrix: Matrix) -> Matrix:
    """`matrix` (3, 3), reference px -> query px, corrected by what it leaves over. Deterministic.

    query, reference: (H, W, 3) uint8 of any size. The same matrix where nothing better is found.
    """
    h, w = query.shape[:2]
    if max(h, w) <= _SMALL_PX:
        return matrix
    f = min(1.0, _LONG_SIDE / max(h, w))
    size = (max(1, round(h * f)), max(1, round(w * f)))
    to_size = np.diag([size[1] / w, size[0] / h, 1.0])
    seen, covered = on_grid(reference, to_size @ matrix, size)
    wanted, _ = on_grid(query, to_size, size)
    at, moves = _displacements(edges(seen), edges(wanted), covered)
    if len(at) < _MIN_TILES:
        return matrix
    cv2.setRNGSeed(0)  # the same pair must give the same result every time
    found, agree = cv2.estimateAffine2D(at, at + moves, method=cv2.RANSAC, ransacReprojThreshold=_AGREE_PX)
    if found is None or int(agree.sum()) < max(_MIN_TILES, len(at) // 2):
        return matrix
    correction = np.vstack([found, [0, 0, 1.0]])
    corners = np.array([[[0, 0], [size[1], 0], [0, size[0]], [size[1], size[0]]]], np.float64)
    moved = float(np.abs(cv2.perspectiveTransform(corners, correction) - corners).max())
    left = at + moves - cv2.perspectiveTransform(at[None], correction)[0]
    better = np.median(np.hypot(*left.T)) < np.median(np.hypot(*moves.T))
    if moved < _NOTICED_PX or moved > _LONG_SIDE / _TILES or not better:
        return matrix
    corrected = np.linalg.inv(to_size) @ correction @ to_size @ matrix
    return np.asarray(corrected / corrected[2, 2], np.float64)


def _displacements(seen: F32, wanted: F32, covered: np.ndarray) -> tuple[Matrix, Matrix]:
    """(n, 2) centres x, y of the textured tiles, and (n, 2) how far each must move."""
    h, w = wanted.shape
    tile = min(h, w, max(_MIN_TILE_PX, max(h, w) // _TILES))
    window = cv2.createHanningWindow((tile, tile), cv2.CV_32F)
    least = 0.5 * max(float(wanted.std()), 1e-3)
    at, moves = [], []
    step = max(1, tile * 3 // 4)
    for y in range(0, h - tile + 1, step):
        for x in range(0, w - tile + 1, step):
            box = np.s_[y : y + tile, x : x + tile]
            if not covered[box].all() or float(cv2.meanStdDev(wanted[box])[1][0, 0]) < least:
                continue
            # phaseCorrelate multiplies the window into its arguments: it must get copies
            move, response = cv2.phaseCorrelate(seen[box].copy(), wanted[box].copy(), window)
            if response > _MIN_RESPONSE and math.hypot(*move) < tile / 3:
                at.append((x + tile / 2, y + tile / 2))
                moves.append(move)
    return np.array(at, np.float64).reshape(-1, 2), np.array(moves, np.float64).reshape(-1, 2)
