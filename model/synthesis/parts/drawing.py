"""What all kinds of parts share: the part itself, table, grain, natural variation."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from refdiff.model.images import F32
from refdiff.model.synthesis.materials import (
    Colour,
    Component,
    Material,
    PartKind,
    Point,
    clouds,
    hsv,
)


@dataclass
class Part:
    """A good part before the camera, and the places where a defect of some type can sit. Raster px."""

    kind: PartKind
    u: float  # length of one px of a 320 px image
    base: Material  # painted without components
    background: Colour  # of the table
    components: list[Component] = field(default_factory=list)  # in painting order
    spots: list[Component] = field(default_factory=list)  # empty design positions
    pin_pairs: list[tuple[Point, Point]] = field(default_factory=list)  # neighbouring pins
    pads: list[tuple[Point, float]] = field(default_factory=list)  # centre and radius
    prints: list[tuple[float, float, float, float]] = field(default_factory=list)  # boxes x0, y0, x1, y1
    paper: Colour = (1.0, 1.0, 1.0)  # colour without ink
    yarns: tuple[F32, F32] | None = None  # centres of warp yarns (x) and weft yarns (y), undisplaced
    displacement: tuple[F32, F32] | None = None  # (h, w) dx, dy of the cloth


Rng = np.random.Generator


def table(design: Rng, part: Colour) -> Colour:
    """A background that differs from the part: dark tray, grey belt, light box."""
    luma = float(np.mean(part))
    choices = [v for v in (0.05, 0.18, 0.42, 0.68, 0.9) if abs(v - luma) > 0.22]
    v = float(design.choice(choices))
    return hsv(float(design.random()), float(design.uniform(0, 0.12)), v)


def grain_noise(rng: Rng, h: int, w: int, fine: float, coarse: float, cell: float) -> F32:
    """Factor about 1: fine speckle and slow clouds."""
    out = clouds(rng, h, w, cell) * np.float32(coarse)
    speck = rng.standard_normal((h // 2 + 1, w // 2 + 1), dtype=np.float32)
    out += cv2.resize(speck, (w, h), interpolation=cv2.INTER_LINEAR) * np.float32(fine)
    out += 1
    return out


def jitter(inst: Rng, c: Component, u: float, shift: float = 0.35, turn: float = 0.6) -> Component:
    dx, dy = inst.normal(0, shift * u, 2)
    return Component(c.kind, c.x + dx, c.y + dy, c.w, c.h, c.angle + inst.normal(0, turn), c.look, c.colour)
