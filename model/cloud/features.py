"""Fast point feature histograms (FPFH; Rusu, Blodow and Beetz 2009): what the surface around a point is like, whichever way
it is turned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from refdiff.model.images import F32

_BINS = 11
_MOST = 60  # neighbours that count


def fpfh(cloud_points: F32, cloud_normals: F32, radius_mm: float) -> F32:
    """(N, 33) of each point (N, 3) with its normal, from its neighbours within a radius, the nearest 60 at most; 0 where
    there are none.

    Three angles between normals, eleven bins each; each third sums to 200 (its own histogram and the weighted mean of its
    neighbours', in per cent), as in PCL and Open3D.
    """
    points, normals = cloud_points.astype(np.float64), cloud_normals.astype(np.float64)
    n = len(points)
    k = min(_MOST + 1, n)
    distance, near = cKDTree(points).query(points, k=k, distance_upper_bound=radius_mm)
    known = np.isfinite(distance) & (near != np.arange(n)[:, None]) & (distance > 0)
    near = np.where(known, near, 0)
    own = _histograms(points, normals, near, known)
    weight = np.where(known, 1.0 / np.maximum(np.where(known, distance, 1.0), 1e-9) ** 2, 0.0)
    around = np.einsum("nk,nkb->nb", weight, own[near])
    thirds = around.reshape(n, 3, _BINS)
    total = thirds.sum(2, keepdims=True)
    thirds = np.divide(100 * thirds, total, out=np.zeros_like(thirds), where=total > 0)
    return np.asarray(thirds.reshape(n, 3 * _BINS) + own, np.float32)


def _histograms(
    points: NDArray[np.float64], normals: NDArray[np.float64], near: NDArray[np.intp], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(N, 33): of the angles to each neighbour, in per cent of them."""
    n, k = near.shape
    between = points[near] - points[:, None]
    between /= np.maximum(np.linalg.norm(between, axis=2, keepdims=True), 1e-12)
    first, second = np.broadcast_to(normals[:, None], (n, k, 3)), normals[near]
    a, b = (first * between).sum(2), (second * between).sum(2)
    # of the two, the one whose normal lies nearer to the line between them is the source
    swap = (np.abs(a) < np.abs(b))[..., None]
    source, target = np.where(swap, second, first), np.where(swap, first, second)
    between = np.where(swap, -between, between)
    phi = np.where(swap[..., 0], -b, a)
    v = np.cross(between, source)
    length = np.linalg.norm(v, axis=2, keepdims=True)
    v = v / np.maximum(length, 1e-12)
    w = np.cross(source, v)
    alpha = (v * target).sum(2)
    theta = np.arctan2((w * target).sum(2), (source * target).sum(2))
    made = np.zeros((n, 3 * _BINS))
    rows = np.broadcast_to(np.arange(n)[:, None], (n, k))[known]
    for i, value in enumerate(((theta + np.pi) / (2 * np.pi), (alpha + 1) / 2, (phi + 1) / 2)):
        bins = np.clip((value * _BINS).astype(np.int64), 0, _BINS - 1)[known]
        np.add.at(made, (rows, i * _BINS + bins), 1.0)
    return np.asarray(100 * made / np.maximum(known.sum(1, keepdims=True), 1))
