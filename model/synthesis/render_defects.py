"""Defects on rendered parts, with the truth about each: what changed, where, how long, how wide.

A defect changes the part's material or its component list; its mask is where the *lit* surface then differs by more
than one grey level from the surface without it (lamp, table and shading included), so it is known and not guessed.
Knows nothing about pose or camera: everything here is in raster px of the part (render_parts.py); render.py maps it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.defect_types import RENDERED_TYPES, STRUCTURAL_TYPES, RenderedType
from refdiff.model.errors import InputError
from refdiff.model.images import F32
from refdiff.model.synthesis.components import paint_components
from refdiff.model.synthesis.materials import (
    TIN,
    Colour,
    Component,
    Material,
    PartKind,
    blend,
    clouds,
    exact_mask,
    hsv,
    mix,
    paint,
    shade,
)
from refdiff.model.synthesis.parts.circuit import random_component
from refdiff.model.synthesis.parts.drawing import Part

_EVERYWHERE: tuple[RenderedType, ...] = ("scratch", "stain", "blob", "hole")
_APPLICABLE: dict[PartKind, tuple[RenderedType, ...]] = {
    "circuit": (
        *_EVERYWHERE,
        "crack",
        "edge_nibble",
        "missing_component",
        "added_component",
        "wrong_component",
        "displaced_component",
        "solder_bridge",
        "solder_void",
        "missing_print",
    ),
    "label": (*_EVERYWHERE, "crack", "dent", "edge_nibble", "print_smear", "missing_print"),
    "weave": (*_EVERYWHERE, "broken_yarn", "uneven_dye"),
    "moulded": (
        *_EVERYWHERE,
        "crack",
        "dent",
        "edge_nibble",
        "missing_component",
        "added_component",
        "wrong_component",
        "displaced_component",
    ),
    "bottle": (
        *_EVERYWHERE,
        "crack",
        "dent",
        "edge_nibble",
        "missing_component",
        "wrong_component",
        "displaced_component",
        "wrong_fill_level",
    ),
}
_VISIBLE = 1.0 / 255


@dataclass(frozen=True)
class DefectSpec:
    """What to break. `size_px` (px of the unposed image) or `size_mm`: length of a scratch, crack, broken yarn or
    smear, diameter of a spot, shift of a component or of a level; default by type. `width_px` only for scratch and
    crack. `where`: (x, y) px of the unposed image, default random on the visible part; components, pins, pads and
    print take the nearest of their places. `contrast` 1 obvious .. 0 just visible. `angle_deg`: direction,
    counter-clockwise, default random. Same spec, same defect."""

    type: RenderedType
    size_px: float | None = None
    size_mm: float | None = None
    where: tuple[float, float] | None = None
    contrast: float = 0.8
    seed: int = 0
    angle_deg: float | None = None
    width_px: float | None = None


@dataclass
class RasterTruth:
    """A defect in raster px. mask (h, w) bool; path (N, 2): the line whose length is the defect's length; width
    across it; centre (x, y)."""

    type: RenderedType
    mask: NDArray[np.bool_]
    path: NDArray[np.float64]
    width: float
    centre: tuple[float, float]


def applicable_types(kind: PartKind) -> tuple[RenderedType, ...]:
    """The defect types that can happen to a kind of part. InputError for an unknown kind."""
    if kind not in _APPLICABLE:
        raise InputError(f"Unknown part kind {kind!r}: use one of {', '.join(_APPLICABLE)}.")
    return _APPLICABLE[kind]


def random_defect(
    rng: np.random.Generator,
    kind: PartKind,
    size: tuple[int, int] = (320, 320),
    *,
    types: Sequence[RenderedType] | None = None,
) -> DefectSpec:
    """An applicable defect of random type (from `types` if given), contrast and size: spots from 2.5 px up (< 0.01 %
    of a 320 px image) to a tenth of the image's short side, lines up to a third."""
    choices = [t for t in applicable_types(kind) if types is None or t in types]
    if not choices:
        raise InputError(f"None of the types {types!r} applies to {kind!r}: use {applicable_types(kind)!r}.")
    kind_of = choices[int(rng.integers(len(choices)))]
    short, unit = min(size), min(size) / 320
    ranges: dict[str, tuple[float, float]] = {
        "scratch": (8 * unit, 0.35 * short),
        "crack": (8 * unit, 0.35 * short),
        "dent": (6 * unit, 0.15 * short),
        "broken_yarn": (10 * unit, 0.4 * short),
        "uneven_dye": (0.1 * short, 0.45 * short),
        "displaced_component": (4 * unit, 18 * unit),
        "wrong_fill_level": (6 * unit, 0.2 * short),
        "print_smear": (6 * unit, 24 * unit),
        "missing_print": (5 * unit, 0.15 * short),
    }
    lo, hi = ranges.get(kind_of, (2.5 * unit, 0.1 * short))
    size_px = float(np.exp(rng.uniform(np.log(lo), np.log(hi))))
    return DefectSpec(kind_of, size_px=size_px, contrast=float(rng.beta(1.2, 1.2)), seed=int(rng.integers(2**31)))


# --- brushes: how each type changes the material ---


@dataclass
class _Job:
    """One defect being made. Lengths in raster px; `allowed` (h, w) uint8, 255 where it may lie."""

    part: Part
    mat: Material
    spec: DefectSpec
    rng: np.random.Generator
    size: float
    ss: float
    azimuth: float
    allowed: NDArray[np.uint8]
    where: tuple[float, float] | None

    @property
    def strength(self) -> float:
        """Change of albedo, from just visible to obvious."""
        return 0.06 + 0.5 * float(np.clip(self.spec.contrast, 0, 1))

    def angle(self) -> float:
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


_Brush = tuple[NDArray[np.float64] | None, float | None]  # path and width where they are known by construction


def _ribbon(path: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    tangent = np.gradient(path, axis=0)
    normal = tangent[:, ::-1] * (1, -1) / np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-9)[:, None]
    return np.concatenate([path - normal * width / 2, (path + normal * width / 2)[::-1]])


def _lump(rng: np.random.Generator, x: float, y: float, size: float, rough: float = 0.18) -> NDArray[np.float64]:
    """Irregular outline about `size` across."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    r = 1 + sum(rng.uniform(-rough, rough) / k * np.cos(k * t + rng.uniform(0, 6.3)) for k in range(2, 6))
    squeeze, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    px, py = r * np.cos(t), r * np.sin(t) * squeeze
    rot = np.stack([px * np.cos(turn) - py * np.sin(turn), px * np.sin(turn) + py * np.cos(turn)], 1)
    return rot / max(1e-6, float(np.ptp(r * np.cos(t)))) * size + (x, y)


def _scratch(job: _Job) -> _Brush:
    path = job.line(0.0, 0.5)
    width = job.ss * (job.spec.width_px or float(job.rng.uniform(0.8, 2.2)))
    x, y = path[len(path) // 2]
    # no groove in the height: its slopes would be lit beyond the scratch's ends
    mask, ox, oy = exact_mask(_ribbon(path, width))
    blend(job.mat, mask, ox, oy, colour=job.contrasting(x, y), gloss=0.5, alpha=0.9)
    return path, width


def _crack(job: _Job) -> _Brush:
    path = job.line(0.45, 0.3)
    width = job.ss * (job.spec.width_px or float(job.rng.uniform(0.8, 1.6)))
    x, y = path[len(path) // 2]
    colour = job.contrasting(x, y)
    paint(job.mat, _ribbon(path, width), colour, rise=-1.2 * width * job.spec.contrast, gloss=0.0)
    for _ in range(int(job.rng.integers(0, 3))):  # side branches belong to the mask, not to the length
        k = int(job.rng.integers(len(path) // 4, max(len(path) // 4 + 1, 3 * len(path) // 4)))
        a = job.rng.uniform(0, 2 * np.pi)
        tip = path[k] + 0.12 * job.size * np.array([np.cos(a), np.sin(a)])
        paint(job.mat, _ribbon(np.linspace(path[k], tip, 5), 0.7 * width), colour, gloss=0.0)
    return path, width


def _dent(job: _Job) -> _Brush:
    x, y = job.spot(0.3 * job.size)
    depth = job.size * (0.03 + 0.16 * job.spec.contrast)
    sign = -1.0 if job.rng.random() < 0.8 else 1.0
    outline = _lump(job.rng, x, y, 0.72 * job.size, 0.1)
    paint(job.mat, outline, rise=sign * depth, soft=0.13 * job.size)
    return None, None


def _stain(job: _Job) -> _Brush:
    x, y = job.spot(0.3 * job.size)
    tint = hsv(float(job.rng.choice([0.08, 0.1, 0.6, 0.0])), 0.5, 0.25)
    here = job.colour_at(x, y)
    target = tint if abs(np.mean(here) - np.mean(tint)) > 0.15 else (0.75, 0.7, 0.6)
    alpha = min(0.9, 0.9 * job.strength / max(0.2, abs(float(np.mean(here) - np.mean(target)))))
    outline = _lump(job.rng, x, y, 0.85 * job.size, 0.35)
    paint(job.mat, outline, target, soft=max(0.6, 0.06 * job.size), alpha=0.75 * alpha)
    paint(job.mat, outline, target, soft=max(0.4, 0.02 * job.size), alpha=0.35 * alpha)
    return None, None


def _blob(job: _Job) -> _Brush:
    x, y = job.spot(0.3 * job.size)
    rise = 0.1 * job.size * job.spec.contrast
    paint(
        job.mat,
        _lump(job.rng, x, y, 0.95 * job.size, 0.3),
        job.contrasting(x, y),
        rise=rise,
        gloss=0.4,
        soft=max(0.4, 0.03 * job.size),
    )
    return None, None


def _hole(job: _Job) -> _Brush:
    x, y = job.spot(0.5 * job.size)
    outline = _lump(job.rng, x, y, job.size, 0.12)
    here, table = np.mean(job.colour_at(x, y)), np.mean(job.part.background)
    open_ = min(1.0, (job.strength + 0.1) / max(0.12, abs(float(here - table))))
    paint(job.mat, outline, job.contrasting(x, y), rise=-1.5, gloss=0.0, alpha=0.5)
    middle = outline.mean(0)
    paint(job.mat, middle + (outline - middle) * 0.85, cover=0.0, alpha=open_)
    return None, None


def _edge_nibble(job: _Job) -> _Brush:
    solid = (job.mat.cover > 0.5).astype(np.uint8)
    rim = solid - cv2.erode(solid, np.ones((3, 3), np.uint8), borderValue=0)
    ys, xs = np.nonzero((rim > 0) & (job.allowed > 0))
    if len(ys) == 0:
        ys, xs = np.nonzero(rim)
    if job.where is not None:
        k = int(np.argmin((xs - job.where[0]) ** 2 + (ys - job.where[1]) ** 2))
    else:
        k = int(job.rng.integers(len(ys)))
    x, y = float(xs[k]), float(ys[k])
    r = 0.5 * job.size
    grown = _lump(job.rng, x, y, 2.3 * r, 0.3)
    paint(job.mat, grown, mix(job.colour_at(x, y), (0.9, 0.9, 0.85), 0.5 * job.strength), rise=-1.5, alpha=0.8)
    paint(job.mat, (x, y) + (grown - (x, y)) * 0.87, cover=0.0, alpha=0.35 + 0.65 * job.spec.contrast)
    return None, None


def _near(job: _Job, places: Sequence[tuple[float, float]]) -> int:
    """Index of the wanted place, or of a random visible one."""
    h, w = job.allowed.shape
    if job.where is not None:
        wx, wy = job.where
        return int(np.argmin([(x - wx) ** 2 + (y - wy) ** 2 for x, y in places]))
    seen = [i for i, (x, y) in enumerate(places) if 0 <= x < w and 0 <= y < h and job.allowed[int(y), int(x)]] or list(
        range(len(places))
    )
    return seen[int(job.rng.integers(len(seen)))]


def _solder_bridge(job: _Job) -> _Brush:
    pairs = job.part.pin_pairs
    a, b = (np.array(p) for p in pairs[_near(job, [((p[0] + q[0]) / 2, (p[1] + q[1]) / 2) for p, q in pairs])])
    gap = float(np.hypot(*(b - a)))
    path = np.stack([a + (b - a) * t for t in np.linspace(0, 1, 12)])
    width = (0.3 + 0.4 * job.spec.contrast) * min(gap, 8 * job.ss)
    neck = 1 - 0.35 * np.sin(np.linspace(0, np.pi, 12))
    normal = np.array([-(b - a)[1], (b - a)[0]]) / gap
    outline = np.concatenate(
        [path - normal * (neck * width / 2)[:, None], (path + normal * (neck * width / 2)[:, None])[::-1]]
    )
    paint(job.mat, outline, TIN, rise=2.5, gloss=0.9, soft=0.6, alpha=0.45 + 0.5 * job.spec.contrast)
    return None, None


def _solder_void(job: _Job) -> _Brush:
    pads = job.part.pads
    (x, y), r = pads[_near(job, [p for p, _ in pads])]
    r = max(0.9 * job.ss, min(r, 0.5 * job.size))
    paint(
        job.mat,
        _lump(job.rng, x, y, 2 * r, 0.1),
        mix(TIN, (0.03, 0.03, 0.03), min(1, 0.2 + job.strength * 1.4)),
        rise=-1.5,
        gloss=0.0,
    )
    return None, None


def _print_box(job: _Job) -> tuple[float, float, float, float]:
    boxes = job.part.prints
    return boxes[_near(job, [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes])]


def _print_smear(job: _Job) -> _Brush:
    x0, y0, x1, y1 = _print_box(job)
    h, w = job.mat.height.shape
    run = max(3, round(job.size))
    bx0, by0 = max(0, int(x0 - 0.5 * run)), max(0, int(y0))
    bx1, by1 = min(w, int(x1 + run)), min(h, int(y1) + 1)
    area = job.mat.window(bx0, by0, bx1, by1)
    kernel = np.zeros((1, 2 * run + 1), np.float32)
    kernel[0, :run] = np.linspace(0.3, 1, run)  # the wet ink is dragged one way
    kernel /= kernel.sum()
    dragged = np.asarray(cv2.filter2D(area.albedo, -1, kernel), np.float32)
    inside = (area.cover > 0.99).astype(np.uint8) * 255
    ramp = np.zeros_like(inside)
    ramp[:, run // 3 : max(run // 3 + 1, ramp.shape[1] - run // 3)] = 255
    ramp = np.asarray(cv2.blur(ramp, (2 * (run // 3) + 1, 1)), np.uint8)
    blend(area, np.minimum(ramp, inside), bx0, by0, colour=dragged, alpha=0.2 + 0.7 * job.spec.contrast)
    return None, None


def _missing_print(job: _Job) -> _Brush:
    """Ink did not take: paper shows through in a patch over print, found where there is ink to lose."""
    part = job.part
    paper = np.asarray(part.paper)
    inked = np.abs(job.mat.albedo[::2, ::2] - paper.astype(np.float32)).max(-1) > 0.12
    inked &= (job.allowed[::2, ::2] > 0) & (job.mat.cover[::2, ::2] > 0.99)
    boxed = np.zeros_like(inked)
    for x0, y0, x1, y1 in part.prints:
        boxed[int(max(0, y0) / 2) : int(y1 / 2), int(max(0, x0) / 2) : int(x1 / 2)] = True
    inked &= boxed
    ys, xs = np.nonzero(inked)
    if len(ys) == 0:
        x, y = job.spot()
    elif job.where is not None:
        k = int(np.argmin((2 * xs - job.where[0]) ** 2 + (2 * ys - job.where[1]) ** 2))
        x, y = 2.0 * xs[k], 2.0 * ys[k]
    else:
        k = int(job.rng.integers(len(ys)))
        x, y = 2.0 * xs[k], 2.0 * ys[k]
    outline = _lump(job.rng, x, y, job.size, 0.25)
    colour = (float(paper[0]), float(paper[1]), float(paper[2]))
    paint(job.mat, outline, colour, alpha=0.2 + 0.8 * job.spec.contrast, soft=0.5)
    return None, None


def _broken_yarn(job: _Job) -> _Brush:
    """One yarn is gone for a length: its crossing yarns and the dark below show, frayed ends stick out."""
    if job.part.yarns is None or job.part.displacement is None:
        raise InputError(f"A {job.part.kind} has no yarns: a broken yarn needs a weave.")
    x, y = job.spot(0.2 * job.size)
    vertical = bool(job.rng.random() < 0.5)
    centres = job.part.yarns[0 if vertical else 1]
    k = int(np.clip(np.argmin(np.abs(centres - (x if vertical else y))), 1, len(centres) - 2))
    pitch = float(centres[k + 1] - centres[k - 1]) / 2
    n = max(6, int(job.size / 3))
    along = np.linspace(-0.5, 0.5, n) * job.size + (y if vertical else x)
    across = np.full(n, float(centres[k]))
    path = np.stack([across, along] if vertical else [along, across], 1)
    dx, dy = job.part.displacement
    h, w = dx.shape
    iy, ix = np.clip(path[:, 1].astype(int), 0, h - 1), np.clip(path[:, 0].astype(int), 0, w - 1)
    path = path + np.stack([dx[iy, ix], dy[iy, ix]], 1)
    width = 0.9 * pitch
    here = job.colour_at(*path[n // 2])
    dark = mix(here, (0.01, 0.01, 0.01), min(1.0, 0.25 + 1.2 * job.strength))
    paint(
        job.mat,
        _ribbon(path, width),
        dark,
        rise=-0.25 * pitch * (0.4 + job.spec.contrast),
        alpha=0.3 + 0.6 * job.spec.contrast,
        soft=0.5,
    )
    light = mix(here, (0.9, 0.9, 0.88), 0.5)
    for end in (path[0], path[-1]):
        for _ in range(2):
            a = job.rng.uniform(0, 2 * np.pi)
            curl = np.linspace(0, 1, 8)[:, None] * 1.4 * pitch * np.array([np.cos(a), np.sin(a)])
            curl = curl + np.sin(np.linspace(0, 2, 8))[:, None] * 0.3 * pitch * np.array([-np.sin(a), np.cos(a)])
            paint(
                job.mat,
                _ribbon(end + curl, 0.18 * pitch),
                light,
                rise=0.15 * pitch,
                alpha=0.3 + 0.6 * job.spec.contrast,
            )
    return path, width


def _uneven_dye(job: _Job) -> _Brush:
    x, y = job.spot(0.2 * job.size)
    r = int(0.75 * job.size)
    noise = clouds(job.rng, 2 * r, 2 * r, max(4.0, 0.35 * job.size))
    yy, xx = np.mgrid[-1 : 1 : 2j * r, -1 : 1 : 2j * r]
    mask = np.clip(1.5 - 2.3 * np.hypot(xx, yy) + 0.3 * noise, 0, 1)
    u8 = np.asarray(cv2.GaussianBlur((mask * 255).astype(np.uint8), (0, 0), max(1.0, 0.05 * job.size)), np.uint8)
    here = job.colour_at(x, y)
    pale = np.mean(here) < 0.45
    d = 0.12 + 0.5 * job.spec.contrast
    ox, oy = round(x) - r, round(y) - r
    h, w = job.mat.height.shape
    x0, y0, x1, y1 = max(0, ox), max(0, oy), min(w, ox + 2 * r), min(h, oy + 2 * r)
    tinted = np.zeros((2 * r, 2 * r, 3), np.float32)
    old = job.mat.albedo[y0:y1, x0:x1]
    tint = np.asarray(mix((1, 1, 1), hsv(float(job.rng.random()), 0.5, 1.0), 0.5), np.float32)
    # dye strength: the weave stays, its colour gets thinner or thicker
    tinted[y0 - oy : y1 - oy, x0 - ox : x1 - ox] = (
        np.clip(old * (1 + d) + 0.08 * d, 0, 1) if pale else old * (1 - 0.7 * d) * tint
    )
    blend(job.mat, u8, ox, oy, colour=tinted)
    return None, None


_BRUSHES: dict[str, Callable[[_Job], _Brush]] = {
    "scratch": _scratch,
    "crack": _crack,
    "dent": _dent,
    "stain": _stain,
    "blob": _blob,
    "hole": _hole,
    "edge_nibble": _edge_nibble,
    "solder_bridge": _solder_bridge,
    "solder_void": _solder_void,
    "print_smear": _print_smear,
    "missing_print": _missing_print,
    "broken_yarn": _broken_yarn,
    "uneven_dye": _uneven_dye,
}


# --- component list changes ---


def _rearranged(job: _Job, components: list[Component]) -> list[Component]:
    """The component list after a structural defect."""
    part, spec, rng = job.part, job.spec, job.rng
    if spec.type == "wrong_fill_level":
        sign = 1.0 if rng.random() < 0.7 else -1.0  # mostly too little; never above the neck

        def refill(c: Component) -> Component:
            change = min(job.size, 0.6 * c.h) if sign > 0 else -min(job.size, 0.15 * c.h)
            return replace(c, y=c.y + change / 2, h=c.h - change)

        return [refill(c) if c.kind == "liquid" else c for c in components]
    if not any(c.kind != "liquid" for c in components):
        return components  # a design without components, or all are gone already: nothing changes
    if spec.type == "added_component":
        spots = part.spots or [replace(components[0], x=components[0].x + 1.5 * components[0].w)]
        spot = spots[_near(job, [(c.x, c.y) for c in spots])]
        return [*components, replace(spot, angle=spot.angle + float(rng.normal(0, 1.5)))]
    movable = [i for i, c in enumerate(components) if c.kind != "liquid"]
    i = movable[_near(job, [(components[j].x, components[j].y) for j in movable])]
    old = components[i]
    if spec.type == "missing_component":
        return [c for j, c in enumerate(components) if j != i]
    if spec.type == "displaced_component":
        a = job.angle()
        turn = float(rng.normal(0, 1) * (4 + 20 * spec.contrast)) if part.kind != "bottle" else float(rng.normal(0, 4))
        shift = job.size if old.kind != "cap" else min(job.size, 0.35 * old.h)
        dx, dy = np.cos(a) * shift, -np.sin(a) * shift
        if old.kind == "cap":
            dx, dy = 0.2 * dx, -abs(dy) - 1.5 * job.ss  # a cap that is not screwed down stands higher
        new = replace(old, x=old.x + float(dx), y=old.y + float(dy), angle=old.angle + turn)
    else:
        new = _other(old, rng, job)
    return [new if j == i else c for j, c in enumerate(components)]


def _other(old: Component, rng: np.random.Generator, job: _Job) -> Component:
    """Something that does not belong there but would fit: other colour, print, pin count or type."""
    look = old.look + int(rng.integers(1, 3))
    if old.kind in ("ic", "connector", "can", "crystal", "chip"):
        if rng.random() < 0.35 + 0.4 * job.spec.contrast:
            kind = str(rng.choice([k for k in ("ic", "connector", "can", "crystal", "chip") if k != old.kind]))
            new = random_component(rng, kind, old.x, old.y, job.part.u, old.angle)
            fit = min(1.0, 1.15 * max(old.w, old.h) / max(new.w, new.h), 1.4 * min(old.w, old.h) / min(new.w, new.h))
            return replace(new, w=new.w * fit, h=new.h * fit)
        colour = hsv(float(rng.random()), 0.5, 0.55 if np.mean(old.colour) < 0.4 else 0.12)
        return replace(old, look=look, colour=mix(old.colour, colour, 0.3 + 0.7 * job.spec.contrast))
    if old.kind in ("screw", "stud"):
        if rng.random() < 0.5:
            return replace(old, look=look)
        return replace(old, kind="stud" if old.kind == "screw" else "screw", look=look)
    hue = hsv(float(rng.random()), 0.7, 0.3 if np.mean(old.colour) > 0.5 else 0.8)
    return replace(old, look=look, colour=mix(old.colour, hue, 0.25 + 0.75 * job.spec.contrast))


# --- all together ---


def _seen(lit: F32, cover: F32, table: Colour) -> F32:
    a = cover[..., None]
    return np.asarray(lit * a + np.asarray(table, np.float32) * (1 - a), np.float32)


def _box_axis(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Long axis (2, 2) and width of the smallest rotated box round a mask (raster px, both ends included)."""
    pts = cv2.findNonZero(mask.astype(np.uint8))
    (cx, cy), (w, h), deg = cv2.minAreaRect(pts)
    t = np.deg2rad(deg if w >= h else deg + 90)
    half = (max(w, h) + 1) / 2 * np.array([np.cos(t), np.sin(t)])
    return np.add((cx, cy), np.array([-half, half])), float(min(w, h) + 1)


def _repaint(part: Part, mat: Material, old: list[Component], new: list[Component]) -> None:
    """Paint `new` over `mat`, which shows `old`, only where they differ."""
    h, w = mat.height.shape
    for c in {*old} ^ {*new}:
        r = c.reach
        x0, y0 = max(0, int(c.x - r)), max(0, int(c.y - r))
        x1, y1 = min(w, int(c.x + r) + 2), min(h, int(c.y + r) + 2)
        if x0 >= x1 or y0 >= y1:
            continue
        view, base = mat.window(x0, y0, x1, y1), part.base.window(x0, y0, x1, y1)
        for plane in ("albedo", "height", "gloss", "cover"):
            getattr(view, plane)[:] = getattr(base, plane)
        paint_components(view, new)
        mat.dirty.append((x0, y0, x1, y1))


def _relight(mat: Material, lit: F32, cover_before: F32, azimuth_deg: float, table: Colour) -> NDArray[np.bool_]:
    """Light the painted boxes again, in place; returns where the picture changed, (h, w) bool."""
    h, w = mat.height.shape
    mask = np.zeros((h, w), bool)
    if not mat.dirty:
        return mask
    boxes = np.array(mat.dirty)
    x0, y0 = np.maximum(boxes[:, :2].min(0) - 2, 0)
    x1, y1 = np.minimum(boxes[:, 2:].max(0) + 2, (w, h))
    s = np.s_[y0:y1, x0:x1]
    # slopes look one pixel further than the paint, so shade one more and drop it
    px0, py0, px1, py1 = max(0, x0 - 2), max(0, y0 - 2), min(w, x1 + 2), min(h, y1 + 2)
    fresh = shade(mat.window(px0, py0, px1, py1), azimuth_deg)[y0 - py0 : y1 - py0, x0 - px0 : x1 - px0]
    before = _seen(lit[s], cover_before[s], table)
    mask[s] = np.abs(_seen(fresh, mat.cover[s], table) - before).max(-1) > _VISIBLE
    lit[s] = fresh
    return mask


def apply_defects(
    part: Part,
    specs: Sequence[DefectSpec],
    *,
    ss: float,
    offset: tuple[float, float],
    mm_per_px: float,
    azimuth_deg: float,
    in_view: NDArray[np.uint8] | None,
) -> tuple[Material, F32, F32, list[RasterTruth]]:
    """Paint the part with its defects and light it.

    ss, offset: unposed image px * ss + offset = raster px. azimuth_deg: the lamp, in the part's frame. in_view (h, w)
    uint8, 255 where the camera sees the part. Returns (material, lit (h, w, 3) 0..1, cover of the good part (h, w),
    truths in the order of `specs`). InputError for a type that does not apply.
    """
    keep_base = any(RENDERED_TYPES[s.type] in STRUCTURAL_TYPES for s in specs)
    mat = part.base.copy() if keep_base else part.base
    paint_components(mat, part.components)
    lit = shade(mat, azimuth_deg)
    good_cover = mat.cover.copy() if specs else mat.cover
    h, w = mat.height.shape
    components = part.components
    truths: dict[int, RasterTruth] = {}
    # structure first: repainting components would wipe what lies on them
    order = sorted(range(len(specs)), key=lambda i: RENDERED_TYPES[specs[i].type] not in STRUCTURAL_TYPES)
    for i in order:
        spec = specs[i]
        if spec.type not in applicable_types(part.kind):
            raise InputError(
                f"Defect {spec.type!r} does not apply to {part.kind!r}: use one of {applicable_types(part.kind)!r}."
            )
        size_px = spec.size_mm / mm_per_px if spec.size_mm is not None else spec.size_px
        default = {"scratch": 60.0, "crack": 50.0, "broken_yarn": 50.0, "uneven_dye": 90.0, "dent": 30.0}
        size = ss * (default.get(spec.type, 14.0) * part.u / ss if size_px is None else size_px)
        allowed = (mat.cover > 0.99).astype(np.uint8) * 255
        if in_view is not None:
            np.minimum(allowed, in_view, out=allowed)
        where = None if spec.where is None else (spec.where[0] * ss + offset[0], spec.where[1] * ss + offset[1])
        rng = np.random.default_rng([zlib.crc32(spec.type.encode()), spec.seed])
        job = _Job(part, mat, spec, rng, max(size, ss), ss, azimuth_deg, allowed, where)
        path: NDArray[np.float64] | None = None
        width: float | None = None
        cover_before = mat.cover.copy()
        mat.dirty.clear()
        if RENDERED_TYPES[spec.type] in STRUCTURAL_TYPES:
            changed = _rearranged(job, components)
            _repaint(part, mat, components, changed)
            components = changed
        else:
            path, width = _BRUSHES[spec.type](job)
        mask = _relight(mat, lit, cover_before, azimuth_deg, part.background)
        if path is None:
            path, width = _box_axis(mask) if mask.any() else (np.full((2, 2), (w / 2, h / 2)), 0.0)
        centre = path[len(path) // 2] if len(path) > 2 else path.mean(0)
        truths[i] = RasterTruth(spec.type, mask, path, float(width or 0.0), (float(centre[0]), float(centre[1])))
    return mat, lit, good_cover, [truths[i] for i in range(len(specs))]
