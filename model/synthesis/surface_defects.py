"""Painted defects of a surface: one brush per type, and the table of them all.

What a brush is and its units are in brush.py; pieces that go missing are in component_defects.py.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from refdiff.model.defect_types import COMPONENT_TYPES, DifferenceType
from refdiff.model.images import F32, U8
from refdiff.model.synthesis.brush import (
    Job,
    Patch,
    cover,
    fractal,
    framed,
    grain,
    grain_of,
    line,
    lump,
    placed,
    smooth,
    tint,
    walk,
    warped,
)
from refdiff.model.synthesis.component_defects import (
    added_component,
    misplaced_component,
    missing_component,
    wrong_component,
)

# --- surface defects --------------------------------------------------------------------------------------------------


def scratch(job: Job) -> Patch | None:
    """A fine line that tapers at its ends, at times several in parallel, with a lit or shaded edge."""
    rng = job.rng
    path = walk(rng, job.spot(), job.size, rng.uniform(0, 1.2), rng.choice([0.0, 0.08, 0.25]))
    width = job.unit * float(rng.uniform(0.5, 1.3) if job.chance(0.7) else rng.uniform(1.3, 3.0))
    copies = int(rng.integers(2, 5)) if job.chance(0.25) else 1
    window, x0, y0, path = framed(job, path, 4 + 3 * width * copies)
    h, w = window.shape[:2]
    change = job.change(window, colour=0.1, dark=0.4)
    taper = np.sin(np.linspace(0.3 if job.chance(0.6) else 1.4, np.pi - 0.3, len(path)))
    spread = job.unit * rng.uniform(2, 6)
    alpha, shadow = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    side = rng.normal(0, 1, 2)
    side /= max(1e-6, float(np.hypot(*side)))
    for _ in range(copies):
        off = rng.normal(0, spread, 2) if copies > 1 else np.zeros(2)
        lo, hi = sorted(rng.uniform(0, 1, 2)) if copies > 1 else (0.0, 1.0)
        part = slice(int(lo * (len(path) - 3)), max(int(lo * (len(path) - 3)) + 3, int(hi * len(path))))
        alpha = np.maximum(alpha, line(path[part] + off, width * taper[part], h, w))
        shadow = np.maximum(shadow, line(path[part] + off + side * max(1.0, width), width, h, w))
    if job.chance(0.5):  # pressed harder here than there
        alpha *= np.clip(0.75 + 0.7 * fractal(rng, h, w, max(4.0, job.size / 4)), 0.05, 1)
    new = window.astype(np.float32) + alpha[..., None] * change
    if job.chance(0.4):
        new -= (shadow * (1 - alpha))[..., None] * change * np.float32(rng.uniform(0.2, 0.7))
    return Patch(x0, y0, new)


def crack(job: Job) -> Patch | None:
    """A jagged dark line with branches, at times with a lifted lip that catches the light."""
    rng = job.rng
    trunk = walk(rng, job.spot(), job.size, 0.5, rng.uniform(0.35, 0.8))
    width = job.unit * float(rng.uniform(0.5, 1.6))
    window, x0, y0, trunk = framed(job, trunk, 4 + 0.25 * job.size)
    h, w = window.shape[:2]
    alpha = line(trunk, width * np.linspace(1.2, 0.4, len(trunk)), h, w)
    for _ in range(int(rng.integers(0, 4)) if job.size > 12 else 0):
        branch = walk(rng, (0, 0), job.size * rng.uniform(0.1, 0.4), 0.6, 0.6)
        branch = branch - branch[0] + trunk[int(rng.integers(len(trunk)))]
        alpha = np.maximum(alpha, line(branch, width * np.linspace(0.8, 0.3, len(branch)), h, w))
    change = job.change(window, colour=0.05, dark=0.9)
    new = window.astype(np.float32) + alpha[..., None] * change
    if job.chance(0.35):  # the lifted lip catches the light
        shift = np.array([[1, 0, rng.choice([-1, 1])], [0, 1, rng.choice([-1, 1])]], np.float32)
        lip = np.asarray(cv2.warpAffine(alpha, shift, (w, h)), np.float32)
        new -= (lip * (1 - alpha))[..., None] * change * np.float32(rng.uniform(0.2, 0.5))
    return Patch(x0, y0, new)


def dent(job: Job) -> Patch | None:
    """A shallow bowl: its slopes are shaded by one lamp, and what lies on it is bent."""
    rng, (x, y) = job.rng, job.spot()
    size = max(job.size, 5.0)
    bowl = lump(rng, size * 0.8, soft=float(rng.uniform(0.5, 1.0)), rough=0.15, slim=0.3)
    bowl = np.pad(bowl, max(2, int(size * 0.15)))
    bowl = np.asarray(cv2.GaussianBlur(bowl, (0, 0), max(0.7, size * 0.06)), np.float32)
    window, x0, y0, bowl = placed(job, bowl, x, y)
    if min(bowl.shape) < 3:
        return None
    gx = np.asarray(cv2.Sobel(bowl, cv2.CV_32F, 1, 0), np.float32)
    gy = np.asarray(cv2.Sobel(bowl, cv2.CV_32F, 0, 1), np.float32)
    light = rng.uniform(0, 2 * np.pi)
    slope = gx * np.float32(np.cos(light)) + gy * np.float32(np.sin(light))
    slope /= max(1e-6, float(np.abs(slope).max()))
    shade = slope - np.float32(rng.uniform(0, 0.5)) * bowl
    if job.chance(0.4):  # a highlight on the slope that faces the lamp
        shade += np.float32(rng.uniform(0.4, 1.2)) * np.clip(slope, 0, 1) ** 4
    peak = np.float32(job.peak(window))
    pull = np.float32((0.3 + job.contrast) * 0.12 * size) / np.float32(max(1e-6, np.hypot(gx, gy).max()))
    bent = warped(window, gx * pull, gy * pull) if job.chance(0.6) else window.astype(np.float32)
    level = np.float32(max(20.0, *cv2.mean(window)[:3]))
    # what turns from the lamp gets less of its own colour, what turns to it gleams
    dimmer = np.maximum(np.minimum(shade, 0) * peak / level, -0.9)[..., None]
    return Patch(x0, y0, bent * (1 + dimmer) + (np.maximum(shade, 0) * peak)[..., None])


def stain(job: Job) -> Patch | None:
    """A blot of another tone with a soft or a dried, darker rim."""
    rng, (x, y) = job.rng, job.spot()
    alpha = lump(rng, job.size, soft=float(rng.uniform(0.15, 1.0)), rough=float(rng.uniform(0.2, 0.9)), slim=0.3)
    window, x0, y0, alpha = placed(job, alpha, x, y)
    h, w = alpha.shape
    ring = np.asarray(cv2.GaussianBlur(alpha, (0, 0), max(0.8, 0.06 * job.size)), np.float32)
    if job.chance(0.3) and job.size > 8:  # dried: the rim is the strongest
        alpha = np.clip(0.45 * alpha + 2.2 * ring * (1 - ring), 0, 1)
    else:
        alpha = alpha * np.clip(0.8 + 0.5 * fractal(rng, h, w, max(3.0, job.size / 3)), 0.2, 1)
    change = job.change(window, colour=0.5, dark=0.75)
    return Patch(x0, y0, tint(window, alpha, change))


def contamination(job: Job) -> Patch | None:
    """Foreign matter: a particle, a fibre or a sprinkling of dust."""
    rng = job.rng
    x, y = job.spot()
    style = rng.choice(["particle", "fibre", "dust"], p=[0.5, 0.25, 0.25])
    if style == "fibre" and job.size > 8:
        return _fibre(job, x, y)
    if style == "dust" and job.size > 12:
        return _dust(job, x, y)
    alpha = lump(rng, job.size, soft=float(rng.uniform(0.08, 0.3)), rough=float(rng.uniform(0.1, 0.8)), slim=0.4)
    if job.chance(0.35) and job.size > 4:  # cut straight: a chip of metal or plastic
        n = alpha.shape[0]
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * job.size / 2 * rng.uniform(0.6, 1, (len(angles), 1))
        canvas = np.zeros((n, n), np.uint8)
        cv2.fillPoly(canvas, [np.round((corners + n // 2) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        alpha = canvas.astype(np.float32) / np.float32(255)
    pad = max(1, int(0.15 * job.size))
    window, x0, y0, alpha = placed(job, np.pad(alpha, pad), x, y)
    if min(alpha.shape) < 3:
        return None
    change = job.change(window, colour=0.5, dark=0.5)
    colour = np.asarray(cv2.mean(window)[:3], np.float32) + change
    shift = max(1.0, 0.08 * job.size)
    turn = rng.uniform(0, 2 * np.pi)
    move = np.array([[1, 0, shift * np.cos(turn)], [0, 1, shift * np.sin(turn)]], np.float32)
    cast = np.asarray(cv2.warpAffine(alpha, move, alpha.shape[::-1]), np.float32)
    old = window.astype(np.float32)
    texture = 1 - job.contrast * float(rng.uniform(0.4, 0.95))
    if job.chance(0.5):  # it stands up, so it throws a shadow and has a lit side
        old = old * (1 - np.float32(0.35 * (0.2 + 0.8 * job.contrast)) * (cast * (1 - alpha))[..., None])
        lit = (alpha - cast)[..., None] * np.float32(0.4 * np.abs(change).max())
        return Patch(x0, y0, cover(old, alpha, colour, texture) + lit * alpha[..., None])
    return Patch(x0, y0, cover(old, alpha, colour, texture))


def _fibre(job: Job, x: int, y: int) -> Patch:
    rng = job.rng
    path = walk(rng, (x, y), job.size * rng.uniform(1.0, 1.8), rng.uniform(1, 5), rng.uniform(0.1, 0.5))
    width = job.unit * float(rng.uniform(0.5, 1.6))
    window, x0, y0, path = framed(job, path, 4 + width)
    h, w = window.shape[:2]
    alpha = line(path, width, h, w)
    change = job.change(window, colour=0.5)
    new = window.astype(np.float32)
    if job.chance(0.5):
        shadow = line(path + rng.uniform(-2.5, 2.5, 2), width * 1.3, h, w)
        shadow = np.asarray(cv2.GaussianBlur(shadow, (0, 0), 0.9), np.float32)
        new *= 1 - np.float32(0.4 * (0.2 + job.contrast)) * (shadow * (1 - alpha))[..., None]
    return Patch(x0, y0, cover(new, alpha, np.asarray(cv2.mean(window)[:3], np.float32) + change, 0.6))


def _dust(job: Job, x: int, y: int) -> Patch:
    rng = job.rng
    window, x0, y0 = job.window(x, y, job.size, job.size)
    h, w = window.shape[:2]
    scale = 3
    canvas = np.zeros((h * scale, w * scale), np.uint8)
    for _ in range(int(rng.integers(3, 30))):
        centre = np.array([w, h]) * scale * np.clip(rng.normal(0.5, 0.18, 2), 0.03, 0.97)
        axes = scale * job.unit * rng.uniform(0.4, 1.0) * np.exp(rng.normal(0, 0.4, 2))
        level = int(rng.integers(120, 256))
        c, a = np.round(centre * 16).astype(int), np.round(axes * 16).astype(int)
        cv2.ellipse(
            canvas,
            (int(c[0]), int(c[1])),
            (int(a[0]), int(a[1])),
            float(rng.uniform(0, 180)),
            0,
            360,
            level,
            -1,
            cv2.LINE_AA,
            4,
        )
    alpha = np.asarray(cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)
    return Patch(x0, y0, window.astype(np.float32) + alpha[..., None] * job.change(window, colour=0.2, dark=0.35))


def hole(job: Job) -> Patch | None:
    """A dark pit, at times with a rim that faces the light."""
    rng, (x, y) = job.rng, job.spot()
    alpha = lump(rng, job.size * 0.85, soft=float(rng.uniform(0.05, 0.3)), rough=float(rng.choice([0.0, 0.1, 0.3])))
    wide = np.asarray(cv2.GaussianBlur(np.pad(alpha, 2), (0, 0), max(0.8, 0.05 * job.size)), np.float32)
    window, x0, y0, wide = placed(job, wide, x, y)
    _, _, _, alpha = placed(job, np.pad(alpha, 2), x, y)
    h, w = alpha.shape
    change = job.change(window, colour=0.1, dark=0.85)
    depth = alpha * np.clip(0.9 + 0.3 * fractal(rng, h, w, max(3.0, job.size)), 0.5, 1.1)
    new = cover(window, depth, np.asarray(cv2.mean(window)[:3], np.float32) + change, 0.95 - 0.9 * job.contrast)
    if job.chance(0.7):
        rim = np.clip(wide * 2, 0, 1) * (1 - alpha)
        light = rng.uniform(0, 2 * np.pi)
        gx = np.linspace(-1, 1, w, dtype=np.float32)[None, :] * np.float32(np.cos(light))
        gy = np.linspace(-1, 1, h, dtype=np.float32)[:, None] * np.float32(np.sin(light))
        facing = np.clip(gx + gy + np.float32(rng.uniform(-0.3, 0.8)), -0.3, 1)
        new -= (rim * facing)[..., None] * change * np.float32(rng.uniform(0.3, 0.7))
    return Patch(x0, y0, new)


def chip(job: Job) -> Patch | None:
    """A piece broken off: at the part's rim the background takes its place, elsewhere two facets of a break show."""
    rng = job.rng
    x, y = job.spot()
    at_edge = False
    if job.foreground is not None:
        rim = job.foreground & (cv2.erode(job.foreground.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
        rim[0], rim[-1], rim[:, 0], rim[:, -1] = False, False, False, False
        places = np.flatnonzero(rim)
        if len(places):
            y, x = divmod(int(places[int(rng.integers(len(places)))]), job.w)
            at_edge = True
    size = max(job.size, 3.0) * (1.2 if at_edge else 1.0)
    n = int(np.ceil(size / 2 + 3)) * 2 + 1
    count = int(rng.integers(5, 12))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(-0.25, 0.25, count)
    corners = np.stack([np.cos(angles), np.sin(angles)], 1) * size / 2 * rng.uniform(0.6, 1, (count, 1))
    corners[:, 1] *= rng.uniform(0.5, 1)

    def polygon(scale: float) -> F32:
        canvas = np.zeros((n, n), np.uint8)
        cv2.fillPoly(canvas, [np.round((corners * scale + n // 2) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return canvas.astype(np.float32) / np.float32(255)

    window, x0, y0, outer = placed(job, polygon(1.0), x, y)
    _, _, _, inner = placed(job, polygon(float(rng.uniform(0.6, 0.9))), x, y)
    if at_edge and job.foreground is not None:
        solid = job.foreground[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]]
        if solid.all() or not solid.any():
            return None
        behind = np.median(window[~solid], 0).astype(np.float32)
        part = solid.astype(np.float32)
        broken = window.astype(np.float32)
        broken += (outer * part)[..., None] * job.change(window, colour=0.1, dark=0.3)  # the fracture's face
        gone = behind + grain(rng, window, *part.shape) - broken
        return Patch(x0, y0, broken + (inner * part)[..., None] * gone * np.float32(0.15 + 0.85 * job.contrast))
    change = job.change(window, colour=0.1, dark=0.4)
    turn = rng.uniform(0, 2 * np.pi)  # two facets of a shell-shaped break
    gx = (np.arange(outer.shape[1], dtype=np.float32)[None, :] + x0 - x) * np.float32(np.cos(turn))
    gy = (np.arange(outer.shape[0], dtype=np.float32)[:, None] + y0 - y) * np.float32(np.sin(turn))
    facet = np.where(gx + gy > size * rng.uniform(-0.15, 0.15), np.float32(1), np.float32(rng.uniform(-0.5, 0.6)))
    facet = np.asarray(cv2.blur(facet, (3, 3)), np.float32)
    return Patch(x0, y0, window + (outer * (0.5 * facet + 0.5 * inner * facet))[..., None] * change)


def discoloration(job: Job) -> Patch | None:
    """An area whose level, hue or saturation is off, soft or with straight edges."""
    rng, (x, y) = job.rng, job.spot()
    if job.chance(0.3) and job.size > 10:  # a sharp-edged area: a strip, a covered place
        n = int(job.size)
        alpha = np.zeros((n + 4, n + 4), np.float32)
        box = (
            (n / 2 + 2, n / 2 + 2),
            (n * 0.7, n * rng.uniform(0.15, 0.7)),
            rng.choice([0.0, 90.0, rng.uniform(0, 180)]),
        )
        cv2.fillPoly(alpha, [np.round(cv2.boxPoints(box)).astype(np.int32)], 1.0)
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.6, 1 + 0.04 * n)), np.float32)
    else:
        alpha = lump(rng, job.size, soft=float(rng.uniform(0.1, 1.2)), rough=float(rng.uniform(0.2, 1.0)), slim=0.3)
    window, x0, y0, alpha = placed(job, alpha, x, y)
    old = window.astype(np.float32)
    peak = np.float32(job.peak(window) * 0.8)
    style = "level" if job.grey else rng.choice(["level", "hue", "tint", "fade"])
    if style == "hue":
        turned = old[..., rng.permutation([1, 2, 0])] - old
    elif style == "fade":
        turned = old.mean(2, keepdims=True) - old
    else:
        turned = np.broadcast_to(job.change(window, colour=1.0 if style == "tint" else 0.0), old.shape)
    strength = float(np.abs((turned * alpha[..., None]).mean((0, 1))).max() / max(1e-6, float(alpha.mean())))
    if strength < 4:  # nothing to fade in a grey place
        return Patch(x0, y0, tint(window, alpha, job.change(window, colour=1.0)))
    return Patch(x0, y0, old + alpha[..., None] * turned * np.minimum(np.float32(1), peak / np.float32(strength)))


def deformation(job: Job) -> Patch | None:
    """A place that is swirled, pinched, pushed or wavy: pixels move, none are new."""
    rng = job.rng
    size = max(job.size, 6.0)
    x, y = job.busy_spot(size)
    window, x0, y0 = job.window(x, y, size * 1.1 + 2, size * 1.1 + 2)
    h, w = window.shape[:2]
    dx = (np.arange(w, dtype=np.float32)[None, :] + x0 - x) / np.float32(size / 2)
    dy = (np.arange(h, dtype=np.float32)[:, None] + y0 - y) / np.float32(size / 2)
    bump = smooth(1 - np.sqrt(dx * dx + dy * dy))
    reach = np.float32(min(1.0 + job.contrast * 0.22 * size, 0.3 * size) * rng.choice([-1, 1]))
    style = rng.choice(["swirl", "pinch", "push", "wave"])
    if style == "swirl":
        ox, oy = -dy * bump * reach * 1.4, dx * bump * reach * 1.4
    elif style == "pinch":
        ox, oy = dx * bump * reach * 1.2, dy * bump * reach * 1.2
    elif style == "push":
        turn = rng.uniform(0, 2 * np.pi)
        ox, oy = bump * reach * np.float32(np.cos(turn)), bump * reach * np.float32(np.sin(turn))
    else:
        ox, oy = (bump * reach * fractal(rng, h, w, max(4.0, size / 3), 1) * np.float32(1.6) for _ in range(2))
    return Patch(x0, y0, warped(window, ox, oy))


# --- textures and print -----------------------------------------------------------------------------------------------


def grain_direction(window: U8) -> float:
    """Direction (rad) along which a window changes least (structure tensor)."""
    g = window[..., 1].astype(np.float32)
    gx, gy = np.asarray(cv2.Sobel(g, cv2.CV_32F, 1, 0)), np.asarray(cv2.Sobel(g, cv2.CV_32F, 0, 1))
    across = 0.5 * np.arctan2(2 * float((gx * gy).mean()), float((gx * gx).mean() - (gy * gy).mean()))
    return float(across + np.pi / 2)


def _along(window: U8, x: float, y: float, angle: float) -> tuple[F32, F32]:
    """Window coordinates (u along `angle`, v across) from the point (x, y) of the window."""
    h, w = window.shape[:2]
    px = np.arange(w, dtype=np.float32)[None, :] - np.float32(x)
    py = np.arange(h, dtype=np.float32)[:, None] - np.float32(y)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return px * c + py * s, py * c - px * s


def broken_yarn(job: Job) -> Patch | None:
    """A yarn that slid, is pulled aside, missing or doubled, along the grain of the cloth."""
    rng, (x, y) = job.rng, job.spot()
    size = max(job.size, 6.0)
    probe, _, _ = job.window(x, y, 40 * job.unit, 40 * job.unit)
    angle = grain_direction(probe) + (np.pi / 2 if job.chance(0.3) else 0.0)
    pad = 8 * job.unit
    window, x0, y0 = job.window(x, y, abs(np.cos(angle)) * size + 2 * pad, abs(np.sin(angle)) * size + 2 * pad)
    u, v = _along(window, x - x0, y - y0, angle)
    half = np.float32(size / 2)
    run = smooth((half - np.abs(u)) / np.float32(max(1.5, 0.15 * size)))
    width = np.float32(job.unit * rng.uniform(0.7, 2.2))
    strip = run * np.exp(-((v / width) ** 2))
    style = rng.choice(["shifted", "pulled", "missing", "double"])
    peak = job.peak(window)
    change = job.change(window, colour=0.1, dark=0.6)
    reach = np.float32((1.0 + 3.0 * job.contrast) * job.unit)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    old = window.astype(np.float32)
    if style == "shifted":  # the yarn slid along its length
        offset = run * np.float32(rng.uniform(2, 5) * job.unit)
        new = warped(window, offset * c, offset * s)
        new = old + np.exp(-((v / width) ** 4))[..., None] * run[..., None] * (new - old) * np.float32(
            0.4 + 0.6 * job.contrast
        )
    elif style == "pulled":  # drawn aside, its neighbours bunch up
        offset = (
            run * reach * np.exp(-((v / (3 * width)) ** 2)) * np.sin(u * np.float32(np.pi * rng.uniform(0.5, 2)) / half)
        )
        new = warped(window, -offset * s, offset * c)
    elif style == "double":
        new = warped(window, -s * 2 * width * strip, c * 2 * width * strip)
    else:
        new = old
    weight = np.float32(1.0 if style == "missing" else rng.uniform(0.3, 0.9))
    if style == "missing" and peak > 14:  # the gap shows what is under the cloth: flat
        flat = np.asarray(cv2.blur(window, (5, 5)), np.float32)
        new = new + strip[..., None] * (flat - new) * np.float32(0.7)
    return Patch(x0, y0, new + strip[..., None] * change * weight)


def uneven_dye(job: Job) -> Patch | None:
    """A bar or a cloud of weaker or stronger dye."""
    rng, (x, y) = job.rng, job.spot()
    window, x0, y0 = job.window(x, y, job.size * 1.2 + 4, job.size * 1.2 + 4)
    h, w = window.shape[:2]
    if job.chance(0.5):  # a bar, straight and mostly along the machine
        angle = rng.choice([0.0, np.pi / 2]) if job.chance(0.6) else rng.uniform(0, np.pi)
        u, v = _along(window, x - x0, y - y0, float(angle))
        half = np.float32(job.size / 2)
        width = max(1.0, job.size * float(rng.uniform(0.06, 0.4)) / 2)
        soft = max(1.0, width * float(rng.uniform(0.2, 1.0)))
        alpha = smooth((np.float32(width + soft / 2) - np.abs(v)) / np.float32(soft))
        alpha = alpha * smooth((half - np.abs(u)) / np.float32(max(1.0, 0.25 * job.size)))
        alpha *= np.clip(0.85 + 0.4 * fractal(rng, h, w, max(4.0, job.size / 2)), 0.3, 1)
    else:
        cloud = fractal(rng, h, w, max(4.0, job.size / 1.5)) + np.float32(0.1)
        u, v = _along(window, x - x0, y - y0, 0.0)
        fade = smooth(1.15 - np.asarray(np.hypot(u, v), np.float32) / np.float32(job.size / 2 + 1))
        alpha = np.clip(cloud * 2.5, 0, 1) * fade
    change = job.change(window, colour=0.4, dark=0.6) * np.float32(0.75)
    floor = np.float32(6.5 / max(1.0, float(np.abs(change).max())))  # a tenth of the peak would not be seen
    return Patch(x0, y0, tint(window, alpha, change * max(np.float32(1), floor)))


def texture_change(job: Job) -> Patch | None:
    """An area with another texture: of a donor, blurred, shuffled, turned or noisy."""
    rng, (x, y) = job.rng, job.spot()
    shape = lump(
        rng, max(4.0, job.size), soft=float(rng.uniform(0.1, 0.4)), rough=float(rng.uniform(0.1, 0.7)), slim=0.4
    )
    window, x0, y0, alpha = placed(job, shape, x, y)
    h, w = alpha.shape
    if min(h, w) < 3:
        return None
    old = window.astype(np.float32)
    new: F32
    style = rng.choice(["donor", "blur", "shuffle", "turned", "noise"])
    if style == "noise":
        noise = fractal(rng, h, w, float(rng.uniform(2, 8)), 2) * np.float32(2.0 * job.peak(window))
        new = old + noise[..., None]
    elif style == "blur" and grain_of(window) > 4:
        k = int(rng.integers(1, 4)) * 2 + 1
        new = np.asarray(cv2.blur(window, (k, k)), np.float32)
    elif style == "shuffle" and min(h, w) > 6:
        cell = max(2.0, min(h, w) / 8)
        jump = np.float32(cell * (0.5 + 1.5 * job.contrast))
        new = warped(window, jump * fractal(rng, h, w, cell, 1) * 2, jump * fractal(rng, h, w, cell, 1) * 2)
    elif style == "turned":
        n = min(h, w)
        square = np.rot90(window[:n, :n], int(rng.integers(1, 4)))
        new = np.asarray(cv2.resize(np.ascontiguousarray(square), (w, h)), np.float32)
    else:
        source = job.donor
        sh, sw = min(h, source.shape[0]), min(w, source.shape[1])
        sx, sy = int(rng.integers(source.shape[1] - sw + 1)), int(rng.integers(source.shape[0] - sh + 1))
        cut = source[sy : sy + sh, sx : sx + sw]
        new = np.asarray(cv2.resize(cut, (w, h)), np.float32)
    inside = alpha > 0.5
    if inside.any() and (job.contrast < 0.6 or style in ("turned", "shuffle")):  # texture differs, the level does not
        level = np.asarray(old[inside].mean(0) - new[inside].mean(0), np.float32)
        new = new + level * np.float32(1 - 0.5 * job.contrast)
    strength = min(1.0, 0.35 + 0.9 * job.contrast)
    gap = float(np.abs(new - old)[inside].mean()) if inside.any() else 0.0
    if gap < 5:  # nothing here to blur or to turn
        new = old + fractal(rng, h, w, 4.0, 2)[..., None] * np.float32(3.0 * job.peak(window))
    elif gap * strength < 6:
        strength = min(1.0, 6 / gap)
    return Patch(x0, y0, old + alpha[..., None] * np.float32(strength) * (new - old))


def print_defect(job: Job) -> Patch | None:
    """Print that is smeared, doubled, cut by a strip, faded or blotted; a mark where there is no print."""
    rng = job.rng
    size = max(job.size, 5.0)
    x, y = job.busy_spot(size)
    style = rng.choice(["smear", "ghost", "strip", "fade", "blot"])
    window, x0, y0 = job.window(x, y, size + 6, size + 6)
    h, w = window.shape[:2]
    old = window.astype(np.float32)
    grey = window[..., 1]
    dark_print = float(np.median(grey)) > float(grey.mean())  # the print is what is rare
    angle = float(rng.choice([0.0, np.pi / 2])) if job.chance(0.7) else float(rng.uniform(0, np.pi))
    u, v = _along(window, x - x0, y - y0, angle)
    half = np.float32(size / 2)
    slim = half * np.float32(rng.uniform(0.12, 1.0)) + 1
    alpha = smooth((half - np.abs(u)) / np.float32(2)) * smooth((slim - np.abs(v)) / np.float32(2))
    reach = max(2, int((0.1 + 0.3 * job.contrast) * size))
    strength = np.float32(0.35 + 0.65 * job.contrast)
    if style in ("smear", "ghost"):
        dx, dy = np.cos(angle) * reach, np.sin(angle) * reach
        steps = (1.0,) if style == "ghost" else (0.2, 0.4, 0.6, 0.8, 1.0)
        new = old
        for t in steps:
            move = np.array([[1, 0, dx * t], [0, 1, dy * t]], np.float32)
            moved = np.asarray(cv2.warpAffine(window, move, (w, h), borderMode=cv2.BORDER_REPLICATE), np.float32)
            mark = np.minimum(new, moved) if dark_print else np.maximum(new, moved)
            new = new + (mark - new) * np.float32(0.5 if style == "ghost" else 1 - 0.7 * t)
    elif style == "blot":
        spot = lump(rng, size, soft=0.15, rough=0.6, slim=0.3)
        window, x0, y0, alpha = placed(job, spot, x, y)
        ink = np.percentile(window.reshape(-1, 3), 4 if dark_print else 96, axis=0).astype(np.float32)
        return Patch(x0, y0, cover(window, alpha * strength, ink, 0.2))
    else:
        k = 2 * int(np.clip(2.5 * job.unit, 1, 9)) + 1
        how = cv2.MORPH_CLOSE if dark_print else cv2.MORPH_OPEN
        new = np.asarray(cv2.morphologyEx(window, how, np.ones((2 * k + 1, 2 * k + 1), np.uint8)), np.float32)
        if style == "fade":
            alpha = alpha * np.clip(0.6 + fractal(rng, h, w, max(3.0, size / 3)), 0, 1)
    gap = float(np.abs((new - old) * alpha[..., None]).max())
    if gap < 8:  # no print here: lay some down
        return Patch(x0, y0, tint(window, alpha, job.change(window, colour=0.3)))
    return Patch(x0, y0, old + alpha[..., None] * strength * (new - old))


Brush = Callable[[Job], Patch | None]
# brush, how often it is drawn on parts, how often on textures
KINDS: dict[DifferenceType, tuple[Brush, float, float]] = {
    "scratch": (scratch, 1.5, 1.0),
    "crack": (crack, 1.2, 1.0),
    "dent": (dent, 0.8, 0.5),
    "stain": (stain, 1.2, 1.2),
    "contamination": (contamination, 1.5, 1.5),
    "hole": (hole, 1.0, 1.0),
    "chip": (chip, 1.0, 0.4),
    "discoloration": (discoloration, 1.0, 1.0),
    "deformation": (deformation, 1.0, 0.8),
    "missing_component": (missing_component, 1.2, 0.4),
    "added_component": (added_component, 1.0, 0.7),
    "wrong_component": (wrong_component, 1.0, 0.4),
    "misplaced_component": (misplaced_component, 1.0, 0.3),
    "broken_yarn": (broken_yarn, 0.2, 1.5),
    "uneven_dye": (uneven_dye, 0.3, 0.8),
    "texture_change": (texture_change, 0.8, 1.0),
    "print_defect": (print_defect, 0.8, 0.5),
}
# may change pixels off the part: they move its outline, or lie where it is not
UNBOUND = COMPONENT_TYPES | {"chip", "deformation"}
