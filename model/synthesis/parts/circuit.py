"""Circuit boards: layout, tracks, pads and components."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.synthesis.components import pin_offsets
from refdiff.model.synthesis.materials import (
    GOLD,
    TIN,
    Colour,
    Component,
    blank,
    blend,
    disc,
    mix,
    paint,
    place,
    quad,
    rounded,
    write,
)
from refdiff.model.synthesis.parts.drawing import Part, Rng, grain_noise, jitter, table

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


def random_component(rng: Rng, kind: str, x: float, y: float, u: float, angle: float) -> Component:
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


def _layout(design: Rng, w: int, h: int, u: float, box: tuple[float, float, float, float]) -> list[Component]:
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


def circuit(design: Rng, inst: Rng, h: int, w: int, u: float) -> Part:
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
    mat = blank(h, w, colour, grain_noise(inst, h, w, 0.018, 0.015, 60 * u), gloss=0.22)
    background = table(design, colour)
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
    part.components = [jitter(inst, c, u) for c in parts if c not in spots]
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
