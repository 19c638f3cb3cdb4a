"""Defects of cloth: a yarn that is gone for a length, dye that took unevenly."""

from __future__ import annotations

import cv2
import numpy as np

from refdiff.model.errors import InputError
from refdiff.model.synthesis.defect_brushes.job import Job, Painted, ribbon
from refdiff.model.synthesis.materials import blend, clouds, hsv, mix, paint


def broken_yarn(job: Job) -> Painted:
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
        ribbon(path, width),
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
                ribbon(end + curl, 0.18 * pitch),
                light,
                rise=0.15 * pitch,
                alpha=0.3 + 0.6 * job.spec.contrast,
            )
    return path, width


def uneven_dye(job: Job) -> Painted:
    """A cloud where the dye is thinner or thicker; the weave stays."""
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
