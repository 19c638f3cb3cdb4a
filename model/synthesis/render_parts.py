"""Good parts, drawn: circuit, label, weave, moulded shape, bottle.

A part is a *material* (albedo, height, gloss, cover) on a supersampled raster plus a list of components that are
painted on it one by one, so that a missing or a wrong component is a change of the list and not a patch of paint. The
design seed fixes the product, the instance seed the natural variation between good samples of it. Knows nothing about
defects, pose, camera or light colour (render_defects.py, render.py).

Units: raster px, x right, y down, integer = pixel centre. `u` is the raster length of 1/320 of the part's short side.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Colour = tuple[float, float, float]
Point = tuple[float, float]
PartKind = Literal["circuit", "label", "weave", "moulded", "bottle"]

PART_KINDS: tuple[PartKind, ...] = ("circuit", "label", "weave", "moulded", "bottle")

TIN: Colour = (0.74, 0.75, 0.77)
GOLD: Colour = (0.80, 0.64, 0.32)
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_COMPLEX)


@dataclass
class Material:
    """What the surface is made of. albedo (h, w, 3) RGB 0..1, height (h, w) raster px, gloss (h, w) 0..1, cover (h,
    w) 0..1 (1 = part, 0 = one sees the table), grain (h, w) factor about 1; all float32. `x0, y0` is the raster
    position of element [0, 0] (a window of a larger material)."""

    albedo: F32
    height: F32
    gloss: F32
    cover: F32
    grain: F32
    x0: int = 0
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


@dataclass(frozen=True)
class Component:
    """Something mounted at a design position: centre and size in raster px, angle in degrees (screen clockwise).
    `look` picks colour, print and pin count."""

    kind: str
    x: float
    y: float
    w: float
    h: float
    angle: float = 0.0
    look: int = 0
    colour: Colour = (0.5, 0.5, 0.5)

    @property
    def reach(self) -> float:
        """Radius (raster px) outside of which it paints nothing."""
        return float(0.75 * np.hypot(self.w, self.h)) + 6


@dataclass
class Part:
    """A good part before the camera. `base` is painted without components; `components` are in painting order,
    `spots` are empty design positions; the rest are places where a type of defect can sit (raster px)."""

    kind: PartKind
    u: float
    base: Material
    background: Colour
    components: list[Component] = field(default_factory=list)
    spots: list[Component] = field(default_factory=list)
    pin_pairs: list[tuple[Point, Point]] = field(default_factory=list)
    pads: list[tuple[Point, float]] = field(default_factory=list)
    prints: list[tuple[float, float, float, float]] = field(default_factory=list)
    paper: Colour = (1.0, 1.0, 1.0)
    yarns: tuple[F32, F32] | None = None  # centres of warp yarns (x) and weft yarns (y), undisplaced
    displacement: tuple[F32, F32] | None = None  # (h, w) dx, dy of the cloth


def raster_plan(kind: PartKind) -> tuple[float, float]:
    """(supersampling, canvas as a multiple of the image): cloth goes on beyond the frame so that a turned camera sees
    cloth, everything else lies on a table inside the frame."""
    return (1.15, 1.4) if kind == "weave" else (1.6, 1.0)


# --- painting ---


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
    face = _FONTS[font % len(_FONTS)]
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


# --- components ---


def _shadow(mat: Material, c: Component, strength: float = 0.5) -> None:
    grown = quad(c, -0.5, -0.5, 0.5, 0.5) + 0.06 * min(c.w, c.h)
    paint(mat, grown, (0.0, 0.0, 0.0), soft=max(1.0, 0.07 * min(c.w, c.h)), alpha=strength)


def _chip(mat: Material, c: Component) -> None:
    """Resistor, capacitor or LED: two metal ends and a body."""
    _shadow(mat, c)
    paint(mat, quad(c, -0.5, -0.5, 0.5, 0.5), TIN, rise=2.0, gloss=0.7)
    paint(mat, quad(c, -0.28, -0.48, 0.28, 0.48), c.colour, rise=0.8, gloss=0.25)
    if c.look % 3 == 0:
        write(
            mat,
            ("103", "472", "220", "1R0")[c.look % 4],
            c.x,
            c.y,
            0.36 * c.h,
            c.angle,
            colour=(0.9, 0.9, 0.88),
        )


def pin_offsets(c: Component) -> NDArray:
    """(2n, 2) pin centres of an IC or connector in its own frame (raster px)."""
    n = 4 + c.look % 5
    at = (np.arange(n) + 0.5) / n - 0.5
    sides = (-0.46, 0.46)
    return np.array([(t * c.w * 0.94, s * c.h) for s in sides for t in at])


def _ic(mat: Material, c: Component) -> None:
    n = len(pin_offsets(c)) // 2
    half_w, half_h = 0.5 * 0.94 * c.w / n * 0.46, 0.075 * c.h
    for px, py in pin_offsets(c):
        box = np.array([(-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h)])
        corners = np.add(box, (px, py))
        paint(mat, place(c, corners), TIN, rise=1.0, gloss=0.8)
    body = Component("", c.x, c.y, c.w, c.h * 0.8, c.angle)
    _shadow(mat, body, 0.6)
    paint(mat, quad(body, -0.5, -0.5, 0.5, 0.5), c.colour, rise=4.0, gloss=0.2)
    dot_x, dot_y = place(c, np.array([(-0.4 * c.w, 0.24 * c.h)]))[0]
    paint(
        mat,
        disc(dot_x, dot_y, 0.04 * c.w),
        mix(c.colour, (0, 0, 0), 0.6),
        rise=-1.0,
    )
    name = ("RD", "LM", "AT", "TPS", "NE")[c.look % 5] + str(100 + (c.look * 37) % 900)
    write(mat, name, c.x, c.y, 0.15 * c.h, c.angle, c.look, colour=mix(c.colour, (0.85, 0.85, 0.85), 0.75))


def _can(mat: Material, c: Component) -> None:
    """Electrolytic capacitor from above."""
    r = 0.5 * min(c.w, c.h)
    _shadow(mat, c, 0.4)
    paint(mat, quad(c, -0.5, -0.5, 0.5, 0.5), (0.12, 0.12, 0.13), rise=1.0)
    paint(mat, disc(c.x, c.y, 0.92 * r), (0.72, 0.73, 0.75), rise=5.0, gloss=0.6, soft=1.0)
    t = np.linspace(-0.9, 0.9, 12)
    paint(mat, place(c, 0.86 * r * np.stack([np.cos(t), np.sin(t)], 1)), c.colour, gloss=0.2)
    write(
        mat,
        ("47", "100", "220", "10")[c.look % 4],
        c.x - 0.1 * r,
        c.y,
        0.34 * r,
        c.angle,
        colour=(0.2, 0.2, 0.22),
    )


def _crystal(mat: Material, c: Component) -> None:
    _shadow(mat, c)
    pts = rounded(-c.w / 2, -c.h / 2, c.w / 2, c.h / 2, 0.45 * c.h)
    paint(mat, place(c, pts), (0.70, 0.70, 0.69), rise=3.0, gloss=0.7)
    paint(mat, place(c, pts * 0.82), (0.78, 0.78, 0.77), rise=1.0, gloss=0.8)
    write(mat, ("8.000", "16.00", "25.00")[c.look % 3], c.x, c.y, 0.26 * c.h, c.angle, colour=(0.25, 0.25, 0.27))


def _connector(mat: Material, c: Component) -> None:
    _shadow(mat, c)
    paint(mat, quad(c, -0.5, -0.5, 0.5, 0.5), c.colour, rise=4.0, gloss=0.2)
    n = 3 + c.look % 5
    for i in range(n):
        t0 = (i + 0.22) / n - 0.5
        t1 = (i + 0.78) / n - 0.5
        paint(mat, quad(c, t0, -0.3, t1, 0.3), mix(c.colour, (0, 0, 0), 0.7), rise=-2.0, gloss=0.0)
        paint(mat, quad(c, t0 + 0.18 / n, -0.12, t1 - 0.18 / n, 0.12), GOLD, rise=1.5, gloss=0.9)


def _screw(mat: Material, c: Component) -> None:
    r = 0.5 * c.w
    paint(mat, disc(c.x + 0.1 * r, c.y + 0.1 * r, 1.1 * r), (0, 0, 0), soft=0.15 * r, alpha=0.5)
    paint(mat, disc(c.x, c.y, r), c.colour, rise=3.0, gloss=0.6, soft=0.8)
    slots = ((-0.62, -0.12, 0.62, 0.12), (-0.12, -0.62, 0.12, 0.62))
    if c.look % 3 == 2:  # hexagon socket
        t = np.arange(6) * np.pi / 3
        paint(
            mat,
            place(c, 0.55 * r * np.stack([np.cos(t), np.sin(t)], 1)),
            (0.05, 0.05, 0.05),
            rise=-2.0,
            gloss=0.0,
        )
        return
    for u0, v0, u1, v1 in slots[: 1 + c.look % 3]:
        local = r * np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])
        paint(mat, place(c, local), (0.08, 0.08, 0.08), rise=-1.6, gloss=0.1)


def _stud(mat: Material, c: Component) -> None:
    r = 0.5 * c.w
    paint(mat, disc(c.x + 0.15 * r, c.y + 0.15 * r, 1.1 * r), (0, 0, 0), soft=0.2 * r, alpha=0.35)
    paint(mat, disc(c.x, c.y, r), c.colour, rise=0.35 * r, gloss=0.4, soft=max(0.8, 0.06 * r))
    if c.look % 2:
        paint(mat, disc(c.x, c.y, 0.55 * r), mix(c.colour, (0, 0, 0), 0.25), rise=-0.2 * r, soft=0.8)


def _cap(mat: Material, c: Component) -> None:
    """Bottle cap from the side, with ribs."""
    paint(
        mat,
        rounded(c.x - c.w / 2, c.y - c.h / 2, c.x + c.w / 2, c.y + c.h / 2, 0.14 * c.h),
        c.colour,
        gloss=0.3,
        cover=1.0,
    )
    ribs = 9 + c.look % 6
    for i in range(ribs):
        t = np.sin((i / (ribs - 1) - 0.5) * 2.8) / 2
        paint(
            mat,
            quad(c, 0.96 * t - 0.012, -0.3, 0.96 * t + 0.012, 0.5),
            mix(c.colour, (0, 0, 0), 0.45),
            rise=-0.5,
        )
    paint(mat, quad(c, -0.42, -0.5, -0.3, 0.5), (1, 1, 1), soft=0.03 * c.w, alpha=0.4)
    paint(mat, quad(c, 0.36, -0.5, 0.5, 0.5), (0, 0, 0), soft=0.05 * c.w, alpha=0.35)


def _sticker(mat: Material, c: Component) -> None:
    """Bottle label: band, name, small print."""
    ink = hsv((c.look * 0.618) % 1, 0.75, 0.45)
    paint(mat, quad(c, -0.5, -0.5, 0.5, 0.5), c.colour, rise=0.8, gloss=0.15)
    paint(mat, quad(c, -0.5, -0.44, 0.5, -0.3), ink, gloss=0.2)
    paint(mat, quad(c, -0.5, 0.36, 0.5, 0.43), ink, gloss=0.2)
    x, y = place(c, np.array([(0.0, -0.08 * c.h)]))[0]
    write(mat, ("PURA", "VITA", "OXO", "NOVA", "FIZZ")[c.look % 5], x, y, 0.17 * c.h, c.angle, 1, colour=ink)
    if c.look % 2:
        x, y = place(c, np.array([(0.0, 0.2 * c.h)]))[0]
        write(mat, "500 ml  natural", x, y, 0.06 * c.h, c.angle, colour=(0.2, 0.2, 0.2))
    else:
        x, y = place(c, np.array([(0.0, 0.19 * c.h)]))[0]
        paint(mat, disc(x, y, 0.11 * c.h), mix(ink, (1, 0.8, 0.2), 0.5))


def _liquid(mat: Material, c: Component) -> None:
    """Liquid seen through the wall, from the level (top of the component's box) down. `look` & 1: foam."""
    top, bottom, half = c.y - c.h / 2, c.y + c.h / 2, c.w / 2
    rows = np.arange(mat.y0, mat.y0 + mat.height.shape[0], dtype=np.float32)
    cols = np.arange(mat.x0, mat.x0 + mat.height.shape[1], dtype=np.float32)
    ys = np.flatnonzero((rows > top - 0.12 * c.w) & (rows < bottom))
    xs = np.flatnonzero(np.abs(cols - c.x) <= half)
    if len(ys) == 0 or len(xs) == 0:
        return
    s = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    d = rows[ys] - np.float32(top)
    inside = (mat.cover[s] > 0.5).astype(np.float32)
    filled = np.clip(d + 0.5, 0, 1)[:, None] * inside
    view = mat.albedo[s]
    view *= 1 - filled[..., None] * (1 - np.asarray(c.colour, np.float32))
    # the meniscus: a bright line over a dark one; foam on some drinks
    line = 0.22 * np.exp(-np.square(d / (0.012 * c.w + 0.7)))
    line -= 0.2 * np.exp(-np.square((d - 0.03 * c.w) / (0.015 * c.w + 0.7)))
    view += (line[:, None] * inside)[..., None]
    if c.look & 1:
        foam = 0.55 * np.clip(1 - np.abs(d + 0.05 * c.w) / (0.05 * c.w), 0, 1)[:, None] * inside
        view += foam[..., None] * (0.95 - view)
    np.clip(view, 0, 1, out=view)


_PAINTERS: dict[str, Callable[[Material, Component], None]] = {
    "chip": _chip,
    "ic": _ic,
    "can": _can,
    "crystal": _crystal,
    "connector": _connector,
    "screw": _screw,
    "stud": _stud,
    "cap": _cap,
    "sticker": _sticker,
    "liquid": _liquid,
}


def paint_components(mat: Material, components: list[Component]) -> None:
    """Paint in order; components that do not reach the window are skipped."""
    h, w = mat.height.shape
    for c in components:
        r = c.reach
        if c.x + r < mat.x0 or c.y + r < mat.y0 or c.x - r > mat.x0 + w or c.y - r > mat.y0 + h:
            continue
        _PAINTERS[c.kind](mat, c)


# --- parts ---

_Rng = np.random.Generator


def _table(design: _Rng, part: Colour) -> Colour:
    """A background that differs from the part: dark tray, grey belt, light box."""
    luma = float(np.mean(part))
    choices = [v for v in (0.05, 0.18, 0.42, 0.68, 0.9) if abs(v - luma) > 0.22]
    v = float(design.choice(choices))
    return hsv(float(design.random()), float(design.uniform(0, 0.12)), v)


def _grain(rng: _Rng, h: int, w: int, fine: float, coarse: float, cell: float) -> F32:
    """Factor about 1: fine speckle and slow clouds."""
    out = clouds(rng, h, w, cell) * np.float32(coarse)
    speck = rng.standard_normal((h // 2 + 1, w // 2 + 1), dtype=np.float32)
    out += cv2.resize(speck, (w, h), interpolation=cv2.INTER_LINEAR) * np.float32(fine)
    out += 1
    return out


def _jitter(inst: _Rng, c: Component, u: float, shift: float = 0.35, turn: float = 0.6) -> Component:
    dx, dy = inst.normal(0, shift * u, 2)
    return Component(c.kind, c.x + dx, c.y + dy, c.w, c.h, c.angle + inst.normal(0, turn), c.look, c.colour)


_FOOTPRINTS: dict[str, tuple[tuple[float, float], ...]] = {  # kind -> sizes (w, h) in u
    "ic": ((62, 46), (44, 40), (78, 40), (36, 34)),
    "connector": ((70, 20), (48, 18)),
    "can": ((34, 34), (26, 26)),
    "crystal": ((34, 14),),
    "chip": ((17, 9), (13, 7), (21, 12), (10, 6)),
}
_BODIES: tuple[Colour, ...] = (
    (0.07, 0.07, 0.08),
    (0.62, 0.48, 0.33),
    (0.05, 0.06, 0.10),
    (0.85, 0.83, 0.76),
    (0.55, 0.22, 0.12),
)


def random_component(rng: _Rng, kind: str, x: float, y: float, u: float, angle: float) -> Component:
    """An electronic component of a kind (`_FOOTPRINTS`) with a random size and look."""
    sizes = _FOOTPRINTS[kind]
    w, h = sizes[int(rng.integers(len(sizes)))]
    colour = {
        "ic": (0.09, 0.09, 0.10),
        "connector": ((0.92, 0.9, 0.84), (0.08, 0.08, 0.09), (0.1, 0.25, 0.5))[int(rng.integers(3))],
        "can": ((0.1, 0.1, 0.12), (0.1, 0.15, 0.45))[int(rng.integers(2))],
        "crystal": (0.7, 0.7, 0.7),
        "chip": _BODIES[int(rng.integers(len(_BODIES)))],
    }[kind]
    return Component(kind, x, y, w * u, h * u, angle, int(rng.integers(1000)), colour)


def _pads_of(c: Component) -> list[NDArray]:
    if c.kind in ("chip", "crystal"):
        return [quad(c, -0.62, -0.56, -0.25, 0.56), quad(c, 0.25, -0.56, 0.62, 0.56)]
    if c.kind == "can":
        return [quad(c, -0.62, -0.15, -0.2, 0.15), quad(c, 0.2, -0.15, 0.62, 0.15)]
    if c.kind == "ic":
        n = len(pin_offsets(c)) // 2
        hw, hh = 0.5 * 0.94 * c.w / n * 0.62, 0.12 * c.h
        box = np.array([(-hw, -hh), (hw, -hh), (hw, hh), (-hw, hh)])
        return [place(c, np.add(box, (px, py * 1.06))) for px, py in pin_offsets(c)]
    return [quad(c, -0.56, -0.3, -0.44, 0.3), quad(c, 0.44, -0.3, 0.56, 0.3)]


def _layout(design: _Rng, w: int, h: int, u: float, box: tuple[float, float, float, float]) -> list[Component]:
    """Non-overlapping positions, large kinds first."""
    wanted = ["ic"] * int(design.integers(1, 4)) + ["connector"] * int(design.integers(1, 3))
    wanted += ["can"] * int(design.integers(0, 3)) + ["crystal"] * int(design.integers(0, 2))
    wanted += ["chip"] * int(max(6, design.integers(10, 24) * w * h / (min(w, h) ** 2)))
    placed: list[Component] = []
    x0, y0, x1, y1 = box
    for kind in wanted:
        for _ in range(30):
            angle = float(90 * design.integers(0, 2))
            c = random_component(design, kind, 0, 0, u, angle)
            ew, eh = (c.w, c.h) if angle == 0 else (c.h, c.w)
            lo_x, hi_x, lo_y, hi_y = x0 + 0.7 * ew, x1 - 0.7 * ew, y0 + 0.7 * eh, y1 - 0.7 * eh
            if lo_x >= hi_x or lo_y >= hi_y:
                continue
            x, y = float(design.uniform(lo_x, hi_x)), float(design.uniform(lo_y, hi_y))
            gap = 7 * u
            clear = True
            for p in placed:
                pw, ph = (p.w, p.h) if p.angle == 0 else (p.h, p.w)
                if abs(p.x - x) < 0.58 * (pw + ew) + gap and abs(p.y - y) < 0.58 * (ph + eh) + gap:
                    clear = False
                    break
            if clear:
                placed.append(Component(kind, x, y, c.w, c.h, angle, c.look, c.colour))
                break
    return placed


def _circuit(design: _Rng, inst: _Rng, h: int, w: int, u: float) -> Part:
    masks = (
        (0.03, 0.30, 0.14),
        (0.04, 0.14, 0.42),
        (0.50, 0.06, 0.06),
        (0.06, 0.06, 0.07),
        (0.88, 0.88, 0.86),
    )
    colour = masks[int(design.choice(5, p=[0.4, 0.2, 0.15, 0.15, 0.1]))]
    copper = mix(colour, (0.55, 0.62, 0.35), 0.22) if sum(colour) < 2 else mix(colour, (0.6, 0.55, 0.4), 0.25)
    silk = (0.93, 0.93, 0.9) if sum(colour) < 2 else (0.1, 0.1, 0.1)
    x0, y0 = (float(v) * u for v in design.uniform(10, 26, 2))
    x1, y1 = w - 1 - x0, h - 1 - y0
    mat = blank(h, w, colour, _grain(inst, h, w, 0.018, 0.015, 60 * u), gloss=0.22)
    background = _table(design, colour)
    paint(mat, rounded(x0, y0, x1, y1, float(design.uniform(1, 14)) * u), cover=1.0, rise=3.0)

    parts = _layout(design, w, h, u, (x0 + 8 * u, y0 + 8 * u, x1 - 8 * u, y1 - 8 * u))
    # tracks run under everything: one mask, one blend
    tracks = np.zeros((h, w), np.uint8)
    pads = [p for c in parts for p in _pads_of(c)]
    ends = np.array([p.mean(0) for p in pads])
    for _ in range(int(0.8 * len(ends))):
        a, b = ends[design.integers(len(ends), size=2)]
        run = b - a
        knee = a + np.sign(run) * min(abs(run[0]), abs(run[1]))
        width = max(1, round(float(design.choice([1.4, 2.0, 3.2])) * u))
        cv2.polylines(tracks, [np.round(np.array([a, knee, b])).astype(np.int32)], False, (255,), width, cv2.LINE_AA)
    blend(mat, tracks, 0, 0, colour=copper, rise=0.9)
    for p in ends[:: int(design.integers(3, 6))]:
        via = p + design.uniform(-26, 26, 2) * u
        if x0 + 6 * u < via[0] < x1 - 6 * u and y0 + 6 * u < via[1] < y1 - 6 * u:
            paint(mat, disc(via[0], via[1], 3.2 * u), GOLD, gloss=0.6, rise=0.5)
            paint(mat, disc(via[0], via[1], 1.5 * u), (0.03, 0.03, 0.03), rise=-1.5, gloss=0.0)
    marks: list[tuple[float, float, float, float]] = []
    silk_mask = np.zeros((h, w), np.uint8)
    for i, c in enumerate(parts):
        frame = quad(c, -0.66, -0.64, 0.66, 0.64)
        cv2.polylines(
            silk_mask, [np.round(frame * 16).astype(np.int32)], True, (255,), max(1, round(u)), cv2.LINE_AA, 4
        )
        mark = f"{ {'ic': 'U', 'connector': 'J', 'can': 'C', 'crystal': 'X', 'chip': 'R'}[c.kind] }{i + 1}"
        ey = 0.66 * (c.h if c.angle == 0 else c.w) + 5 * u
        marks.append(write(mat, mark, c.x, c.y - ey, 5.0 * u, colour=silk, alpha=0.85, gloss=0.05))
    plating = GOLD if design.random() < 0.35 else TIN
    blend(mat, silk_mask, 0, 0, colour=silk, alpha=0.8, gloss=0.05)
    pad_mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(pad_mask, [np.round(p * 16).astype(np.int32) for p in pads], (255,), cv2.LINE_AA, 4)
    plated = mix(plating, (0.6, 0.6, 0.6), float(inst.uniform(0, 0.15)))
    blend(mat, pad_mask, 0, 0, colour=plated, rise=0.8, gloss=0.75)
    holes = [(x0 + 12 * u, y0 + 12 * u), (x1 - 12 * u, y1 - 12 * u), (x1 - 12 * u, y0 + 12 * u)]
    for hx, hy in holes[: int(design.integers(0, 4))]:
        if all(abs(c.x - hx) > 0.8 * max(c.w, c.h) or abs(c.y - hy) > 0.8 * max(c.w, c.h) for c in parts):
            paint(mat, disc(hx, hy, 8 * u), GOLD, gloss=0.5, rise=0.4)
            paint(mat, disc(hx, hy, 5 * u), cover=0.0)
    title = f"RD-{int(design.integers(100, 999))} REV {'ABCDE'[int(design.integers(5))]}"
    title_box = write(
        mat,
        title,
        float(w / 2 + design.uniform(-40, 40) * u),
        y1 - 7 * u,
        7 * u,
        0,
        int(design.integers(4)),
        colour=silk,
        alpha=0.9,
    )
    marks.append(title_box)

    small = [c for c in parts if c.kind == "chip"]
    spots = small[:: max(3, len(small) // 3)][:3]
    part = Part("circuit", u, mat, background, spots=spots, prints=marks, paper=colour)
    part.components = [_jitter(inst, c, u) for c in parts if c not in spots]
    for c in parts:
        if c.kind == "ic":
            pins = place(c, pin_offsets(c) * (1, 1.12))
            n = len(pins) // 2
            tuples = [(float(x), float(y)) for x, y in pins]
            part.pin_pairs += [(tuples[i], tuples[i + 1]) for i in range(2 * n - 1) if i != n - 1]
            part.pads += [(p, 0.5 * 0.94 * c.w / n * 0.5) for p in tuples]
        elif c in spots:
            part.pads += [((float(p.mean(0)[0]), float(p.mean(0)[1])), 0.3 * c.h) for p in _pads_of(c)]
    if not part.pin_pairs:  # a design without room for an IC still has neighbouring pads
        near = _pads_of(parts[0])
        a, b = near[0].mean(0), near[1].mean(0)
        part.pin_pairs = [((float(a[0]), float(a[1])), (float(b[0]), float(b[1])))]
    return part


_WORDS = [
    "pure",
    "natural",
    "organic",
    "fresh",
    "daily",
    "strong",
    "classic",
    "light",
    "original",
    "mild",
    "extra",
    "premium",
    "rapid",
    "quality",
]


def _label(design: _Rng, inst: _Rng, h: int, w: int, u: float) -> Part:
    dark = design.random() < 0.25
    hue = float(design.random())
    paper = hsv(hue, 0.35, 0.2) if dark else hsv(hue, float(design.uniform(0, 0.14)), float(design.uniform(0.86, 0.97)))
    ink = (0.92, 0.9, 0.82) if dark else hsv(float(design.random()), 0.6, 0.16)
    accent = hsv(float(design.random()), float(design.uniform(0.5, 0.9)), float(design.uniform(0.45, 0.85)))
    mat = blank(h, w, paper, _grain(inst, h, w, 0.012, 0.012, 80 * u), gloss=float(design.choice([0.05, 0.3])))
    x0, y0 = (float(v) * u for v in design.uniform(8, 30, 2))
    x1, y1 = w - 1 - x0, h - 1 - y0
    paint(mat, rounded(x0, y0, x1, y1, float(design.choice([0, 8, 24])) * u), cover=1.0, rise=1.2)
    part = Part("label", u, mat, _table(design, paper), paper=paper)
    # each print pass sits a little off its place on each sheet, and its ink is a little thicker or thinner
    off = {name: inst.normal(0, 0.45 * u, 2) for name in ("ink", "accent")}
    density = {name: float(inst.uniform(0.9, 1.0)) for name in off}

    def ink_box(px: NDArray, colour: Colour, layer: str) -> None:
        paint(mat, px + off[layer], colour, alpha=density[layer])

    bw, bh = x1 - x0, y1 - y0
    top = design.random() < 0.7
    banner = (y0, y0 + 0.2 * bh) if top else (y1 - 0.2 * bh, y1)
    ink_box(np.array([(x0, banner[0]), (x1, banner[0]), (x1, banner[1]), (x0, banner[1])]), accent, "accent")
    name = "".join(design.choice(list("AEIOULNRSTKM"), size=int(design.integers(4, 7))))
    size = min(0.105 * bh, 0.75 * bw / len(name))
    by = (banner[0] + banner[1]) / 2
    part.prints.append(
        write(
            mat,
            name,
            w / 2 + off["ink"][0],
            by + off["ink"][1],
            size,
            0,
            int(design.integers(4)),
            colour=(0.97, 0.97, 0.95) if sum(accent) < 1.7 else (0.08, 0.08, 0.1),
            alpha=density["ink"],
        )
    )
    # the rest in a grid of cells: logo, text, codes
    gy0, gy1 = (banner[1] + 6 * u, y1 - 6 * u) if top else (y0 + 6 * u, banner[0] - 6 * u)
    rows, cols = 2 + int(gy1 - gy0 > 170 * u), 2
    cells = [
        (
            x0 + 10 * u + c * (bw - 20 * u) / cols,
            gy0 + r * (gy1 - gy0) / rows,
            (bw - 20 * u) / cols,
            (gy1 - gy0) / rows,
        )
        for r in range(rows)
        for c in range(cols)
    ]
    kinds = ["barcode", "logo", *design.choice(["text", "text", "grid", "table"], size=len(cells) - 2)]
    for (cx, cy, cw, ch), what in zip(cells, design.permutation(kinds), strict=True):
        px, py = cx + 0.06 * cw, cy + 0.06 * ch
        pw, ph = 0.86 * cw, 0.86 * ch
        ox, oy = off["ink"]
        if what == "barcode":
            ph = min(ph, 0.6 * pw)
            edges = np.cumsum(design.choice([1.0, 1.0, 2.0, 3.0], size=61))
            edges = px + edges / edges[-1] * pw
            for a, b in zip(edges[0::2], edges[1::2], strict=False):
                ink_box(np.array([(a, py), (b, py), (b, py + 0.82 * ph), (a, py + 0.82 * ph)]), ink, "ink")
            digits = "".join(str(d) for d in design.integers(0, 10, 12))
            write(mat, digits, px + pw / 2 + ox, py + 0.93 * ph + oy, min(6 * u, pw / 11), colour=ink)
        elif what == "logo":
            mx, my, r = px + pw / 2, py + ph / 2, 0.42 * min(pw, ph)
            n = int(design.integers(3, 8))
            t = np.arange(2 * n) * np.pi / n + float(design.uniform(0, 6))
            star = (
                np.stack([np.cos(t), np.sin(t)], 1)
                * np.where(np.arange(2 * n) % 2, design.uniform(0.4, 0.9), 1.0)[:, None]
            )
            ink_box(disc(mx, my, r), accent, "accent")
            ink_box((mx, my) + star * 0.8 * r, paper, "ink")
            ink_box(disc(mx, my, 0.25 * r), ink, "ink")
            px, py, pw, ph = mx - r, my - r, 2 * r, 2 * r
        elif what == "grid":
            side = min(pw, ph)
            n = 15
            bits = (design.random((n, n)) < 0.5).astype(np.uint8) * 255
            bits[:5, :5] = bits[:5, -5:] = bits[-5:, :5] = 255
            bits[1:4, 1:4] = bits[1:4, -4:-1] = bits[-4:-1, 1:4] = 0
            mask = np.asarray(cv2.resize(bits, (round(side), round(side)), interpolation=cv2.INTER_NEAREST))
            blend(mat, mask, round(px + ox), round(py + oy), colour=ink, alpha=density["ink"])
            pw = ph = side
        else:
            lines = int(design.integers(4, 8))
            lh = ph / lines
            for i in range(lines):
                words = " ".join(design.choice(_WORDS, size=3))
                size = min(0.5 * lh, 7.5 * u)
                mask = text_mask(words, size, int(what == "table") * 2)[:, : int(pw)]
                blend(mat, mask, round(px + ox), round(py + i * lh + oy), colour=ink, alpha=density["ink"])
                if what == "table":
                    yy = py + (i + 0.9) * lh
                    ink_box(
                        np.array([(px, yy), (px + pw, yy), (px + pw, yy + 0.8 * u), (px, yy + 0.8 * u)]),
                        ink,
                        "ink",
                    )
        part.prints.append((px, py, px + pw, py + ph))
    return part


# over/under pattern per weave: 1 = warp (vertical yarn) on top
_WEAVES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((1, 0), (0, 1)),  # plain
    ((1, 1, 0), (0, 1, 1), (1, 0, 1)),  # twill 2/1
    ((1, 1, 0, 0), (0, 1, 1, 0), (0, 0, 1, 1), (1, 0, 0, 1)),  # twill 2/2
    ((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1), (0, 0, 1, 1)),  # basket
    ((1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),  # satin
)


def _weave(design: _Rng, inst: _Rng, h: int, w: int, u: float) -> Part:
    pattern = np.array(_WEAVES[int(design.integers(len(_WEAVES)))], bool)
    pitch_x, pitch_y = (float(v) * u for v in design.uniform(6.0, 13.0) * design.uniform(0.85, 1.15, 2))
    hue, value = float(design.random()), float(design.uniform(0.15, 0.9))
    warp_colour = hsv(hue, float(design.uniform(0, 0.6)), value)
    weft_colour = mix(
        warp_colour,
        hsv(float(design.random()), 0.5, float(design.uniform(0.2, 0.9))),
        float(design.choice([0.05, 0.25, 0.8])),
    )
    nx, ny = int(w / pitch_x) + 3, int(h / pitch_y) + 3
    stripe = max(2, int(design.integers(3, 14)))
    striped = design.random() < 0.35

    def yarns(n: int, pitch: float, length: int) -> tuple[NDArray, NDArray, F32]:
        """Index and position -1..1 across the yarn for each pixel, and centres; yarns are unevenly spaced."""
        edges = np.cumsum(np.maximum(pitch * (1 + 0.06 * inst.standard_normal(n + 1)), 0.5 * pitch))
        edges -= 1.5 * pitch
        at = np.arange(length)
        index = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, n - 1)
        lo, hi = edges[index], edges[index + 1]
        return (
            index,
            (2 * (at - lo) / (hi - lo) - 1).astype(np.float32),
            ((edges[1:] + edges[:-1]) / 2).astype(np.float32),
        )

    ix, px, cx = yarns(nx, pitch_x, w)
    iy, py, cy = yarns(ny, pitch_y, h)
    over = pattern[iy[:, None] % pattern.shape[0], ix[None] % pattern.shape[1]]
    # round yarns that dive under their crossings: high in mid float, low at its ends
    round_x = np.sqrt(np.clip(1 - 0.9 * px**2, 0, 1)).astype(np.float32)[None]
    round_y = np.sqrt(np.clip(1 - 0.9 * py**2, 0, 1)).astype(np.float32)[:, None]
    crown_y = np.sqrt(np.clip(1 - 0.55 * py**2, 0, 1)).astype(np.float32)[:, None]
    crown_x = np.sqrt(np.clip(1 - 0.55 * px**2, 0, 1)).astype(np.float32)[None]
    top = np.where(over, round_x * crown_y, round_y * crown_x).astype(np.float32)
    height = top * np.float32(0.33 * min(pitch_x, pitch_y))
    # per yarn colour: dye and twist differ a little from yarn to yarn, and between goods
    tone_x = (1 + 0.045 * inst.standard_normal(nx)).astype(np.float32)[ix]
    tone_y = (1 + 0.045 * inst.standard_normal(ny)).astype(np.float32)[iy]
    if striped:
        tone_x = tone_x * np.where((ix // stripe) % 2, 0.62, 1.0).astype(np.float32)
    tone = np.where(over, tone_x[None], tone_y[:, None]) * (0.45 + 0.55 * top)
    albedo = np.where(over[..., None], np.asarray(warp_colour, np.float32), np.asarray(weft_colour, np.float32))
    albedo *= tone[..., None]
    # slubs: clouds stretched along the yarns
    fibre = cv2.resize(inst.standard_normal((h // 10 + 2, w // 2 + 1), dtype=np.float32), (w, h))
    across = cv2.resize(inst.standard_normal((h // 2 + 1, w // 10 + 2), dtype=np.float32), (w, h))
    grain = np.where(over, fibre, across).astype(np.float32) * np.float32(0.07)
    grain += clouds(inst, h, w, 110 * u) * np.float32(0.03)
    grain += 1
    # the cloth is never laid straight
    amp = 0.16 * min(pitch_x, pitch_y)
    dx, dy = clouds(inst, h, w, 55 * u) * np.float32(amp), clouds(inst, h, w, 55 * u) * np.float32(amp)
    map_x = np.arange(w, dtype=np.float32)[None] - dx
    map_y = np.arange(h, dtype=np.float32)[:, None] - dy
    stacked = np.dstack([albedo, height])
    moved = cv2.remap(stacked, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    planes = [np.full((h, w), v, np.float32) for v in (0.06, 1.0)]
    mat = Material(
        np.ascontiguousarray(moved[..., :3], np.float32),
        np.ascontiguousarray(moved[..., 3], np.float32),
        planes[0],
        planes[1],
        grain,
    )
    part = Part("weave", u, mat, (0.03, 0.03, 0.03))
    part.yarns, part.displacement = (cx, cy), (dx, dy)
    return part


def _moulded(design: _Rng, inst: _Rng, h: int, w: int, u: float) -> Part:
    metal = design.random() < 0.4
    hue = float(design.random())
    colour = (
        hsv(0.6, 0.05, float(design.uniform(0.35, 0.75)))
        if metal
        else hsv(hue, float(design.uniform(0.3, 0.9)), float(design.uniform(0.12, 0.9)))
    )
    grain = _grain(inst, h, w, 0.015, 0.02, 50 * u)
    if metal:  # brushed
        brushed = cv2.resize(inst.standard_normal((h, max(2, w // 60)), dtype=np.float32), (w, h))
        grain += brushed * np.float32(0.05)
    mat = blank(h, w, colour, grain, gloss=0.55 if metal else 0.3)
    background = _table(design, colour)
    cx, cy, big = w / 2, h / 2, min(w, h) * 0.5
    t = np.linspace(0, 2 * np.pi, 480, endpoint=False)
    shape = int(design.integers(4))
    n = int(design.integers(5, 22))
    if shape == 0:  # gear
        r = 0.80 + 0.1 * np.clip(np.sin(n * t) * 2.2, -1, 1)
    elif shape == 1:  # star or flower
        r = 0.70 + design.uniform(0.1, 0.2) * np.cos(min(n, 8) * t)
    elif shape == 2:  # rounded box
        k = float(design.uniform(3, 9))
        r = 0.78 / (np.abs(np.cos(t)) ** k + np.abs(np.sin(t) * design.uniform(1.0, 1.5)) ** k) ** (1 / k)
    else:  # free form
        r = np.full_like(t, 0.68)
        for i in range(1, 6):
            r += design.uniform(-0.07, 0.07) * np.cos(i * t + design.uniform(0, 6))
    r = np.clip(r * (1 + inst.normal(0, 0.0015)), 0.2, 0.95) * big
    outline = np.stack([cx + r * np.cos(t), cy + r * np.sin(t)], 1)
    solid = np.zeros((h, w), np.uint8)
    cv2.fillPoly(solid, [np.round(outline * 16).astype(np.int32)], (255,), lineType=cv2.LINE_AA, shift=4)
    inner = float(np.min(r))
    ring, count = float(design.uniform(0.45, 0.7)) * inner, int(design.integers(3, 9))
    phase = float(design.uniform(0, 2 * np.pi))
    spots = [
        (cx + ring * np.cos(phase + i * 2 * np.pi / count), cy + ring * np.sin(phase + i * 2 * np.pi / count))
        for i in range(count)
    ]
    room = min(0.24 * inner, ring * np.sin(np.pi / count) * 0.75)
    holes = np.zeros((h, w), np.uint8)
    bore = float(design.choice([0.0, 0.16, 0.24])) * inner
    drilled = [i % int(design.integers(2, 4)) == 0 for i in range(count)]
    for (x, y), is_hole in zip(spots, drilled, strict=True):
        if is_hole:
            cv2.fillPoly(holes, [np.round(disc(x, y, 0.62 * room) * 16).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    if bore:
        cv2.fillPoly(holes, [np.round(disc(cx, cy, bore, n=48) * 16).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    solid = np.minimum(solid, 255 - holes)
    # a bevel round every edge: height grows with the distance from it, then is flat
    dist = cv2.distanceTransform((solid > 127).astype(np.uint8), cv2.DIST_L2, 3)
    bevel = float(design.uniform(4, 14)) * u
    mat.height[:] = bevel * 0.75 * (1 - np.square(1 - np.clip(dist / bevel, 0, 1)))
    mat.height += clouds(inst, h, w, 45 * u) * np.float32(0.25 * u)
    mat.cover[:] = solid.astype(np.float32) / 255
    rim = np.zeros((h, w), np.uint8)
    if design.random() < 0.6:  # a raised or sunken ring
        cv2.circle(rim, (round(cx), round(cy)), round(ring + 1.25 * room), (255,), max(2, round(4 * u)), cv2.LINE_AA)
        blend(
            mat,
            np.minimum(np.asarray(cv2.GaussianBlur(rim, (0, 0), 1.2 * u), np.uint8), solid),
            0,
            0,
            rise=float(design.choice([-3.0, 3.0])) * u,
        )
    y_text = cy + (0.0 if not bore else min(bore + 11 * u, 0.9 * inner))
    word = "".join(design.choice(list("ABDEGHKMRX"), size=2)) + str(int(design.integers(10, 99)))
    mark = text_mask(word, 0.11 * inner, 1)
    blend(
        mat,
        np.asarray(cv2.GaussianBlur(mark, (0, 0), 0.5 * u), np.uint8),
        round(cx - mark.shape[1] / 2),
        round(y_text - mark.shape[0] / 2),
        colour=mix(colour, (0, 0, 0), 0.25),
        rise=-1.6 * u,
    )
    part = Part("moulded", u, mat, background)
    kind = "screw" if design.random() < 0.6 else "stud"
    fitted = [p for p, is_hole in zip(spots, drilled, strict=True) if not is_hole] or [(cx, cy)]
    screw_colour = (0.55, 0.5, 0.42) if metal and np.mean(colour) > 0.5 else (0.68, 0.68, 0.7)
    paintwork = screw_colour if kind == "screw" else mix(colour, (1, 1, 1), 0.3)
    looks = int(design.integers(1000))
    d = max(0.95 * room, 5 * u)
    for x, y in fitted:  # an empty seat shows when a component is missing
        paint(mat, disc(x, y, 0.42 * d), (0.04, 0.04, 0.04), rise=-2.5, gloss=0.0)
    angles = inst.uniform(0, 360, len(fitted)) if kind == "screw" else np.zeros(len(fitted))
    part.components = [
        _jitter(inst, Component(kind, x, y, d, d, float(a), looks, paintwork), u, 0.2)
        for (x, y), a in zip(fitted, angles, strict=True)
    ]
    for k in range(24):  # free places for something that does not belong there
        a, rr = k * 2.4, inner * np.sqrt((k + 0.5) / 24) * 0.85
        x, y = cx + rr * np.cos(a), cy + rr * np.sin(a)
        window = solid[max(0, int(y - d / 2)) : int(y + d / 2), max(0, int(x - d / 2)) : int(x + d / 2)]
        if window.size and window.min() > 200 and all(np.hypot(x - p, y - q) > 1.1 * d for p, q in fitted):
            part.spots.append(Component(kind, float(x), float(y), d * 0.8, d * 0.8, 0.0, looks + 1, paintwork))
    return part


def _bottle(design: _Rng, inst: _Rng, h: int, w: int, u: float) -> Part:
    glass = hsv(
        float(design.choice([0.35, 0.1, 0.55, 0.0])),
        float(design.uniform(0.0, 0.35)),
        float(design.uniform(0.7, 0.95)),
    )
    drink = hsv(
        float(design.choice([0.08, 0.0, 0.13, 0.3, 0.6])),
        float(design.uniform(0.4, 0.9)),
        float(design.uniform(0.25, 0.85)),
    )
    background = hsv(0.6, 0.05, float(design.choice([0.06, 0.97])))
    cx, big = (w - 1) / 2, float(min(h, 1.6 * w))
    top, bottom = (h - big) / 2 + 0.04 * big, (h + big) / 2 - 0.04 * big
    length = bottom - top
    body, neck = float(design.uniform(0.15, 0.21)) * big, float(design.uniform(0.055, 0.085)) * big
    shoulder = float(design.uniform(0.24, 0.36))
    waist = float(design.choice([0.0, 0.0, 0.12]))
    f = ((np.arange(h) - top) / length).astype(np.float64)
    blend_in = np.clip((f - 0.6 * shoulder) / (0.75 * shoulder), 0, 1)
    radius = neck + (body - neck) * (3 * blend_in**2 - 2 * blend_in**3)
    radius *= 1 - waist * np.exp(-np.square((f - 0.68) / 0.07))
    foot = np.clip((1 - f) / 0.035, 0, 1)
    radius *= 0.88 + 0.12 * np.sqrt(foot)
    radius[(f < 0.05) | (f > 1)] = 0
    grain = _grain(inst, h, w, 0.006, 0.012, 70 * u)
    mat = blank(h, w, glass, grain, gloss=0.0)
    c0, c1 = max(0, int(cx - body - 2)), min(w, int(cx + body + 3))
    x = np.arange(c0, c1, dtype=np.float32)[None] - np.float32(cx)
    rad = np.maximum(radius, 1e-3)[:, None].astype(np.float32)
    q = np.clip(x / rad, -1, 1)
    mat.cover[:, c0:c1] = np.clip(rad - np.abs(x) + 0.5, 0, 1) * (radius > 0)[:, None]
    # clear wall: dark where one looks along it, two window reflections, thick base
    q2 = q * q
    tone = 1 - np.float32(0.6) * q2 * q2 * q2 - np.float32(0.12) * q2
    tone *= 1 - 0.45 * np.exp(-np.square((f - 0.985) / 0.02))[:, None].astype(np.float32)
    mat.albedo[:, c0:c1] *= tone[..., None]
    part = Part("bottle", u, mat, background)
    level = top + length * (float(design.uniform(0.2, 0.4)) + float(inst.normal(0, 0.004)))
    liquid = Component(
        "liquid",
        cx,
        (level + bottom) / 2,
        2 * body,
        bottom - 0.03 * length - level,
        0,
        int(design.integers(2)),
        drink,
    )
    sticker_h = float(design.uniform(0.2, 0.32)) * length
    sticker_y = top + length * float(design.uniform(0.62, 0.72))
    sticker = Component(
        "sticker",
        cx,
        sticker_y,
        1.9 * body * (1 - waist * 0.9),
        sticker_h,
        0,
        int(design.integers(1000)),
        hsv(float(design.random()), 0.1, 0.93),
    )
    cap = Component(
        "cap",
        cx,
        top + 0.045 * length,
        2.3 * neck,
        0.09 * length,
        0,
        int(design.integers(1000)),
        hsv(float(design.random()), 0.8, float(design.uniform(0.3, 0.8))),
    )
    part.components = [liquid, _jitter(inst, sticker, u, 0.5, 0.4), _jitter(inst, cap, u, 0.25, 0.3)]
    # what is round stays round under the label: two window reflections and dark flanks lie over everything
    streak = 0.35 * np.exp(-np.square((q + 0.62) / 0.07)) + 0.2 * np.exp(-np.square((q - 0.7) / 0.05))
    streak *= ((f > 0.1) & (f < 0.95))[:, None]
    grain[:, c0:c1] *= (1 - np.float32(0.3) * q2 * np.abs(q)) * (1 + streak)
    return part


_BUILDERS: dict[PartKind, Callable[[_Rng, _Rng, int, int, float], Part]] = {
    "circuit": _circuit,
    "label": _label,
    "weave": _weave,
    "moulded": _moulded,
    "bottle": _bottle,
}


def build_part(kind: PartKind, design_seed: int, instance_seed: int, h: int, w: int, u: float) -> Part:
    """A good part on an (h, w) raster; `u` raster px per 1/320 of the part's short side."""
    tag = zlib.crc32(kind.encode())
    design = np.random.default_rng([tag, design_seed])
    instance = np.random.default_rng([tag, design_seed, instance_seed, 1])
    return _BUILDERS[kind](design, instance, h, w, u)
