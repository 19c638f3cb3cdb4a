"""Rendered thermograms with known truth: a warm assembly, its good parts as they vary, and hot spots of known height.

Everything is an analytic function of the place on the part: a part that lies elsewhere is drawn, not resampled, and a
spot is exactly as hot as its truth says. What a camera does comes last: optics, emissivity, gain, offset and noise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from refdiff.model.images import F32, Box, Mask

_EDGE_PX = 1.4  # over which heat spreads beyond a component
_OPTICS_PX = 0.7  # sigma of the lens
_NOISE_K = 0.06  # noise-equivalent temperature difference of an uncooled camera
_GAIN, _OFFSET_K, _EMISSIVITY = 0.007, 0.8, 0.015  # standard deviations from picture to picture
_REFLECTED_C = 20.0
CENTIKELVIN = 0.01


@dataclass(frozen=True)
class HotSpot:
    """The truth about a spot. delta_k: of its centre, as hot as the part really is there. diameter_px: at half its height.

    x, y: its centre, px of the picture. mask: (H, W), where it has at least half its height.
    """

    delta_k: float
    diameter_px: float
    x: float
    y: float
    mask: Mask

    @property
    def box(self) -> Box:
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class RenderedPart:
    """celsius: (H, W) float32, as the camera reads it. spot: None on a good part."""

    celsius: F32
    spot: HotSpot | None


@dataclass(frozen=True)
class _Component:
    x: float
    y: float
    half_width: float
    half_height: float
    rise_k: float
    round: bool


class Assembly:
    """A product: a board with components that get warm. The same seed is the same product."""

    def __init__(self, seed: int, size: tuple[int, int] = (240, 320)) -> None:
        """size: (H, W) of the pictures, px."""
        self.size = size
        rng = np.random.default_rng((seed, 1))
        h, w = size
        self._half = (0.40 * w, 0.38 * h)
        self._slope = rng.normal(0, 2.0, 2)
        self._components: list[_Component] = []
        while len(self._components) < 11:
            width, height = rng.uniform(0.025, 0.085, 2) * w
            x, y = rng.uniform(-0.33, 0.33) * w, rng.uniform(-0.31, 0.31) * h
            apart = all(
                abs(x - c.x) > width + c.half_width + 5 or abs(y - c.y) > height + c.half_height + 5
                for c in self._components
            )
            inside = abs(x) + width < self._half[0] - 4 and abs(y) + height < self._half[1] - 4
            if apart and inside:
                rise = float(rng.uniform(4, 38))
                self._components.append(_Component(x, y, width, height, rise, bool(rng.random() < 0.3)))

    def render(
        self,
        rng: np.random.Generator,
        *,
        spot_k: float | None = None,
        spot_px: float = 12.0,
        ambient_k: float = 0.0,
        ambient_c: float = 22.0,
    ) -> RenderedPart:
        """One part in front of the camera; its components, its place and the camera differ from picture to picture.

        spot_k: height of a hot spot, None for a good part. spot_px: its diameter at half that height. ambient_k: by how much
        the surroundings, and with them all of the part, are warmer than `ambient_c`.
        """
        h, w = self.size
        angle, scale = np.deg2rad(rng.uniform(-2, 2)), rng.uniform(0.99, 1.01)
        dx, dy = rng.uniform(-4, 4, 2)
        ys, xs = np.mgrid[0:h, 0:w].astype(np.float64) + 0.5
        px, py = xs - w / 2 - dx, ys - h / 2 - dy
        u = (np.cos(angle) * px + np.sin(angle) * py) / scale
        v = (-np.sin(angle) * px + np.cos(angle) * py) / scale
        ambient = ambient_c + ambient_k
        load = rng.normal(1.0, 0.01)  # of what the part does: all of it warms up together
        part = _inside(np.maximum(np.abs(u) - self._half[0], np.abs(v) - self._half[1]))
        slope = self._slope @ np.stack([u.ravel() / w, v.ravel() / h])
        rise = 7.0 + slope.reshape(u.shape)
        for c in self._components:
            own = c.rise_k * rng.normal(1.0, 0.012)
            if c.round:
                outside = np.hypot(u - c.x, v - c.y) - min(c.half_width, c.half_height)
            else:
                outside = np.maximum(np.abs(u - c.x) - c.half_width, np.abs(v - c.y) - c.half_height)
            rise = rise + own * _inside(outside)
        celsius = ambient + load * part * rise
        spot = None
        if spot_k is not None:
            reach = spot_px / 2
            at = rng.uniform(-1, 1, 2) * (np.array(self._half) - reach - 6)
            radius = np.hypot(u - at[0], v - at[1]) * scale
            shape = np.exp(-np.log(2) * (radius / reach) ** 4)
            celsius = celsius + spot_k * shape
            centre = np.unravel_index(int(radius.argmin()), radius.shape)
            spot = HotSpot(spot_k, spot_px, float(centre[1]) + 0.5, float(centre[0]) + 0.5, np.asarray(shape >= 0.5))
        return RenderedPart(_photographed(celsius, rng), spot)


def _inside(outside: np.ndarray) -> np.ndarray:
    """1 inside, 0 outside of a shape, of the distance to it (px, negative inside), with a soft edge."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(outside / _EDGE_PX, -40, 40))))


def _photographed(celsius: np.ndarray, rng: np.random.Generator) -> F32:
    """What a camera makes of it. (H, W) float32, whole hundredths of a kelvin."""
    seen = cv2.GaussianBlur(celsius, (0, 0), _OPTICS_PX)
    seen = _REFLECTED_C + (seen - _REFLECTED_C) * rng.normal(1.0, _EMISSIVITY)
    middle = float(np.median(seen))
    seen = middle + (seen - middle) * rng.normal(1.0, _GAIN) + rng.normal(0, _OFFSET_K)
    seen = seen + rng.normal(0, _NOISE_K, seen.shape)
    return np.asarray(np.round(seen, 2), np.float32)


def centikelvin_tiff(celsius: F32) -> bytes:
    """A radiometric TIFF: 16-bit, 0.01 K a count."""
    counts = np.rint((celsius.astype(np.float64) + 273.15) / CENTIKELVIN)
    buffer = io.BytesIO()
    Image.fromarray(counts.astype(np.uint16)).save(buffer, format="TIFF")
    return buffer.getvalue()
