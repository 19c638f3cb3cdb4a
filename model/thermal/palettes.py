"""The palettes of thermographers: iron (ironbow), grey (white is hot) and rainbow."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32, RgbImage

Palette = Literal["iron", "grey", "rainbow"]
PALETTES: tuple[Palette, ...] = get_args(Palette)

DIVERGING: Literal["diverging"] = "diverging"  # blue, white in the middle, red: of signed differences

# position 0..1 -> RGB: black, violet, magenta, orange, yellow, white, each step brighter than the one before
_IRON = (
    (0.0, (0, 0, 0)), (0.12, (32, 0, 110)), (0.30, (122, 2, 158)), (0.48, (192, 30, 120)), (0.63, (232, 88, 34)),
    (0.80, (248, 165, 10)), (0.93, (254, 232, 110)), (1.0, (255, 255, 255)),
)  # fmt: skip
NOT_MEASURED = (90, 90, 90)


@cache
def table(palette: Palette | Literal["diverging"]) -> NDArray[np.uint8]:
    """(256, 3) uint8 RGB, cold to hot."""
    level = np.linspace(0, 1, 256)
    if palette == DIVERGING:
        ends = np.where(level[:, None] > 0.5, np.array([178.0, 10, 28]), np.array([20.0, 70, 170]))
        return np.rint(247 + (ends - 247) * np.abs(2 * level[:, None] - 1)).astype(np.uint8)
    if palette == "grey":
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if palette == "rainbow":
        ramp = np.arange(256, dtype=np.uint8)[None]
        return np.asarray(cv2.applyColorMap(ramp, cv2.COLORMAP_JET)[0, :, ::-1], np.uint8)
    at, colours = [p for p, _ in _IRON], np.array([c for _, c in _IRON], np.float64)
    return np.stack([np.rint(np.interp(level, at, colours[:, i])) for i in range(3)], 1).astype(np.uint8)


def coloured(values: F32, span: tuple[float, float], palette: Palette | Literal["diverging"]) -> RgbImage:
    """(H, W) values as (H, W, 3) uint8 RGB; what lies outside `span` (lo, hi) has the colour of its end, NaN is grey."""
    lo, hi = span
    level = (np.nan_to_num(values, nan=lo) - lo) / max(hi - lo, 1e-9)
    picture = table(palette)[(np.clip(level, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)]
    picture[~np.isfinite(values)] = NOT_MEASURED
    return picture
