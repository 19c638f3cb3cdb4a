"""Whether a photo is as bright and as sharp as its golden samples.

Looked at where both show the part, on the grid on which they are compared: what is finer does not reach the network. Medians
over small squares decide, so that a defect, however bright or smooth, is not taken for other light or focus.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refdiff.model.difference.matching import ReferenceView

_MAX_LIGHT = 3.0  # times the grey values; photos of one product under changing light stay below 2.2
_MIN_SHARPNESS = 0.5  # of a golden sample's; without a blur it was .58 or more in 170 photos of six products
_SQUARE_PX = 16
_LEAST_EDGE = 4.0  # energy of the finest structures of a square with an edge, in that of most squares, which is noise
_LEAST_SQUARES = 8  # with an edge, to say anything about focus
_FINE_PX, _COARSE_PX = 3, 9  # sides of the squares that are averaged

Plane = NDArray[np.float32]


class LightAndFocus:
    """Gathers, tile by tile, how bright and sharp a photo and its golden samples are."""

    def __init__(self) -> None:
        # golden sample -> of its tiles, (n, 6): grey value, finest and coarser structures of photo and golden sample
        self._squares: dict[int, list[Plane]] = {}

    def add(self, photo: Tensor, goldens: Sequence[ReferenceView], ignored: NDArray[np.bool_] | None = None) -> None:
        """photo: (3, H, W) uint8 on a tile. goldens: as they lie on it; of those that did not register nothing is learned.

        ignored: (h, w) of any resolution, what does not count.
        """
        here: list[Plane] | None = None
        for i, golden in enumerate(goldens):
            if golden.picture is None or golden.covered is None:
                continue
            here = here or _looks(photo)
            counts = _small(golden.covered.numpy().astype(np.float32)) > 0.99
            if ignored is not None:
                counts &= cv2.resize(ignored.astype(np.float32), counts.shape[::-1], interpolation=cv2.INTER_AREA) <= 0
            self._squares.setdefault(i, []).append(np.stack([p[counts] for p in (*here, *_looks(golden.picture))], 1))

    def problem(self) -> str:
        """Why light or focus make the comparison unreliable; "" if they are like those of one golden sample."""
        found = [_problem(np.concatenate(squares)) for squares in self._squares.values()]
        return found[0] if found and all(found) else ""


def _looks(picture: Tensor) -> list[Plane]:
    """Of every square: mean grey value, energy of the finest structures, and of those somewhat coarser."""
    grey = cv2.cvtColor(picture.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth, smoother = (cv2.blur(grey, (side, side)) for side in (_FINE_PX, _COARSE_PX))
    return [_small(grey), _small((grey - smooth) ** 2), _small((smooth - smoother) ** 2)]


def _small(plane: NDArray[np.float32]) -> Plane:
    size = plane.shape[1] // _SQUARE_PX, plane.shape[0] // _SQUARE_PX
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _problem(squares: Plane) -> str:
    if not len(squares):
        return ""
    grey, fine, coarse, golden_grey, golden_fine, golden_coarse = squares.T
    light = float(np.median((grey + 1) / (golden_grey + 1)))
    again = "photograph the part as the golden samples were"
    for times, word in ((light, "brighter"), (1 / light, "darker")):
        if times > _MAX_LIGHT:
            return f"the photo is much {word} than its golden samples (grey values differ {times:.1f} times); {again}"
    edge = (golden_fine > _LEAST_EDGE * np.median(golden_fine)) & (coarse > 1) & (golden_coarse > 1)
    if edge.sum() < _LEAST_SQUARES:
        return ""
    sharpness = float(np.sqrt(np.median(fine[edge] / coarse[edge] * golden_coarse[edge] / golden_fine[edge])))
    if sharpness < _MIN_SHARPNESS:
        return (
            f"the photo is only {100 * sharpness:.0f} % as sharp as its golden samples (focus, or resolution?); {again}"
        )
    return ""
