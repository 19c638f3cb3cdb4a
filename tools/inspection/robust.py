"""How far values stand out from the others, measured so that the outliers themselves do not spoil the yardstick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_VALUES = 8  # of fewer, none is usual
MAX_Z = 3.5  # the limit of the same source


def modified_z_scores(values: Sequence[float], least_spread: float = 0.0) -> NDArray[np.float64]:
    """Distances (n,) from the median in robust standard deviations, signed; all 0 where all values are equal.

    From the median absolute deviation, or where that is 0 (more than half are equal) the mean one: Iglewicz and Hoaglin,
    "How to Detect and Handle Outliers", 1993. least_spread: standard deviation that is always allowed.
    """
    away = np.asarray(values, np.float64) - np.median(values)
    spread = max(robust_spread(values), least_spread)
    return away / spread if spread > 0 else np.zeros_like(away)


def robust_spread(values: Sequence[float]) -> float:
    """The standard deviation of values as `modified_z_scores` estimates it; 0 where all are equal."""
    away = np.abs(np.asarray(values, np.float64) - np.median(values))
    return 1.4826 * float(np.median(away)) or 1.253314 * float(away.mean())
