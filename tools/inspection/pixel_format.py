"""Whether a photo's pixels are of the kind of its golden samples': several colours, one or grey, and the same bit depth.

The score of a grey or raw sensor image of a coloured part, or of 12-bit samples where 16-bit ones were enrolled, says
nothing about the part.
"""

from __future__ import annotations

import cv2
import numpy as np

from refdiff.model.images import RgbImage

_MAX_OUTSIDE = 0.5  # part of the samples that may lie outside the intensity window
_MIN_RANGE = 0.3  # of the golden's range of samples; two bits less leave a quarter
_LOOKED_AT = 512  # px a side; a range of samples needs no more
# how far colours scatter off the line of the shades of one, as a part of how far along it
_SEVERAL_COLOURS = 0.1
_COLOURS_LOST = (
    0.15  # of a golden sample's; in 450 photos of twelve such products, many defective, .30 or more was left
)
_COLOURS_PX = 32  # px a side: averages out noise


def format_problem(query: RgbImage, golden: RgbImage, *, deep: bool) -> str:
    """Why the format of a photo makes its comparison unreliable; "" if it does not.

    Both (H, W, 3) uint8 of any size; deep: shown through the product's intensity window.
    """
    grey = _is_grey(query)
    if grey != _is_grey(golden):
        kinds = ("grey (a monochrome camera, or raw sensor data?)", "in colour")
        return "the photo is {}, the golden sample {}; photograph as for the golden samples".format(
            *(kinds if grey else kinds[::-1])
        )
    theirs = 0.0 if grey else _colours(golden)
    if theirs >= _SEVERAL_COLOURS and _colours(query) < _COLOURS_LOST * theirs:
        return (
            "the photo has shades of one colour, the golden sample several colours (coloured light, a monochrome camera, or "
            "a coloured part missing?)"
        )
    if not deep:
        return ""
    outside = float(np.isin(_some(query), (0, 255)).mean())
    part = _range(query) / max(_range(golden), 1.0)
    ask = "another bit depth or exposure than that of the golden samples?"
    if outside > _MAX_OUTSIDE:
        return f"{100 * outside:.0f} % of the samples lie outside the product's intensity window: {ask}"
    if part < _MIN_RANGE:
        return f"the samples fill only {100 * part:.0f} % of the range that those of the golden sample fill: {ask}"
    return ""


def _is_grey(image: RgbImage) -> bool:
    """Is every pixel exactly grey? Even a grey part is not, as a colour camera sees it."""
    return all(np.array_equal(image[..., 0], image[..., c]) for c in (1, 2))


def _colours(image: RgbImage) -> float:
    """How far the colours (H, W, 3) are from being shades of one, whatever their contrast: 0..1."""
    small = cv2.resize(_some(image), (_COLOURS_PX, _COLOURS_PX), interpolation=cv2.INTER_AREA)
    _, second, first = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(small.reshape(-1, 3).T.astype(np.float64))), 0))
    return float(second / first) if first else 0.0


def _some(image: RgbImage) -> RgbImage:
    step = max(1, min(image.shape[:2]) // _LOOKED_AT)
    return image[::step, ::step]


def _range(image: RgbImage) -> float:
    lo, hi = np.percentile(_some(image), (0.1, 99.9))
    return float(hi - lo)
