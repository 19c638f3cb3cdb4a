"""Pairs of a board made harder, as those of other makers are: nothing moves in the photo, so its boxes stay true."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import RgbImage

WARP_PX = (1.0, 3.0)  # farthest that a place of the template moves
_GRID_PX = 80  # places as far apart move independently
_SCALE = 0.004  # by which a template is larger or smaller
_ROUGH_PX = (0.5, 1.0)  # standard deviation of an edge
_GRAIN_PX = 1.5  # reach of its neighbours


def bent(template: RgbImage, rng: np.random.Generator) -> RgbImage:
    """A template (H, W, 3) uint8, scaled a little and displaced smoothly by 1 to 3 px."""
    h, w = template.shape[:2]
    grid = rng.normal(size=(h // _GRID_PX + 2, w // _GRID_PX + 2, 2)).astype(np.float32)
    moved = np.asarray(cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)
    moved *= np.float32(rng.uniform(*WARP_PX) / max(float(np.linalg.norm(moved, axis=2).max()), 1e-6))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    scale = 1 + np.float32(rng.uniform(-_SCALE, _SCALE))
    map_x, map_y = (x - w / 2) * scale + w / 2 + moved[..., 0], (y - h / 2) * scale + h / 2 + moved[..., 1]
    return np.asarray(cv2.remap(template, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def widened(template: RgbImage, rng: np.random.Generator) -> RgbImage:
    """A template whose conductors are wider or narrower by 1 px on each side, as after other etching."""
    change = cv2.dilate if rng.random() < 0.5 else cv2.erode
    return np.asarray(change(template, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))), np.uint8)


def roughened(template: RgbImage, rng: np.random.Generator) -> RgbImage:
    """A template whose edges are rough by about a pixel."""
    h, w = template.shape[:2]
    noise = rng.normal(size=(2, h, w)).astype(np.float32)
    noise = np.stack([cv2.GaussianBlur(n, (0, 0), _GRAIN_PX) for n in noise])
    noise *= np.float32(rng.uniform(*_ROUGH_PX) / max(float(noise.std()), 1e-6))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    moved = cv2.remap(template, x + noise[0], y + noise[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def dimmed(photo: RgbImage, rng: np.random.Generator) -> RgbImage:
    """A photo (H, W, 3) uint8 of less contrast than its template, softer and noisy."""
    contrast = rng.uniform(0.45, 0.8)
    grey = cv2.GaussianBlur(photo, (0, 0), 0.7).astype(np.float32) * contrast + rng.uniform(0, 255 * (1 - contrast))
    noise: NDArray[np.float64] = rng.normal(0, 10, photo.shape[:2])
    return np.clip(grey + noise[..., None], 0, 255).astype(np.uint8)
