"""One defect to be made: what is asked for, where it may lie, and the shapes that all brushes draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.defect_types import RenderedType
from refdiff.model.synthesis.materials import Colour, Material, mix
from refdiff.model.synthesis.parts.drawing import Part


@dataclass(frozen=True)
class DefectSpec:
    """What to break; the same spec makes the same defect. Pixels are those of the unposed image.

    The size is the length of a scratch, crack, broken yarn or smear, the diameter of a spot, the shift of a component
    or of a level; without one it depends on the type.
    """

    type: RenderedType
    size_px: float | None = None
    size_mm: float | None = None  # instead of size_px
    where: tuple[float, float] | None = None  # (x, y) px, default random; components, pins and print: the nearest one
    contrast: float = 0.8  # 1 obvious .. 0 just visible
    seed: int = 0
    angle_deg: float | None = None  # direction, counter-clockwise, default random
    width_px: float | None = None  # of a scratch or crack


@dataclass
class Job:
    """One defect being made. Lengths in raster px."""

    part: Part
    mat: Material  # of the part, painted in place
    spec: DefectSpec
    rng: np.random.Generator
    size: float
    ss: float  # raster px per px of the unposed image
    allowed: NDArray[np.uint8]  # (h, w), 255 where the defect may lie
    where: tuple[float, float] | None  # (x, y), where it should lie

    @property
    def strength(self) -> float:
        """Change of albedo, from just visible to obvious."""
        return 0.06 + 0.5 * float(np.clip(self.spec.contrast, 0, 1))

    def angle(self) -> float:
        """Direction of the defect, rad."""
        drawn = float(self.rng.uniform(0, 180))  # drawn always: a given angle moves nothing else
        return float(np.deg2rad(drawn if self.spec.angle_deg is None else self.spec.angle_deg))

    def spot(self, margin: float = 0.0) -> tuple[float, float]:
        """The wanted place, or a random one at least `margin` inside the allowed area where that is possible."""
        if self.where is not None:
            return self.where
        area = self.allowed
        while margin >= 1:
            step = max(1, int(margin))
            inner = cv2.erode(area[::2, ::2], np.ones((1, step), np.uint8), borderValue=0)
            inner = cv2.erode(inner, np.ones((step, 1), np.uint8), borderValue=0)
            if inner.any():
                ys, xs = np.nonzero(inner)
                k = int(self.rng.integers(len(ys)))
                return 2.0 * xs[k], 2.0 * ys[k]
            margin /= 2
        ys, xs = np.nonzero(area[::2, ::2])
        if len(ys) == 0:
            h, w = area.shape
            return w / 2, h / 2
        k = int(self.rng.integers(len(ys)))
        return 2.0 * xs[k], 2.0 * ys[k]

    def contrasting(self, x: float, y: float) -> Colour:
        """The surface colour there moved away from itself: lighter on dark, darker on light."""
        here = self.colour_at(x, y)
        luma = sum(here) / 3
        d = self.strength
        towards = (0.93, 0.93, 0.93) if luma < 0.42 else (0.04, 0.04, 0.04)
        return mix(here, towards, min(1.0, d / max(0.15, abs(towards[0] - luma)) * 0.9))

    def colour_at(self, x: float, y: float) -> Colour:
        """Mean albedo of the surface round a place."""
        r = max(2, int(2 * self.ss))
        h, w = self.mat.height.shape
        y0, x0 = int(np.clip(y - r, 0, h - 1)), int(np.clip(x - r, 0, w - 1))
        c = self.mat.albedo[y0 : y0 + 2 * r + 1, x0 : x0 + 2 * r + 1].reshape(-1, 3).mean(0)
        return float(c[0]), float(c[1]), float(c[2])

    def line(self, wiggle: float, bend: float) -> NDArray[np.float64]:
        """(N, 2) path of arc length `size`, shortened only where no place on the part is long enough."""
        length, n = self.size, max(8, int(self.size / 2))
        h, w = self.allowed.shape
        for attempt in range(60):
            angle = self.angle()
            x, y = self.spot(0.0)
            turn = bend * self.rng.uniform(-1, 1) * np.linspace(-0.5, 0.5, n)
            kinks = np.repeat(self.rng.normal(0, wiggle, n // 4 + 1), 4)[: n - 1]
            heading = -angle + turn[1:] + kinks
            step = np.stack([np.cos(heading), np.sin(heading)], 1) * (length / (n - 1))
            path = np.concatenate([np.zeros((1, 2)), np.cumsum(step, 0)])
            path += np.array([x, y]) - path[n // 2]
            ix = np.round(path).astype(int)
            ok = (ix[:, 0] >= 0) & (ix[:, 1] >= 0) & (ix[:, 0] < w) & (ix[:, 1] < h)
            ok[ok] = self.allowed[ix[ok, 1], ix[ok, 0]] > 0
            if ok.all():
                return path
            if self.where is not None:  # a wanted place: keep the run round the middle that is on the part
                lo = hi = n // 2
                while lo > 0 and ok[lo - 1]:
                    lo -= 1
                while hi < n - 1 and ok[hi + 1]:
                    hi += 1
                return path[lo : max(hi, lo + 1) + 1]
            if attempt % 6 == 5:
                length *= 0.85
        return path


# What a brush knows by construction: the line (N, 2) whose length is the defect's length, and the width across it.
Painted = tuple[NDArray[np.float64] | None, float | None]


def ribbon(path: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Outline of a band of that width along a path (N, 2)."""
    tangent = np.gradient(path, axis=0)
    normal = tangent[:, ::-1] * (1, -1) / np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-9)[:, None]
    return np.concatenate([path - normal * width / 2, (path + normal * width / 2)[::-1]])


def lump(rng: np.random.Generator, x: float, y: float, size: float, rough: float = 0.18) -> NDArray[np.float64]:
    """Irregular outline about `size` across."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    r = 1 + sum(rng.uniform(-rough, rough) / k * np.cos(k * t + rng.uniform(0, 6.3)) for k in range(2, 6))
    squeeze, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    px, py = r * np.cos(t), r * np.sin(t) * squeeze
    rot = np.stack([px * np.cos(turn) - py * np.sin(turn), px * np.sin(turn) + py * np.cos(turn)], 1)
    return rot / max(1e-6, float(np.ptp(r * np.cos(t)))) * size + (x, y)


def near(job: Job, places: Sequence[tuple[float, float]]) -> int:
    """Index of the wanted place, or of a random visible one."""
    h, w = job.allowed.shape
    if job.where is not None:
        wx, wy = job.where
        return int(np.argmin([(x - wx) ** 2 + (y - wy) ** 2 for x, y in places]))
    seen = [i for i, (x, y) in enumerate(places) if 0 <= x < w and 0 <= y < h and job.allowed[int(y), int(x)]] or list(
        range(len(places))
    )
    return seen[int(job.rng.integers(len(seen)))]
