"""Plain marks of known size and contrast, spots and strokes: what asks how small a defect is found."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import RgbImage

_FINE = 8  # parts of a px in which marks are drawn
_DARK = 60  # grey level under which a mark is brighter than what it lies on, not darker


@dataclass(frozen=True)
class Mark:
    """A line with round ends; a spot where it is as long as it is wide."""

    length: float  # px, from end to end
    width: float  # px
    contrast: float  # 0..1: darker by this part; where the image is dark, nearer to white by it

    @property
    def half(self) -> int:
        """Half the side, px, of a square round the centre that holds it whichever way it lies."""
        return int(np.ceil(self.length / 2)) + 2


def room(mark: Mark, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W): where its centre may lie, so that all of it lies where `allowed` (H, W) is True."""
    padded = np.pad(allowed, 1).astype(np.uint8)  # outside nothing is
    reach = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.asarray(reach > mark.half, np.bool_)


def drawn(image: RgbImage, mark: Mark, centre: tuple[int, int], turn: float) -> RgbImage:
    """The image (H, W, 3) with a mark, antialiased. centre: x, y, where there is `room`; turn: rad."""
    half, (x, y) = mark.half, centre
    side = 2 * half + 1
    canvas = np.zeros((side * _FINE, side * _FINE), np.float32)
    middle = (canvas.shape[1] - 1) / 2
    reach = np.array([np.cos(turn), np.sin(turn)]) * max(mark.length - mark.width, 0) * _FINE / 2
    ends = [(round(middle + s * reach[0]), round(middle + s * reach[1])) for s in (-1, 1)]
    cv2.line(canvas, ends[0], ends[1], 1.0, max(1, round(mark.width * _FINE)))
    cover = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)[..., None]
    out = image.copy()
    at = np.s_[y - half : y + half + 1, x - half : x + half + 1]
    under = out[at].astype(np.float32)
    target = under * (1 - mark.contrast) if under.mean() > _DARK else under + mark.contrast * (255 - under)
    out[at] = np.rint(under + cover * (target - under)).astype(np.uint8)
    return out
