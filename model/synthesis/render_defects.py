"""Defects on rendered parts, with the truth about each: what changed, where, how long, how wide.

A defect changes the part's material or its component list; its mask is where the *lit* surface then differs by more
than one grey level from the surface without it (lamp, table and shading included), so it is known and not guessed.
Knows nothing about pose or camera: everything here is in raster px of the part; render.py maps it. The brushes are in
defect_brushes/, one file per family.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.defect_types import RENDERED_TYPES, STRUCTURAL_TYPES, RenderedType
from refdiff.model.errors import InputError
from refdiff.model.images import F32
from refdiff.model.synthesis.components import paint_components
from refdiff.model.synthesis.defect_brushes.cloth import broken_yarn, uneven_dye
from refdiff.model.synthesis.defect_brushes.components import rearranged
from refdiff.model.synthesis.defect_brushes.job import DefectSpec, Job, Painted
from refdiff.model.synthesis.defect_brushes.print import missing_print, print_smear
from refdiff.model.synthesis.defect_brushes.solder import solder_bridge, solder_void
from refdiff.model.synthesis.defect_brushes.surface import blob, crack, dent, edge_nibble, hole, scratch, stain
from refdiff.model.synthesis.materials import (
    Colour,
    Component,
    Material,
    PartKind,
    shade,
)
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


@dataclass
class RasterTruth:
    """A defect in raster px."""

    type: RenderedType
    mask: NDArray[np.bool_]  # (h, w)
    path: NDArray[np.float64]  # (N, 2): the line whose length is the defect's length
    width: float  # across the line
    centre: tuple[float, float]  # (x, y)
    moved: tuple[float, float] | None = (
        None  # (dx, dy) of an edge that a structural defect moves; None for other defects
    )


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


_BRUSHES: dict[RenderedType, Callable[[Job], Painted]] = {
    "scratch": scratch,
    "crack": crack,
    "dent": dent,
    "stain": stain,
    "blob": blob,
    "hole": hole,
    "edge_nibble": edge_nibble,
    "solder_bridge": solder_bridge,
    "solder_void": solder_void,
    "print_smear": print_smear,
    "missing_print": missing_print,
    "broken_yarn": broken_yarn,
    "uneven_dye": uneven_dye,
}


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


def _moved(kind: RenderedType, before: list[Component], after: list[Component]) -> tuple[float, float] | None:
    """By how much a level or a component lies elsewhere, raster px."""
    if kind not in ("wrong_fill_level", "displaced_component"):
        return None
    for old, new in zip(before, after, strict=True):
        if old != new:  # the level is the top of the liquid
            return new.x - old.x, (new.y - new.h / 2) - (old.y - old.h / 2)
    return None


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
        job = Job(part, mat, spec, rng, max(size, ss), ss, allowed, where)
        path: NDArray[np.float64] | None = None
        width: float | None = None
        moved: tuple[float, float] | None = None
        cover_before = mat.cover.copy()
        mat.dirty.clear()
        if RENDERED_TYPES[spec.type] in STRUCTURAL_TYPES:
            before, changed = components, rearranged(job, components)
            _repaint(part, mat, components, changed)
            moved = _moved(spec.type, before, changed)
            components = changed
        else:
            path, width = _BRUSHES[spec.type](job)
        mask = _relight(mat, lit, cover_before, azimuth_deg, part.background)
        if path is None:
            path, width = _box_axis(mask) if mask.any() else (np.full((2, 2), (w / 2, h / 2)), 0.0)
        centre = path[len(path) // 2] if len(path) > 2 else path.mean(0)
        truths[i] = RasterTruth(spec.type, mask, path, float(width or 0.0), (float(centre[0]), float(centre[1])), moved)
    return mat, lit, good_cover, [truths[i] for i in range(len(specs))]
