"""What the synthetic defects are painted with: the job at hand, blobs, lines, noise, paint, glaze, warps and fills.

A brush gets a `Job` and returns a `Patch`: the window's new pixels. The mask (what changed enough) is
measured afterwards, not given by the brush. Knows no defect.

Units: px, x right, y down; float windows hold grey levels 0..255; alpha is 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32, U8

Bool = NDArray[np.bool_]

# what the channels lose, and gain, to rust, oil, dye and oxide; to wax, glue, bleach and glare
_DARKER = np.array([(0.35, 0.7, 1.0), (0.75, 0.8, 1.0), (1.0, 0.7, 0.3), (1.0, 0.35, 0.8)])
_LIGHTER = np.array([(1.0, 0.9, 0.6), (1.0, 0.7, 0.35), (0.7, 0.9, 1.0), (0.6, 1.0, 0.75)])


@dataclass(frozen=True)
class Patch:
    """New pixels (h, w, 3) float32 of the window whose top left pixel is (x0, y0)."""

    x0: int
    y0: int
    pixels: F32


@dataclass
class Job:
    """One defect being made."""

    image: U8  # (H, W, 3), read only
    rng: np.random.Generator
    foreground: Bool | None  # (H, W), None = everywhere
    donor: U8  # (h, w, 3), an image to cut from
    contrast: float  # 0 just visible .. 1 obvious
    size: float  # wanted extent, px
    on_part: bool  # it must lie on the foreground
    grey: bool  # the image has no colours, so nor has the defect

    @property
    def h(self) -> int:
        return int(self.image.shape[0])

    @property
    def w(self) -> int:
        return int(self.image.shape[1])

    @property
    def unit(self) -> float:
        """Length of one px of a 320 px image, at least 1."""
        return max(1.0, min(self.h, self.w) / 320)

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def spot(self) -> tuple[int, int]:
        """Random pixel (x, y), on the part if the defect must be there."""
        x, y = 0, 0
        for _ in range(40):
            x, y = int(self.rng.integers(self.w)), int(self.rng.integers(self.h))
            if self.foreground is None or not self.on_part or self.foreground[y, x]:
                break
        return x, y

    def busy_spot(self, extent: float, tries: int = 8) -> tuple[int, int]:
        """Random pixel round which there is something to see: the busiest of `tries` places."""
        best, found = -1.0, (0, 0)
        for _ in range(tries):
            x, y = self.spot()
            window, _, _ = self.window(x, y, max(5, extent), max(5, extent))
            std = float(np.max(cv2.meanStdDev(window)[1]))
            if std > best:
                best, found = std, (x, y)
        return found

    def window(self, cx: float, cy: float, w: float, h: float) -> tuple[U8, int, int]:
        """View of about (h, w) px round (cx, cy), clipped to the image, and its top left pixel."""
        x0, y0 = max(0, round(cx - w / 2)), max(0, round(cy - h / 2))
        x1, y1 = min(self.w, round(cx + w / 2) + 1), min(self.h, round(cy + h / 2) + 1)
        return self.image[y0:y1, x0:x1], x0, y0

    def share_on_part(self, x0: int, y0: int, w: int, h: int) -> float:
        """How much of a box lies on the part, 0..1."""
        return 1.0 if self.foreground is None else float(self.foreground[y0 : y0 + h : 3, x0 : x0 + w : 3].mean())

    def peak(self, window: U8) -> float:
        """Largest change in grey levels: from just above the window's own fine texture to obvious."""
        low = 8.0 + 0.6 * grain_of(window)
        return low * (max(95.0, 1.5 * low) / low) ** self.contrast

    def change(self, window: U8, colour: float = 0.4, dark: float = 0.5) -> F32:
        """(3,) grey levels to add at full alpha: about `peak` in the strongest channel, towards where there is room.
        colour: chance of a tint; dark: chance of darker."""
        peak = self.peak(window)
        here = cv2.mean(window)[:3]
        luma = sum(here) / 3
        sign = -1.0 if self.chance(dark) else 1.0
        if (luma if sign < 0 else 255 - luma) < 0.8 * peak:
            sign = 1.0 if luma < 127 else -1.0
        peak = min(peak, 0.95 * (luma if sign < 0 else 255 - luma))
        hue = np.ones(3)
        if not self.grey:
            hue = hue + self.rng.normal(0, 0.06, 3)
            if self.chance(colour):
                hue = hue * (_DARKER if sign < 0 else _LIGHTER)[int(self.rng.integers(4))] + self.rng.normal(0, 0.12, 3)
        return np.asarray(sign * peak * hue / np.abs(hue).max(), np.float32)


def grain_of(window: U8) -> float:
    """Fine texture and noise of a window: robust grey level spread of the high-pass (a contour is no grain)."""
    h, w = window.shape[:2]
    top, left = max(0, h // 2 - 32), max(0, w // 2 - 32)
    middle = window[top : top + 64, left : left + 64, 1]
    high = cv2.absdiff(middle, cv2.blur(middle, (3, 3)))
    return float(np.median(high) + 0.5 * cv2.mean(high)[0])


def fractal(rng: np.random.Generator, h: int, w: int, cell: float, octaves: int = 3) -> F32:
    """Fractal noise (h, w), about -1..1, whose largest features are `cell` px."""
    out = np.zeros((h, w), np.float32)
    weight, total = 1.0, 0.0
    for _ in range(octaves):
        grid = rng.random((max(2, round(h / cell)) + 1, max(2, round(w / cell)) + 1), np.float32) * 2 - 1
        out += np.float32(weight) * cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
        total += weight
        weight, cell = weight / 2, cell / 2
        if cell < 2:
            break
    return out / np.float32(total)


def lump(rng: np.random.Generator, size: float, *, soft: float = 0.2, rough: float = 0.4, slim: float = 0.5) -> F32:
    """Alpha of an irregular blob about `size` px across in a square window a little larger.

    soft: width of the edge / radius (never under a pixel); rough: depth of the bays; slim: least width / length."""
    radius = max(size / 2, 0.8)
    n = int(np.ceil(radius * (1 + soft) + 1.5)) * 2 + 1
    axis = (np.arange(n, dtype=np.float32) - n // 2 + np.float32(rng.uniform(-0.4, 0.4))) / np.float32(radius)
    x, y = axis[None, :], axis[:, None]
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(slim, 1.0)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    d = np.sqrt((x * c + y * s) ** 2 + ((y * c - x * s) / np.float32(squeeze)) ** 2)
    if rough > 0 and radius > 1.5:
        d = d + np.float32(rough) * fractal(rng, n, n, max(2.0, radius * 0.8))
    edge = max(soft, 1.0 / radius)
    return smooth((np.float32(1 - rough * 0.3 + edge / 2) - d) / np.float32(edge))


def smooth(t: F32) -> F32:
    """Smoothstep of 0..1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def line(points: NDArray[np.float64], widths: NDArray[np.float64] | float, h: int, w: int) -> F32:
    """Alpha (h, w) of a polyline through (N, 2) points, widths in px (one or per point), antialiased."""
    scale = 3 if h * w < 90_000 else 2
    canvas = np.zeros((h * scale, w * scale), np.uint8)
    where = np.round(((points + 0.5) * scale - 0.5) * 16).astype(np.int32)
    thick = np.maximum(1, np.round(np.broadcast_to(widths, len(points)) * scale)).astype(int)
    start = 0
    for i in range(1, len(points)):
        if i == len(points) - 1 or thick[i] != thick[start]:
            run = where[start : i + 1].reshape(-1, 1, 2)
            cv2.polylines(canvas, [run], False, 255, int(thick[start]), cv2.LINE_AA, 4)
            start = i
    return np.asarray(cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def walk(
    rng: np.random.Generator, at: tuple[float, float], length: float, bend: float, wiggle: float
) -> NDArray[np.float64]:
    """(N, 2) path of `length` px through `at`: `bend` rad of even turn, `wiggle` rad of kink at every step."""
    n = int(np.clip(length / 2.5, 4, 90))
    heading = rng.uniform(0, 2 * np.pi) + bend * rng.uniform(-1, 1) * np.linspace(-0.5, 0.5, n)
    heading = heading + bend * 0.4 * np.sin(np.linspace(0, rng.uniform(1, 5), n) + rng.uniform(0, 6))
    heading = heading + wiggle * np.cumsum(rng.normal(0, 1, n)) / np.sqrt(n) * 1.5 + wiggle * rng.normal(0, 0.6, n)
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * (length / n)
    return np.asarray(path - path[n // 2] + np.array(at), np.float64)


def framed(job: Job, path: NDArray[np.float64], pad: float) -> tuple[U8, int, int, NDArray[np.float64]]:
    """Window round a path of image px: view, x0, y0 and the path in window px."""
    lo, hi = path.min(0) - pad, path.max(0) + pad
    centre, extent = (lo + hi) / 2, hi - lo
    window, x0, y0 = job.window(centre[0], centre[1], extent[0], extent[1])
    return window, x0, y0, path - (x0, y0)


def placed(job: Job, alpha: F32, cx: int, cy: int) -> tuple[U8, int, int, F32]:
    """Window of the image under `alpha` centred at (cx, cy), clipped; view, x0, y0, alpha clipped alike."""
    ah, aw = alpha.shape[:2]
    left, top = cx - aw // 2, cy - ah // 2
    x0, y0, x1, y1 = max(0, left), max(0, top), min(job.w, left + aw), min(job.h, top + ah)
    return job.image[y0:y1, x0:x1], x0, y0, alpha[y0 - top : y1 - top, x0 - left : x1 - left]


def cover(window: U8 | F32, alpha: F32, colour: F32, texture: float) -> F32:
    """Opaque-ish paint: `colour` (3,) over the window where alpha, keeping `texture` 0..1 of what was there."""
    old = window.astype(np.float32)
    flat = colour + np.float32(texture) * (old - old.mean((0, 1)))
    return old + alpha[..., None] * (flat - old)


def tint(window: U8, alpha: F32, change: F32) -> F32:
    """Glaze: adds `change` (3,) where alpha, in proportion to how light each pixel is (keeps the texture)."""
    old = window.astype(np.float32)
    level = np.maximum(cv2.mean(window)[:3], 12).astype(np.float32)
    return old + alpha[..., None] * change * np.clip(np.float32(0.4) + np.float32(0.6) * old / level, 0.3, 1.6)


def warped(window: U8, dx: F32, dy: F32) -> F32:
    """Window resampled at (x + dx, y + dy)."""
    h, w = window.shape[:2]
    x = np.arange(w, dtype=np.float32)[None, :] + dx
    y = np.arange(h, dtype=np.float32)[:, None] + dy
    return np.asarray(cv2.remap(window, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.float32)


def grain(rng: np.random.Generator, like: U8, h: int, w: int) -> F32:
    """Noise (h, w, 1) as strong as the fine texture of a window."""
    noise = rng.standard_normal((h, w), np.float32) * np.float32(min(6.0, 0.6 * grain_of(like)))
    return noise[..., None]


def filled(rng: np.random.Generator, window: U8, hole: Bool) -> F32:
    """The window with `hole` (h, w) closed smoothly from what is round it, with the surroundings' grain."""
    if min(window.shape[:2]) >= 3 and window.shape[0] * window.shape[1] < 1600 and rng.random() < 0.4:
        closed = cv2.inpaint(window, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(np.float32)
    else:
        closed = _pull_push(window.astype(np.float32), (~hole).astype(np.float32))
    ring = (cv2.dilate(hole.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0) & ~hole
    rough = np.abs(window[..., 1].astype(np.float32) - cv2.blur(window[..., 1], (3, 3)).astype(np.float32))
    # the median: a contour in the ring is no noise
    sigma = min(6.0, 1.6 * float(np.median(rough[ring]))) if ring.any() else 0.0
    noise = rng.standard_normal(hole.shape, np.float32)[..., None] * np.float32(sigma)
    return np.where(hole[..., None], closed + noise, window.astype(np.float32))


def _pull_push(values: F32, weight: F32) -> F32:
    """Fill where weight is 0 by the average of ever coarser neighbourhoods (Gortler et al. 1996, 'pull-push')."""
    h, w = weight.shape
    if weight.min() > 0 or min(h, w) <= 2:
        mean = (values * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6)
        return np.where(weight[..., None] > 0, values, mean.astype(np.float32))
    small = ((w + 1) // 2, (h + 1) // 2)
    coarse_weight = np.asarray(cv2.resize(weight, small, interpolation=cv2.INTER_AREA), np.float32)
    coarse = np.asarray(cv2.resize(values * weight[..., None], small, interpolation=cv2.INTER_AREA), np.float32)
    coarse /= np.maximum(coarse_weight, 1e-6)[..., None]
    below = _pull_push(coarse, np.asarray(coarse_weight > 0.01, np.float32))
    up = np.asarray(cv2.resize(below, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.where(weight[..., None] > 0, values, up)
