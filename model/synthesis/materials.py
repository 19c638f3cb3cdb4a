"""The drawing surface of rendered parts: material (albedo, height, gloss, cover), components, brushes, shading.

Units: raster px, x right, y down, integer = pixel centre. `u` is the raster length of 1/320 of the part's short side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32, U8

Colour = tuple[float, float, float]


Point = tuple[float, float]


TIN: Colour = (0.74, 0.75, 0.77)


GOLD: Colour = (0.80, 0.64, 0.32)


FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_COMPLEX)


@dataclass
class Material:
    """What a surface is made of: planes of float32, (h, w) or (h, w, 3)."""

    albedo: F32  # (h, w, 3) RGB 0..1
    height: F32  # (h, w) raster px
    gloss: F32  # (h, w) 0..1
    cover: F32  # (h, w) 0..1, 1 = part, 0 = the table shows
    grain: F32  # (h, w) factor about 1
    x0: int = 0  # raster position of element [0, 0]: a window may be of a larger material
    y0: int = 0
    dirty: list[tuple[int, int, int, int]] = field(default_factory=list)  # raster boxes painted; shared with windows

    def window(self, x0: int, y0: int, x1: int, y1: int) -> Material:
        """A view (shared memory) of the box x0, y0, x1, y1 (raster px, exclusive end), which must lie inside."""
        s = np.s_[y0 - self.y0 : y1 - self.y0, x0 - self.x0 : x1 - self.x0]
        return Material(self.albedo[s], self.height[s], self.gloss[s], self.cover[s], self.grain[s], x0, y0, self.dirty)

    def copy(self) -> Material:
        """A copy that can be painted; the grain is shared, nothing paints it."""
        return Material(
            self.albedo.copy(),
            self.height.copy(),
            self.gloss.copy(),
            self.cover.copy(),
            self.grain,
            self.x0,
            self.y0,
        )


def raster_plan(kind: PartKind) -> tuple[float, float]:
    """(supersampling, canvas as a multiple of the image): cloth continues beyond the frame, so a turned camera sees
    cloth, everything else lies on a table inside the frame."""
    return (1.15, 1.4) if kind == "weave" else (1.6, 1.0)


def blend(
    mat: Material,
    mask: NDArray,
    ox: int,
    oy: int,
    *,
    colour: Colour | F32 | None = None,
    rise: float = 0.0,
    gloss: float | None = None,
    alpha: float = 1.0,
    cover: float | None = None,
) -> None:
    """Paint through `mask` (uint8, 255 = full) whose [0, 0] lies at raster (ox, oy); clipped to `mat`."""
    h, w = mask.shape
    x0, y0 = max(ox, mat.x0), max(oy, mat.y0)
    x1, y1 = min(ox + w, mat.x0 + mat.height.shape[1]), min(oy + h, mat.y0 + mat.height.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    mat.dirty.append((x0, y0, x1, y1))
    crop = np.s_[y0 - oy : y1 - oy, x0 - ox : x1 - ox]
    dst = np.s_[y0 - mat.y0 : y1 - mat.y0, x0 - mat.x0 : x1 - mat.x0]
    a = mask[crop].astype(np.float32) * np.float32(alpha / 255)
    if colour is not None:
        target = np.asarray(colour, np.float32)
        target = target[crop] if target.ndim == 3 else target
        view = mat.albedo[dst]
        if a.size > 20_000:  # NumPy broadcasts over a last axis of 3 several times slower than this
            view += np.asarray(cv2.cvtColor(a, cv2.COLOR_GRAY2RGB)) * (target - view)
        else:
            view += a[..., None] * (target - view)
    if rise:
        mat.height[dst] += a * np.float32(rise)
    for level, plane in ((gloss, mat.gloss), (cover, mat.cover)):
        if level is not None:
            plane_view = plane[dst]
            plane_view += a * (np.float32(level) - plane_view)


def exact_mask(points: NDArray) -> tuple[U8, int, int]:
    """Coverage of one thin polygon, 8 x 8 samples a pixel: OpenCV's antialiased fill is half a pixel fat."""
    lo = np.floor(points.min(0)).astype(int) - 1
    hi = np.ceil(points.max(0)).astype(int) + 2
    w, h = (int(v) for v in hi - lo)
    fine = np.zeros((8 * h, 8 * w), np.uint8)
    cv2.fillPoly(fine, [np.floor((points - lo + 0.5) * 8).astype(np.int32)], (255,))
    return (
        np.asarray(cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA), np.uint8),
        int(lo[0]),
        int(lo[1]),
    )


def polygon_mask(points: NDArray, soft: float = 0.0) -> tuple[U8, int, int]:
    """Antialiased mask of one polygon (N, 2) raster px and its origin. Never clipped, so that painting into a window
    gives the same pixels as painting into the whole. `soft` is a blur sigma in raster px."""
    pad = int(3 * soft) + 2
    lo = np.floor(points.min(0)).astype(int) - pad
    hi = np.ceil(points.max(0)).astype(int) + pad + 1
    mask = np.zeros((hi[1] - lo[1], hi[0] - lo[0]), np.uint8)
    fixed = np.round((points - lo) * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], (255,), lineType=cv2.LINE_AA, shift=4)
    if soft > 0:
        cv2.GaussianBlur(mask, (0, 0), soft, dst=mask)
    return mask, int(lo[0]), int(lo[1])


def paint(mat: Material, points: NDArray, colour: Colour | None = None, *, soft: float = 0.0, **how: float) -> None:
    """Fill one polygon; `how` as in `blend` (rise, gloss, alpha, cover)."""
    mask, ox, oy = polygon_mask(points, soft)
    blend(mat, mask, ox, oy, colour=colour, **how)


def disc(x: float, y: float, rx: float, ry: float | None = None, n: int = 28) -> NDArray:
    """(n, 2) polygon of an ellipse."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + (rx if ry is None else ry) * np.sin(t)], 1)


def quad(c: Component, u0: float, v0: float, u1: float, v1: float) -> NDArray:
    """(4, 2) corners of a box in the component's own frame (fractions of its size, centre 0, edges +-0.5)."""
    local = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]]) * (c.w, c.h)
    return place(c, local)


def place(c: Component, local: NDArray) -> NDArray:
    """Component frame (raster px about its centre) to raster px."""
    t = np.deg2rad(c.angle)
    rot = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    return local @ rot + (c.x, c.y)


def rounded(x0: float, y0: float, x1: float, y1: float, r: float) -> NDArray:
    """Polygon of a box with round corners."""
    r = max(0.01, min(r, (x1 - x0) / 2, (y1 - y0) / 2))
    corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
    t = np.deg2rad(np.arange(0, 91, 15))
    return np.concatenate(
        [np.stack([x + r * np.cos(t + np.deg2rad(a)), y + r * np.sin(t + np.deg2rad(a))], 1) for x, y, a in corners]
    )


@lru_cache(maxsize=4096)  # the text engine is slow, and a design's texts come back in every instance
def text_mask(text: str, height: float, font: int = 0, angle: float = 0.0) -> U8:
    """Mask of a line of text whose capitals are `height` px high, turned by angle (screen clockwise), centred."""
    face = FONTS[font % len(FONTS)]
    scale = height / cv2.getTextSize("H", face, 1, 1)[0][1]
    thick = max(1, round(height / 9))
    (w, h), below = cv2.getTextSize(text, face, scale, thick)
    mask = np.zeros((h + below + 6, w + 6), np.uint8)
    cv2.putText(mask, text, (3, h + 3), face, scale, (255,), thick, cv2.LINE_AA)
    if abs(angle) < 1e-9:
        return mask
    mh, mw = mask.shape
    side = int(np.hypot(mh, mw)) + 2
    m = cv2.getRotationMatrix2D((mw / 2, mh / 2), -angle, 1.0)
    m = np.asarray(m, np.float64)
    m[:, 2] += np.array([side / 2 - mw / 2, side / 2 - mh / 2])
    return np.asarray(cv2.warpAffine(mask, m, (side, side)), np.uint8)


def write(
    mat: Material,
    text: str,
    x: float,
    y: float,
    height: float,
    angle: float = 0.0,
    font: int = 0,
    **how: float | Colour,
) -> tuple[float, float, float, float]:
    """Write text centred at (x, y); returns its box x0, y0, x1, y1."""
    mask = text_mask(text, height, font, angle)
    ox, oy = round(x - mask.shape[1] / 2), round(y - mask.shape[0] / 2)
    blend(mat, mask, ox, oy, **how)  # type: ignore[arg-type]
    return ox, oy, ox + mask.shape[1], oy + mask.shape[0]


def clouds(rng: np.random.Generator, h: int, w: int, cell: float) -> F32:
    """Smooth noise (h, w), about unit variance, with features of `cell` raster px."""
    gh, gw = max(2, round(h / cell)) + 1, max(2, round(w / cell)) + 1
    grid = rng.standard_normal((gh, gw), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def blank(h: int, w: int, colour: Colour, grain: F32, cover: float = 0.0, gloss: float = 0.1) -> Material:
    """An unpainted material of one colour."""
    albedo = np.empty((h, w, 3), np.float32)
    albedo[:] = colour
    planes = [np.full((h, w), v, np.float32) for v in (0.0, gloss, cover)]
    return Material(albedo, planes[0], planes[1], planes[2], grain)


def hsv(h: float, s: float, v: float) -> Colour:
    """Hue, saturation, value 0..1 to RGB 0..1."""
    k = (np.array([5.0, 3.0, 1.0]) + h * 6) % 6
    rgb = v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """a at t = 0, b at t = 1."""
    return tuple(x + t * (y - x) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shade(mat: Material, azimuth_deg: float) -> F32:
    """Lit surface (h, w, 3) float32 0..1: Lambert plus Blinn-Phong from a lamp at `azimuth_deg` (counter-clockwise
    from the right, in the part's frame) and 50 degrees up. A flat matt surface keeps its albedo."""
    az, el = np.deg2rad(azimuth_deg), np.deg2rad(50.0)
    lx, ly, lz = np.cos(az) * np.cos(el), -np.sin(az) * np.cos(el), np.sin(el)
    gx = np.asarray(cv2.Sobel(mat.height, cv2.CV_32F, 1, 0, scale=0.125), np.float32)
    gy = np.asarray(cv2.Sobel(mat.height, cv2.CV_32F, 0, 1, scale=0.125), np.float32)
    inv = gx * gx
    inv += gy * gy
    inv += 1
    np.sqrt(inv, out=inv)
    np.reciprocal(inv, out=inv)
    half = np.array([lx, ly, lz + 1]) / np.sqrt(2 * (1 + lz))
    spec = np.float32(half[2]) - np.float32(half[0]) * gx - np.float32(half[1]) * gy
    spec *= inv
    np.maximum(spec, 0, out=spec)
    for _ in range(5):  # power 32
        np.square(spec, out=spec)
    spec *= mat.gloss
    spec *= np.float32(0.8)
    lit = np.float32(1) - np.float32(lx / lz) * gx - np.float32(ly / lz) * gy
    lit *= inv
    np.clip(lit, 0, 2, out=lit)
    lit *= np.float32(0.62)
    lit += np.float32(0.38)
    lit *= mat.grain
    # OpenCV here: NumPy broadcasts over a last axis of 3 several times slower
    out = cv2.multiply(mat.albedo, cv2.cvtColor(lit, cv2.COLOR_GRAY2RGB))
    out = cv2.add(out, cv2.cvtColor(spec, cv2.COLOR_GRAY2RGB), dst=out)
    return np.asarray(np.clip(out, 0, 1, out=out), np.float32)


PartKind = Literal["circuit", "label", "weave", "moulded", "bottle"]


PART_KINDS: tuple[PartKind, ...] = ("circuit", "label", "weave", "moulded", "bottle")


@dataclass(frozen=True)
class Component:
    """Something mounted at a design position. Raster px."""

    kind: str
    x: float  # centre
    y: float
    w: float  # size
    h: float
    angle: float = 0.0  # degrees, clockwise on the screen
    look: int = 0  # picks colour, print and pin count
    colour: Colour = (0.5, 0.5, 0.5)

    @property
    def reach(self) -> float:
        """Radius (raster px) outside of which it paints nothing."""
        return float(0.75 * np.hypot(self.w, self.h)) + 6
