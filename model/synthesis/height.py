"""Rendered parts with known heights: five shapes, good parts as they vary, and defects of known size; as height maps and as
free point clouds.

A part is an analytic function of the place on it, so one that lies elsewhere is drawn, not resampled, and a defect is as
high as its truth says. Lengths in mm; a part is about 100 mm across and lies on a table at height 0.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.model.images import F32, Mask, RgbImage

ShapeName = Literal["bracket", "dome", "steps", "housing", "wheel"]
SHAPES: tuple[ShapeName, ...] = get_args(ShapeName)
DefectName = Literal["bulge", "dent", "hole", "missing_piece", "warp"]
DEFECTS: tuple[DefectName, ...] = get_args(DefectName)

SIZE_MM = 100.0
_EDGE_MM = 0.6  # over which an edge falls
_VARIES = 0.002  # of a feature's height, from part to part (standard deviation)
_NOISE_MM = 0.03  # of a sensor
_GRID = 640  # cells a side, on which points of a cloud are drawn
_FIELD_MM = 60.0  # a part lies within so many mm of its middle

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Feature:
    """A prism on (or in, height < 0) a part: an ellipse or a rectangle."""

    x: float
    y: float
    half_x: float
    half_y: float
    height: float
    round: bool = True
    angle: float = 0.0

    def inside(self, u: F64, v: F64) -> F64:
        c, s = np.cos(self.angle), np.sin(self.angle)
        a, b = c * (u - self.x) + s * (v - self.y), -s * (u - self.x) + c * (v - self.y)
        if self.round:
            return _soft((np.hypot(a / self.half_x, b / self.half_y) - 1) * min(self.half_x, self.half_y))
        return _soft(np.maximum(np.abs(a) - self.half_x, np.abs(b) - self.half_y))


def _soft(outside: F64) -> F64:
    """1 inside, 0 outside of a shape, of the distance to it (mm, negative inside)."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(4 * outside / _EDGE_MM, -40, 40))))


@dataclass(frozen=True)
class Defect:
    """name: what; height_mm: of a bulge, dent or warp (what of the part a hole lacks, its place says). x, y: its middle on
    the part. radius_mm: at half its height."""

    name: DefectName
    height_mm: float
    x: float
    y: float
    radius_mm: float


@dataclass(frozen=True)
class Stain:
    """Paint on a part, without any height. x, y: its middle, mm on the part. radius_mm: at half its strength. colour: its
    red, green and blue, 0..1."""

    x: float
    y: float
    radius_mm: float
    colour: tuple[float, float, float] = (0.35, 0.12, 0.08)


@dataclass(frozen=True)
class RenderedHeight:
    """mm: (H, W) float32, as the sensor gives it, NaN in holes. truth: (H, W) mm that the defect adds, 0 elsewhere. u, v:
    (H, W) mm, the place on the part that each px shows. good: (H, W) mm, the part above its table without the defect."""

    mm: F32
    truth: F32
    defect: Defect | None
    u: F64
    v: F64
    good: F64

    @property
    def mask(self) -> Mask:
        """Where the defect has at least half its height."""
        peak = float(np.abs(self.truth).max())
        return np.asarray((np.abs(self.truth) >= 0.5 * peak) & (peak > 0))


@dataclass(frozen=True)
class RenderedCloud:
    """points: (N, 3) float64 mm, turned any way. truth: (N,) mm that a bulge, dent or warp adds, along what was up. good:
    (M, 3), densely, the same part without its defect and without noise, turned likewise. frame: (4, 4), from the part
    to both."""

    points: F64
    truth: F64
    good: F64
    frame: F64
    defect: Defect | None


class SolidPart:
    """A product: one of five shapes; the same seed is the same product."""

    def __init__(self, shape: ShapeName, seed: int = 1) -> None:
        rng = np.random.default_rng((seed, SHAPES.index(shape)))
        self.shape = shape
        self._dome = 0.0
        if shape == "bracket":
            self._base = _Feature(0, 0, 48, 30, 8, round=False)
            self._features = [
                _Feature(-40, 0, 7, 29, 22, round=False), _Feature(15, 12, 9, 9, 6), _Feature(25, -14, 6, 6, -8),
                _Feature(0, -14, 4, 4, -8), _Feature(8, -1, 30, 2.5, 4, round=False),
            ]  # fmt: skip
        elif shape == "dome":
            self._base, self._dome = _Feature(0, 0, 48, 48, 4), 18.0
            self._features = [
                _Feature(40, 0, 4, 4, 5),
                _Feature(-28, 28, 3, 3, -4),
                _Feature(0, -40, 10, 3, 3, round=False),
            ]
        elif shape == "steps":
            self._base = _Feature(0, 0, 45, 45, 6, round=False)
            self._features = [
                _Feature(4, 2, 34, 30, 5, round=False, angle=0.1), _Feature(8, 4, 22, 18, 5, round=False),
                _Feature(12, 4, 8, 8, 5), _Feature(-38, 36, 5, 5, -3),
            ]  # fmt: skip
        elif shape == "housing":
            self._base = _Feature(0, 0, 48, 36, 16, round=False)
            self._features = [
                _Feature(-6, 0, 36, 29, -11, round=False), _Feature(-25, 10, 5, 5, 8), _Feature(15, -12, 5, 5, 8),
                _Feature(-6, 0, 2, 28, 7, round=False), _Feature(40, 20, 4, 8, 4, round=False),
            ]  # fmt: skip
        else:
            self._base = _Feature(0, 0, 40, 40, 7)
            teeth = [2 * np.pi * i / 12 for i in range(12) if i != 5]
            self._features = [
                _Feature(float(42 * np.cos(a)), float(42 * np.sin(a)), 6, 4, 7, round=False, angle=a) for a in teeth
            ]
            self._features += [_Feature(0, 0, 14, 14, 9), _Feature(0, 0, 6, 6, -20), _Feature(24, 8, 5, 5, -4)]
        self._extra = []
        for _ in range(2):
            x, y = (float(c) for c in rng.uniform(-22, 22, 2))
            half_x, half_y, height = (float(c) for c in rng.uniform((2, 2, 1.5), (4, 4, 3)))
            self._extra.append(_Feature(x, y, half_x, half_y, height))

    def heights(self, u: F64, v: F64, instance: np.random.Generator | None = None) -> F64:
        """Height above the table at places (any shape) on the part. instance: of one part; None: as it is drawn."""

        def grown() -> float:
            return 1.0 if instance is None else float(instance.normal(1.0, _VARIES))

        base = self._base.inside(u, v)
        z = self._base.height * grown() * base
        if self._dome:
            radius, top = 34.0, self._dome
            ball = (radius**2 + top**2) / (2 * top)
            z = z + grown() * np.maximum(np.sqrt(np.maximum(ball**2 - u**2 - v**2, 0)) - (ball - top), 0)
        for feature in (*self._features, *self._extra):
            z = z + feature.height * grown() * feature.inside(u, v)
        return np.maximum(z, 0.0)

    def defect(self, name: DefectName, rng: np.random.Generator) -> Defect:
        """One of 0.5 to 3 % of the size, on the part."""
        height = float(np.exp(rng.uniform(np.log(0.005), np.log(0.03)))) * SIZE_MM
        radius = float(rng.uniform(3, 9)) if name in ("bulge", "dent") else float(rng.uniform(2, 5))
        while True:
            x, y = (float(c) for c in rng.uniform(-45, 45, 2))
            ring = np.array(
                [(x, y), *((x + radius * np.cos(a), y + radius * np.sin(a)) for a in np.arange(8) * np.pi / 4)]
            )
            there = self.heights(ring[:, 0], ring[:, 1])
            if name == "missing_piece":  # at the rim: part of it over the table
                if there[0] > 3 and 2 <= int((there < 0.5).sum()) <= 6:
                    return Defect(name, height, x, y, radius + 2)
            elif there.min() > 2:
                return Defect(name, height, x, y, radius)

    def with_defect(self, u: F64, v: F64, z: F64, defect: Defect | None) -> F64:
        """Heights z of a part (at u, v) with a defect."""
        if defect is None:
            return z
        radius = np.hypot(u - defect.x, v - defect.y)
        if defect.name in ("hole", "missing_piece"):
            return np.asarray(z * (1 - _soft(radius - defect.radius_mm)))
        part = np.clip(z / 2, 0, 1)  # the table stays as it is
        if defect.name == "warp":
            along = u * np.cos(defect.x) + v * np.sin(defect.x)
            return np.asarray(z + part * defect.height_mm * (along / (SIZE_MM / 2)) ** 2)
        sign = 1.0 if defect.name == "bulge" else -1.0
        return np.asarray(z + sign * part * defect.height_mm * np.exp(-np.log(2) * (radius / defect.radius_mm) ** 4))

    def height_map(
        self,
        rng: np.random.Generator,
        defect: Defect | None = None,
        *,
        size: tuple[int, int] = (240, 240),
        mm_per_px: float = 0.5,
        turn_deg: float | None = None,
        partial: float = 0.0,
        holes: bool = True,
        noise_mm: float = _NOISE_MM,
    ) -> RenderedHeight:
        """One part below the sensor: its place, the sensor's tilt and distance differ each time.

        turn_deg: about its own axis; None: any. partial: part of its width that lies beyond the picture.
        """
        h, w = size
        angle = np.deg2rad(rng.uniform(0, 360) if turn_deg is None else turn_deg)
        dx, dy = rng.uniform(-4, 4, 2)
        if partial:
            dx += (w * mm_per_px / 2 - SIZE_MM / 2) + partial * SIZE_MM
        ys, xs = np.mgrid[0:h, 0:w].astype(np.float64)
        px, py = (xs + 0.5 - w / 2) * mm_per_px - dx, (ys + 0.5 - h / 2) * mm_per_px - dy
        u, v = np.cos(angle) * px + np.sin(angle) * py, -np.sin(angle) * px + np.cos(angle) * py
        good = self.heights(u, v, rng)
        z = self.with_defect(u, v, good, defect)
        truth = (z - good).astype(np.float32)
        tilt = rng.normal(0, 0.004, 2)  # about a quarter of a degree
        mm = z + rng.normal(0, 0.5) + tilt[0] * xs * mm_per_px + tilt[1] * ys * mm_per_px
        mm = mm + rng.normal(0, noise_mm, mm.shape)
        if holes:
            speck = cv2.GaussianBlur(rng.normal(0, 1, mm.shape), (0, 0), 1.2)
            steep = np.hypot(*np.gradient(z, mm_per_px)) > 3
            lost = (speck > np.quantile(speck, 0.992)) | (steep & (rng.random(mm.shape) < 0.4))
            mm[lost] = np.nan
        return RenderedHeight(mm.astype(np.float32), truth, defect, u, v, good)

    def stain(self, rng: np.random.Generator) -> Stain:
        """One of 2 to 5 mm, anywhere on the part."""
        there = self.defect("dent", rng)
        return Stain(there.x, there.y, float(rng.uniform(2, 5)))

    def colour_photo(self, of: RenderedHeight, rng: np.random.Generator, stain: Stain | None = None) -> RgbImage:
        """(H, W, 3), the colour photo of a height map on the same px: painted steps with a grain and a print that the part
        keeps, a dark table, and the exposure and noise of this photo. It knows no holes and nothing of a defect's height."""
        u, v, z = of.u, of.v, of.good
        on_part = _soft(1.0 - z)[..., None]  # 1 where the part is, 0 on the table
        level = np.clip(z / 25.0, 0, 1)[..., None]
        paint = (1 - level) * np.array([0.32, 0.42, 0.52]) + level * np.array([0.78, 0.74, 0.62])
        grain = 0.03 * np.sin(1.9 * u + 0.3 * v) * np.sin(0.5 * u - 1.3 * v)
        printed = _soft(np.abs(np.hypot(u + 12, v - 6) - 9) - 0.8)[..., None]
        shown = (paint + grain[..., None]) * (1 - 0.7 * printed) + 0.7 * printed * np.array([0.1, 0.1, 0.35])
        if stain is not None:
            there = np.exp(-np.log(2) * (np.hypot(u - stain.x, v - stain.y) / stain.radius_mm) ** 4)[..., None]
            shown = (1 - there) * shown + there * np.array(stain.colour)
        shown = on_part * shown + (1 - on_part) * 0.12
        shown = shown * rng.normal(1.0, 0.015) + rng.normal(0, 0.008, shown.shape)
        return np.asarray(np.clip(shown * 255, 0, 255).round(), np.uint8)

    def cloud(
        self,
        rng: np.random.Generator,
        points: int,
        defect: Defect | None = None,
        *,
        noise_mm: float = _NOISE_MM,
        partial: float = 0.0,
        dense: int = 0,
    ) -> RenderedCloud:
        """A scan of the whole surface, turned and shifted any way in space.

        points: about how many, before a part is lost. partial: part 0..1 of the points that is missing, cut off by a plane.
        dense: about how many points `good` has.
        """
        instance_seed = int(rng.integers(1 << 31))

        def heights(u: F64, v: F64) -> F64:
            return self.heights(u, v, np.random.default_rng(instance_seed))

        def bent(u: F64, v: F64) -> F64:
            return self.with_defect(u, v, heights(u, v), defect)

        top = _drawn(bent, rng, 2 * points)
        u, v = top[:, 0], top[:, 1]
        on_part = bent(u, v) > 0.05
        upper, truth = top[on_part], (bent(u, v) - heights(u, v))[on_part]
        below = _drawn(lambda u, v: np.zeros_like(u), rng, 2 * points)
        lower = below[bent(below[:, 0], below[:, 1]) > 0.05]
        if defect is not None and defect.name == "warp":  # the bottom bends along
            moved = self.with_defect(lower[:, 0], lower[:, 1], np.full(len(lower), 2.0), defect) - 2.0
            lower = np.column_stack([lower[:, :2], moved])
        else:
            moved = np.zeros(len(lower))
        cloud, truth = np.vstack([upper, lower]), np.concatenate([truth, moved])
        good = np.zeros((0, 3))
        if dense:
            good = np.vstack([_drawn(heights, rng, dense), _drawn(lambda u, v: np.zeros_like(u), rng, dense // 2)])
            good = good[heights(good[:, 0], good[:, 1]) > 0.05]
        chosen = rng.permutation(len(cloud))[: min(points, len(cloud))]
        cloud, truth = cloud[chosen] + rng.normal(0, noise_mm, (len(chosen), 3)), truth[chosen]
        if partial:
            direction = _unit(rng)
            along = cloud @ direction
            if defect is not None and np.array([defect.x, defect.y, 5.0]) @ direction > np.median(along):
                along = -along  # what is cut off must not be the defect
            kept = along <= np.quantile(along, 1 - partial)
            cloud, truth = cloud[kept], truth[kept]
        frame = np.eye(4)
        frame[:3, :3], frame[:3, 3] = _turn(rng), rng.uniform(-200, 200, 3)
        turn, shift = frame[:3, :3], frame[:3, 3]
        return RenderedCloud(cloud @ turn.T + shift, truth, good @ turn.T + shift, frame, defect)


def _drawn(heights: Callable[[F64, F64], F64], rng: np.random.Generator, n: int) -> F64:
    """(n, 3) points of a surface, evenly by its area."""
    step = 2 * _FIELD_MM / _GRID
    middle = (np.arange(_GRID) + 0.5) * step - _FIELD_MM
    u, v = np.meshgrid(middle, middle)
    down, across = np.gradient(heights(u, v), step)
    area = np.sqrt(1 + down**2 + across**2).ravel()
    total = np.cumsum(area)
    cells = np.searchsorted(total, rng.random(n) * total[-1])
    at = np.column_stack([u.ravel()[cells], v.ravel()[cells]]) + rng.uniform(-step / 2, step / 2, (n, 2))
    return np.column_stack([at, heights(at[:, 0], at[:, 1])])


def _unit(rng: np.random.Generator) -> F64:
    v = rng.normal(size=3)
    return np.asarray(v / np.linalg.norm(v))


def _turn(rng: np.random.Generator) -> F64:
    """A rotation (3, 3), evenly among all."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return np.asarray(q)


def ply(points: F64) -> bytes:
    """A binary PLY of floats."""
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    return head.encode() + np.ascontiguousarray(points, "<f4").tobytes()


def depth_png(mm: F32, unit_mm: float = 0.01, offset_mm: float = -100.0) -> bytes:
    """A 16-bit PNG of heights: mm = offset_mm + unit_mm * count; 0 where nothing was measured."""
    counts = np.where(np.isfinite(mm), np.clip(np.rint((np.nan_to_num(mm) - offset_mm) / unit_mm), 1, 65535), 0)
    buffer = io.BytesIO()
    Image.fromarray(counts.astype(np.uint16)).save(buffer, format="PNG")
    return buffer.getvalue()


def xyz_tiff(mm: F32, mm_per_px: float, distance_mm: float = 500.0) -> bytes:
    """An organised cloud: x, y and the distance from a sensor so far above height 0, in mm; 0, 0, 0 in holes."""
    h, w = mm.shape
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    hole = ~np.isfinite(mm)
    bands = np.stack([(xs - w / 2) * mm_per_px, (ys - h / 2) * mm_per_px, distance_mm - np.nan_to_num(mm)], -1)
    bands[hole] = 0
    done, data = cv2.imencode(".tiff", np.ascontiguousarray(bands[..., ::-1], np.float32))
    assert done
    return bytes(data)
