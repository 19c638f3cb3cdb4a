"""Measured values as vectors that are near to each other where the values are, cell by cell of a picture.

The mean value of each cell is an angle, half a turn for all of what is shown: cos and sin of it and of twice and three times
it, weighted by how much of the cell was measured. So two cells are the less alike the more their values differ, up to all
that is shown. Each cell's angle begins elsewhere, so a block is like the same block of another picture, and not like one
beside it that happens to have the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from refdiff.model.images import F32

# how much each multiple of the angle counts: of those whose sum of cosines falls from 0 to half a turn (its derivative is
# -sin(x) (1 + 2 cos(x))^2), for with a multiple alone large differences would look like small ones
_MULTIPLES = ((1, 2.0), (2, 1.0), (3, 1 / 3))
_PLANES = 2 * len(_MULTIPLES)
_OF_WHOLE = _MULTIPLES[:1]  # which is finer instead
_SEED = 7  # of where the cells' angles begin
_BLOCKS = 6  # of cells, along the shorter side
_MOST_BLOCKS = 12
_LEAST = 0.05  # of a block's cells that must be measured


def cell_vectors(values: F32, span: float, global_dim: int, patch_dim: int) -> tuple[F32, F32]:
    """(global_dim,) of the whole picture and (n, patch_dim) of its blocks: unit norm, filled up with zeros.

    values: (H, W), NaN where nothing was measured. span: of the values that are shown, > 0.
    """
    h, w = values.shape
    side = math.isqrt(patch_dim // _PLANES)
    rows, columns = (min(_MOST_BLOCKS, round(_BLOCKS * n / min(h, w))) for n in (h, w))
    cells = _turned(values, (rows * side, columns * side), span, _MULTIPLES).reshape(rows, side, columns, side, _PLANES)
    blocks = cells.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    most = math.sqrt(sum(share for _, share in _MULTIPLES)) * side  # of a block that is measured everywhere
    measured = np.linalg.norm(blocks, axis=1) >= math.sqrt(_LEAST) * most
    blocks = blocks[measured] if measured.any() else blocks[:1] + 1
    whole = math.isqrt(global_dim // 2)
    return (
        _unit(_turned(values, (whole, whole), span, _OF_WHOLE).reshape(1, -1), global_dim)[0],
        _unit(blocks, patch_dim),
    )


def _turned(values: F32, size: tuple[int, int], span: float, multiples: Sequence[tuple[int, float]]) -> F32:
    """(h, w, planes) of `size`, cos and sin of each multiple: of the mean value of a cell, times the part of it that was
    measured."""
    known = np.isfinite(values).astype(np.float32)
    part, total = (
        cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in (known, np.nan_to_num(values))
    )
    begins = np.random.default_rng(_SEED).uniform(0, 2 * np.pi, (len(multiples), *size))
    angle = total / np.maximum(part, 1e-6) * (np.pi / span)
    planes = [
        math.sqrt(share) * part * wave(multiple * angle + begin)
        for (multiple, share), begin in zip(multiples, begins, strict=True)
        for wave in (np.cos, np.sin)
    ]
    return np.asarray(np.stack(planes, -1), np.float32)


def _unit(rows: F32, dim: int) -> F32:
    made = np.zeros((len(rows), dim), np.float32)
    made[:, : rows.shape[1]] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return made
