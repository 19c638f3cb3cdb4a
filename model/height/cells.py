"""Measured values as vectors that are near to each other where the values are, cell by cell of a picture.

The mean value of each cell is an angle, half a turn for all of what is shown, so a difference counts the more the larger it
is: cos and sin of it, weighted by how much of the cell was measured. Each cell's angle begins elsewhere, so a block is like
the same block of another picture, and not like one beside it that happens to have the same heights.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from refdiff.model.images import F32

_PERIOD = 2.0  # of what is shown: one turn of the angle; with less, large differences would look like small ones
_SEED = 7  # of where the cells' angles begin
_BLOCKS = 4  # of cells, along the shorter side
_MOST_BLOCKS = 8
_LEAST = 0.05  # of a block's cells that must be measured


def cell_vectors(values: F32, span: float, global_dim: int, patch_dim: int) -> tuple[F32, F32]:
    """(global_dim,) of the whole picture and (n, patch_dim) of its blocks: unit norm, filled up with zeros.

    values: (H, W), NaN where nothing was measured. span: of the values that are shown, > 0.
    """
    h, w = values.shape
    side = math.isqrt(patch_dim // 2)
    rows, columns = (min(_MOST_BLOCKS, round(_BLOCKS * n / min(h, w))) for n in (h, w))
    cells = _turned(values, (rows * side, columns * side), span).reshape(rows, side, columns, side, 2)
    blocks = cells.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    measured = np.linalg.norm(blocks, axis=1) >= math.sqrt(_LEAST) * side
    blocks = blocks[measured] if measured.any() else blocks[:1] + 1
    whole = math.isqrt(global_dim // 2)
    return (
        _unit(_turned(values, (whole, whole), span).reshape(1, -1), global_dim)[0],
        _unit(blocks, patch_dim),
    )


def _turned(values: F32, size: tuple[int, int], span: float) -> F32:
    """(h, w, 2) of `size`: cos and sin of the mean value of each cell, times the part of it that was measured."""
    known = np.isfinite(values).astype(np.float32)
    part, total = (
        cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in (known, np.nan_to_num(values))
    )
    begins = np.random.default_rng(_SEED).uniform(0, 2 * np.pi, size).astype(np.float32)
    angle = begins + total / np.maximum(part, 1e-6) * (2 * np.pi / (_PERIOD * span))
    return np.asarray(np.stack([part * np.cos(angle), part * np.sin(angle)], -1), np.float32)


def _unit(rows: F32, dim: int) -> F32:
    made = np.zeros((len(rows), dim), np.float32)
    made[:, : rows.shape[1]] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return made
