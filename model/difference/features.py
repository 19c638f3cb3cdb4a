"""From photos to features, whatever runs the encoder: the size at which they are encoded, and what retrieval looks at.

Runs on numpy arrays as well as on tensors. Knows nothing about goldens, registration or scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.arrays import Array, library_of, mean_cells, packed, unit
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.errors import ImageError
from refdiff.model.images import RgbImage

FEATURE_VERSION = "2"  # raise when the meaning of cached features changes, or how goldens are drawn for them
SIDES = 32  # work px: both sides of what is encoded are multiples of it
_RETRIEVAL_GRID = 6  # retrieval patches: 6 x 6 average-pooled cells of the stride-16 map


@dataclass(frozen=True)
class Features:
    """What one image looks like to the network."""

    maps: FeatureMaps  # stride -> (C, h, w) float32, h = H_work / stride
    global_vec: NDArray[np.float32]  # (D,) unit norm; only for retrieval
    patches: NDArray[np.float32]  # (36, C16) rows of unit norm; only for retrieval
    size: tuple[int, int]  # (H, W) px of the original image
    work_size: tuple[int, int]  # (H, W) px at which it was encoded, multiples of 32


def work_size(size: tuple[int, int], working_px: int) -> tuple[int, int]:
    """(H, W) at which an image of `size` (H, W) is encoded: long side `working_px`, both sides multiples of 32."""
    h, w = size
    scale = working_px / max(h, w)
    return max(64, round(h * scale / SIDES) * SIDES), max(64, round(w * scale / SIDES) * SIDES)


def resize_to(image: RgbImage, size: tuple[int, int]) -> RgbImage:
    """Resize (H, W, 3) to `size` (H, W): area averaging when shrinking (no aliasing), bicubic when growing."""
    h, w = size
    if image.shape[:2] == (h, w):
        return image
    shrinking = image.shape[0] * image.shape[1] > h * w
    out = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    return np.asarray(out, dtype=np.uint8)


def fingerprint_of(digest: str, working_px: int) -> str:
    """What features depend on: the encoder's weights (`digest`) and the working size. Hex."""
    return hashlib.sha256(f"{digest}:{FEATURE_VERSION}:{working_px}".encode()).hexdigest()[:16]


class Encoding:
    """A frozen encoder. `embed` one image, `embed_batch` many of one working size.

    channels: stride -> C of its maps. digest: of its weights. fingerprint: what features depend on, hex.
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], Mapping[int, Array]],
        as_array: Callable[[NDArray[np.float32]], Array],
        channels: Mapping[int, int],
        digest: str,
        working_px: int,
    ) -> None:
        """run: (B, H, W, 3) uint8 -> maps, stride -> (B, C, H / stride, W / stride) float32. as_array: makes such an array
        of a numpy one."""
        self._run, self.as_array, self._working_px = run, as_array, working_px
        self.channels, self.digest = channels, digest
        self.global_dim, self.patch_dim = 2 * channels[32], channels[16]
        self.fingerprint = fingerprint_of(digest, working_px)

    def embed(self, image: RgbImage, size: tuple[int, int] | None = None) -> Features:
        """Features of (H, W, 3) uint8 RGB; `size` overrides the working size (to match another image's)."""
        return self.embed_batch([image], size)[0]

    def embed_batch(self, images: Sequence[RgbImage], size: tuple[int, int] | None = None) -> list[Features]:
        """Features of several images, all brought to one working size (default: the first image's)."""
        if not images:
            return []
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ImageError(f"encoder expects (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        target = size or work_size(images[0].shape[:2], self._working_px)
        maps = self._run(np.stack([resize_to(image, target) for image in images]))
        return [
            features_of({s: m[i] for s, m in maps.items()}, image.shape[:2], target) for i, image in enumerate(images)
        ]


def features_of(maps: Mapping[int, Array], size: tuple[int, int], target: tuple[int, int]) -> Features:
    """maps: of one image of `size` (H, W), encoded at `target` (H, W)."""
    deep = maps[32].reshape(maps[32].shape[0], -1)  # (C32, n)
    library = library_of(deep)
    # mean and spread of the deepest map tell product variants apart; each half has unit norm so neither dominates
    halves = unit(deep.mean(1), 0), unit(library.std(deep, 1, correction=1), 0)
    return Features(
        maps=FeatureMaps({s: packed(m) for s, m in maps.items()}),
        global_vec=np.asarray(unit(library.concat(halves), 0)).copy(),
        patches=np.asarray(unit(mean_cells(maps[16], _RETRIEVAL_GRID), 1)).copy(),
        size=size,
        work_size=target,
    )
