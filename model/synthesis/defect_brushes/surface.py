"""Defects of any surface: scratch, crack, dent, stain, blob, hole, and a piece broken out of the rim."""

from __future__ import annotations

import cv2
import numpy as np

from refdiff.model.synthesis.defect_brushes.job import Job, Painted, lump, ribbon
from refdiff.model.synthesis.materials import blend, exact_mask, hsv, mix, paint


def scratch(job: Job) -> Painted:
    """A thin line of one contrasting colour, nearly straight."""
    path = job.line(0.0, 0.5)
    width = job.ss * (job.spec.width_px or float(job.rng.uniform(0.8, 2.2)))
    x, y = path[len(path) // 2]
    # no groove in the height: its slopes would be lit beyond the scratch's ends
    mask, ox, oy = exact_mask(ribbon(path, width))
    blend(job.mat, mask, ox, oy, colour=job.contrasting(x, y), gloss=0.5, alpha=0.9)
    return path, width


def crack(job: Job) -> Painted:
    """A jagged dark line that sinks in, with up to two short side branches."""
    path = job.line(0.45, 0.3)
    width = job.ss * (job.spec.width_px or float(job.rng.uniform(0.8, 1.6)))
    x, y = path[len(path) // 2]
    colour = job.contrasting(x, y)
    paint(job.mat, ribbon(path, width), colour, rise=-1.2 * width * job.spec.contrast, gloss=0.0)
    for _ in range(int(job.rng.integers(0, 3))):  # side branches belong to the mask, not to the length
        k = int(job.rng.integers(len(path) // 4, max(len(path) // 4 + 1, 3 * len(path) // 4)))
        a = job.rng.uniform(0, 2 * np.pi)
        tip = path[k] + 0.12 * job.size * np.array([np.cos(a), np.sin(a)])
        paint(job.mat, ribbon(np.linspace(path[k], tip, 5), 0.7 * width), colour, gloss=0.0)
    return path, width


def dent(job: Job) -> Painted:
    """A smooth hollow, or a bump in a fifth of the cases: it shows by its shading alone."""
    x, y = job.spot(0.3 * job.size)
    depth = job.size * (0.03 + 0.16 * job.spec.contrast)
    sign = -1.0 if job.rng.random() < 0.8 else 1.0
    outline = lump(job.rng, x, y, 0.72 * job.size, 0.1)
    paint(job.mat, outline, rise=sign * depth, soft=0.13 * job.size)
    return None, None


def stain(job: Job) -> Painted:
    """A soft-edged tint, darker at the rim of what dried."""
    x, y = job.spot(0.3 * job.size)
    tint = hsv(float(job.rng.choice([0.08, 0.1, 0.6, 0.0])), 0.5, 0.25)
    here = job.colour_at(x, y)
    target = tint if abs(np.mean(here) - np.mean(tint)) > 0.15 else (0.75, 0.7, 0.6)
    alpha = min(0.9, 0.9 * job.strength / max(0.2, abs(float(np.mean(here) - np.mean(target)))))
    outline = lump(job.rng, x, y, 0.85 * job.size, 0.35)
    paint(job.mat, outline, target, soft=max(0.6, 0.06 * job.size), alpha=0.75 * alpha)
    paint(job.mat, outline, target, soft=max(0.4, 0.02 * job.size), alpha=0.35 * alpha)
    return None, None


def blob(job: Job) -> Painted:
    """A raised drop of foreign matter with a sharp edge and some gloss."""
    x, y = job.spot(0.3 * job.size)
    rise = 0.1 * job.size * job.spec.contrast
    paint(
        job.mat,
        lump(job.rng, x, y, 0.95 * job.size, 0.3),
        job.contrasting(x, y),
        rise=rise,
        gloss=0.4,
        soft=max(0.4, 0.03 * job.size),
    )
    return None, None


def hole(job: Job) -> Painted:
    """A hole through the part: the table shows where the contrast is strong."""
    x, y = job.spot(0.5 * job.size)
    outline = lump(job.rng, x, y, job.size, 0.12)
    here, table = np.mean(job.colour_at(x, y)), np.mean(job.part.background)
    open_ = min(1.0, (job.strength + 0.1) / max(0.12, abs(float(here - table))))
    paint(job.mat, outline, job.contrasting(x, y), rise=-1.5, gloss=0.0, alpha=0.5)
    middle = outline.mean(0)
    paint(job.mat, middle + (outline - middle) * 0.85, cover=0.0, alpha=open_)
    return None, None


def edge_nibble(job: Job) -> Painted:
    """A piece broken out of the part's rim."""
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
    grown = lump(job.rng, x, y, 2.3 * r, 0.3)
    paint(job.mat, grown, mix(job.colour_at(x, y), (0.9, 0.9, 0.85), 0.5 * job.strength), rise=-1.5, alpha=0.8)
    paint(job.mat, (x, y) + (grown - (x, y)) * 0.87, cover=0.0, alpha=0.35 + 0.65 * job.spec.contrast)
    return None, None
