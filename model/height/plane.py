"""Robust planes: where a surface lies as a whole, whatever single places of it do.

A plane is (height in mm at px (0, 0), mm a px to the right, mm a px down); px centres are at .5.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32, Mask

Removal = Literal["none", "offset", "plane", "plane_and_scale"]  # of what the whole part does
Plane = tuple[float, float, float]
FLAT: Plane = (0.0, 0.0, 0.0)

_MOST = 40_000  # px that a fit looks at; more do not make it better
_ROUNDS = 30
_CUT = 4.685  # Tukey's, in standard deviations: 95 % as good as least squares on normal noise
_NORMAL_MAD = 1.4826
_SETTLED = 1e-7


def height_of(plane: Plane, size: tuple[int, int]) -> F32:
    """(H, W) mm of a plane on the px of a picture of `size`."""
    h, w = size
    across = plane[1] * (np.arange(w) + 0.5)
    down = plane[0] + plane[2] * (np.arange(h) + 0.5)
    return np.asarray(down[:, None] + across[None, :], np.float32)


def fit_plane(values: F32, removal: Removal) -> Plane:
    """The plane of a surface (H, W; NaN where there is none), or with "offset" its median alone; flat with "none"."""
    return fit(values, None, np.isfinite(values), removal)[0]


def fit(values: F32, reference: F32 | None, counted: Mask, removal: Removal) -> tuple[Plane, float]:
    """The plane, and the factor of the reference's heights, that bring a reference nearest to `values` where `counted`.

    values, reference: (H, W) mm; without reference, the plane of `values` themselves. The fit is by Tukey's biweight: places
    that differ by far more than the rest have no say. Deterministic.
    """
    flat = np.flatnonzero(counted)
    if removal == "none" or not flat.size:
        return FLAT, 1.0
    flat = flat[:: -(-flat.size // _MOST)]
    ys, xs = np.divmod(flat, counted.shape[1])
    target = values.ravel()[flat].astype(np.float64)
    known = None if reference is None else reference.ravel()[flat].astype(np.float64)
    if removal == "offset" or flat.size < 16:
        return (float(np.median(target if known is None else target - known)), 0.0, 0.0), 1.0
    side = float(max(counted.shape))
    middle = np.array([counted.shape[1] / 2, counted.shape[0] / 2])
    columns = [np.ones(flat.size), (xs + 0.5 - middle[0]) / side, (ys + 0.5 - middle[1]) / side]
    scaled = known is not None and removal == "plane_and_scale" and float(np.ptp(known)) > 0
    base, spread = 0.0, 1.0
    if known is not None:
        base, spread = float(np.median(known)), max(float(known.std()), 1e-12)
        target = target - known
        if scaled:
            columns.append((known - base) / spread)
    found = _biweight(np.stack(columns, 1), target)
    factor = 1.0 + (float(found[3]) / spread if scaled else 0.0)
    # the plane of `values = plane + factor * reference`, at px (0, 0)
    right, down = float(found[1]) / side, float(found[2]) / side
    at_middle = float(found[0]) - (factor - 1.0) * base
    return (at_middle - right * float(middle[0]) - down * float(middle[1]), right, down), factor


def _biweight(columns: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients (k,) of columns (n, k) for a target (n,), robust against up to about half of it being something else."""
    found: NDArray[np.float64] = np.zeros(columns.shape[1])
    found[0] = np.median(target)
    sigma = np.inf
    for _ in range(_ROUNDS):
        rest = target - columns @ found
        # never wider than before: else what was cut off comes back
        sigma = min(sigma, max(_NORMAL_MAD * float(np.median(np.abs(rest - np.median(rest)))), 1e-9))
        weight = np.clip(1 - (rest / (_CUT * sigma)) ** 2, 0, None) ** 2
        root = np.sqrt(weight)[:, None]
        new = np.asarray(np.linalg.lstsq(columns * root, target * root[:, 0], rcond=None)[0], np.float64)
        if np.abs(new - found).max() <= _SETTLED * max(1.0, sigma):
            return new
        found = new
    return found
