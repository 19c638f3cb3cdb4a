"""Whether a photo is as bright and as sharp as its nearest golden sample.

Looked at where both show the part, on the grid on which they are compared: what is finer does not reach the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refdiff.model.difference.matching import ReferenceView

_MAX_LIGHT = 3.0  # times brighter or darker; photos of one product under changing light stay below 2.2
_MIN_SHARPNESS = 0.5  # of the golden sample's; without a blur it was .58 or more in 170 photos of six products
_EDGES = 0.1  # part of the pixels that count as edges of the golden sample
_LEAST_EDGE = 2.0  # energy of the finest structures at the edges, in that of the rest: else there are none, but noise
_FINE_PX, _COARSE_PX = 1.0, 4.0  # sigma


@dataclass
class _Energy:
    """Sums of squares at the edges, and of the finest structures everywhere."""

    fine: float = 0.0
    coarse: float = 0.0

    def add(self, fine: NDArray[np.float32], coarse: NDArray[np.float32], at: NDArray[np.bool_]) -> None:
        self.fine += float((fine[at] ** 2).sum())
        self.coarse += float((coarse[at] ** 2).sum())

    @property
    def sharpness(self) -> float:
        return float(np.sqrt(self.fine / self.coarse)) if self.coarse > 0 else 0.0


class LightAndFocus:
    """Gathers, tile by tile, how bright and sharp a photo and its golden sample are."""

    def __init__(self) -> None:
        self._photo, self._golden = _Energy(), _Energy()
        self._levels = np.zeros(2)  # sums of photo and golden
        self._noise, self._edge_px, self._rest_px = 0.0, 0, 0

    def add(self, photo: Tensor, golden: ReferenceView) -> None:
        """photo: (3, H, W) uint8 on a tile. golden: the nearest; where it did not register, nothing is learned."""
        if golden.picture is None or golden.covered is None:
            return
        covered = golden.covered.numpy()
        if not covered.any():
            return
        grey = [cv2.cvtColor(p.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for p in (photo, golden.picture)]
        self._levels += [float(g[covered].sum()) for g in grey]
        (fine, coarse), (golden_fine, golden_coarse) = (_bands(g) for g in grey)
        strength = cv2.GaussianBlur(np.abs(golden_coarse), (0, 0), 2 * _FINE_PX)
        edge = covered & (strength >= np.quantile(strength[covered], 1 - _EDGES))
        self._photo.add(fine, coarse, edge)
        self._golden.add(golden_fine, golden_coarse, edge)
        rest = covered & ~edge
        self._noise += float((golden_fine[rest] ** 2).sum())
        self._edge_px, self._rest_px = self._edge_px + int(edge.sum()), self._rest_px + int(rest.sum())

    def problem(self) -> str:
        """Why light or focus make the comparison unreliable; "" if they do not."""
        photo, golden = self._levels + self._edge_px  # a black one is not infinitely darker
        if not self._edge_px:
            return ""
        again = "photograph the part as the golden samples were"
        for brighter, word in ((photo / golden, "brighter"), (golden / photo, "darker")):
            if brighter > _MAX_LIGHT:
                return f"the photo is {brighter:.1f} times {word} than the golden sample; {again}"
        has_edges = self._golden.fine * self._rest_px > _LEAST_EDGE * self._noise * self._edge_px
        if has_edges and self._golden.sharpness > 0:
            sharp = self._photo.sharpness / self._golden.sharpness
            if sharp < _MIN_SHARPNESS:
                return f"the photo is only {100 * sharp:.0f} % as sharp as the golden sample; focus, then {again}"
        return ""


def _bands(grey: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The finest structures of a picture, and those that are somewhat coarser."""
    whole = grey.astype(np.float32)
    smooth = cv2.GaussianBlur(whole, (0, 0), _FINE_PX)
    return whole - smooth, smooth - cv2.GaussianBlur(whole, (0, 0), _COARSE_PX)
