"""Components of rendered parts: chips, cans, connectors, screws, caps, stickers, liquids, and their painting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from refdiff.model.synthesis.materials import (
    GOLD,
    TIN,
    Component,
    Material,
    disc,
    hsv,
    mix,
    paint,
    place,
    quad,
    rounded,
    write,
)


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
