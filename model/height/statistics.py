"""Planes of measured values: (H, W) float32, NaN where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refdiff.model.images import F32, Mask

_NEARLY = 0.7  # of the largest deviation of a place: slopes take some of it, as they are tolerated a px away


def spread_of(planes: Sequence[F32]) -> F32:
    """(H, W), the standard deviation of planes; 0 where fewer than two are known."""
    stack = np.stack(planes)
    known = np.isfinite(stack)
    n = known.sum(0)
    mean = np.where(known, stack, 0.0).sum(0) / np.maximum(n, 1)
    squares = (np.where(known, stack - mean, 0.0) ** 2).sum(0)
    return np.asarray(np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), 0.0), np.float32)


def extreme_of(deviation: F32, signed: F32, inside: Mask) -> tuple[int, int]:
    """(y, x) of a place's extreme, of the px inside: the largest signed difference where it lies nearly farthest outside of
    all references (deviation >= 0).

    The signed difference, from the nearest reference alone, is larger still beside its edges and where references differ.
    """
    outside = np.where(inside, deviation, -1.0)
    found = np.where(inside & (outside >= _NEARLY * float(outside.max())), np.abs(signed), -1.0)
    y, x = np.unravel_index(int(np.argmax(found)), found.shape)
    return int(y), int(x)


def around(at: tuple[int, int], px: int) -> tuple[slice, slice]:
    """The px within so many of one (y, x), as far as the picture goes."""
    return slice(max(0, at[0] - px), at[0] + px + 1), slice(max(0, at[1] - px), at[1] + px + 1)
