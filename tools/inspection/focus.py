"""Whether a photo is as sharp as its golden samples.

Looked at where both show the part, on the grid on which they are compared: what is finer does not reach the network. A
median over small squares with an edge decides, so that a smooth defect is not taken for a photo out of focus.

How bright a photo is says nothing: a part may be dark because it is defective (a dead solar cell under current).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.arrays import Array
from refdiff.model.difference.matching import ReferenceView

_LEAST_SHARPNESS = 0.5  # of a golden sample's: half as sharp is out of focus, not the spread of good photos
_SQUARE_PX = 16
_LEAST_EDGE = 4.0  # energy of the finest structures of a square with an edge, in that of most squares, which is noise
_LEAST_SQUARES = 8  # with an edge, to say anything
_FINE_PX, _COARSE_PX = 3, 9  # sides of the squares that are averaged

Plane = NDArray[np.float32]


class Focus:
    """Gathers, tile by tile, how sharp a photo and its golden samples are."""

    def __init__(self) -> None:
        # golden sample -> of its tiles, (n, 4): energy of the finest and of coarser structures, of photo and golden sample
        self._squares: dict[int, list[Plane]] = {}

    def add(self, photo: Array, goldens: Sequence[ReferenceView], ignored: NDArray[np.bool_] | None = None) -> None:
        """photo: (3, H, W) uint8 on a tile. goldens: as they lie on it; of those that did not register nothing is learned.

        ignored: (h, w) of any resolution, what does not count.
        """
        here: list[Plane] | None = None
        for i, golden in enumerate(goldens):
            if golden.picture is None or golden.covered is None:
                continue
            here = here or _structures(photo)
            counts = _small(np.asarray(golden.covered, np.float32)) > 0.99
            if ignored is not None:
                counts &= cv2.resize(ignored.astype(np.float32), counts.shape[::-1], interpolation=cv2.INTER_AREA) <= 0
            planes = (*here, *_structures(golden.picture))
            self._squares.setdefault(i, []).append(np.stack([p[counts] for p in planes], 1))

    def problem(self) -> str:
        """Why the photo's focus makes the comparison unreliable; "" if one golden sample is as unsharp."""
        found = [_problem(np.concatenate(squares)) for squares in self._squares.values()]
        return found[0] if found and all(found) else ""


def _structures(picture: Array) -> list[Plane]:
    """Of every square: energy of the finest structures, and of those somewhat coarser."""
    grey = cv2.cvtColor(np.asarray(picture).transpose(1, 2, 0), cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth, smoother = (cv2.blur(grey, (side, side)) for side in (_FINE_PX, _COARSE_PX))
    return [_small((grey - smooth) ** 2), _small((smooth - smoother) ** 2)]


def _small(plane: NDArray[np.float32]) -> Plane:
    size = plane.shape[1] // _SQUARE_PX, plane.shape[0] // _SQUARE_PX
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _problem(squares: Plane) -> str:
    if not len(squares):
        return ""
    fine, coarse, golden_fine, golden_coarse = squares.T
    edge = (golden_fine > _LEAST_EDGE * np.median(golden_fine)) & (coarse > 1) & (golden_coarse > 1)
    if edge.sum() < _LEAST_SQUARES:
        return ""
    sharpness = float(np.sqrt(np.median(fine[edge] / coarse[edge] * golden_coarse[edge] / golden_fine[edge])))
    if sharpness >= _LEAST_SHARPNESS:
        return ""
    return (
        f"the photo is only {100 * sharpness:.0f} % as sharp as its golden samples (focus, or resolution?); photograph the "
        "part as they were"
    )
