"""Bottles: outline, liquid, cap and label."""

from __future__ import annotations

import numpy as np

from refdiff.model.synthesis.materials import (
    Component,
    blank,
    hsv,
)
from refdiff.model.synthesis.parts.drawing import Part, Rng, grain_noise, jitter


def bottle(design: Rng, inst: Rng, h: int, w: int, u: float) -> Part:
    glass = hsv(
        float(design.choice([0.35, 0.1, 0.55, 0.0])),
        float(design.uniform(0.0, 0.35)),
        float(design.uniform(0.7, 0.95)),
    )
    drink = hsv(
        float(design.choice([0.08, 0.0, 0.13, 0.3, 0.6])),
        float(design.uniform(0.4, 0.9)),
        float(design.uniform(0.25, 0.85)),
    )
    background = hsv(0.6, 0.05, float(design.choice([0.06, 0.97])))
    cx, big = (w - 1) / 2, float(min(h, 1.6 * w))
    top, bottom = (h - big) / 2 + 0.04 * big, (h + big) / 2 - 0.04 * big
    length = bottom - top
    body, neck = float(design.uniform(0.15, 0.21)) * big, float(design.uniform(0.055, 0.085)) * big
    shoulder = float(design.uniform(0.24, 0.36))
    waist = float(design.choice([0.0, 0.0, 0.12]))
    f = ((np.arange(h) - top) / length).astype(np.float64)
    blend_in = np.clip((f - 0.6 * shoulder) / (0.75 * shoulder), 0, 1)
    radius = neck + (body - neck) * (3 * blend_in**2 - 2 * blend_in**3)
    radius *= 1 - waist * np.exp(-np.square((f - 0.68) / 0.07))
    foot = np.clip((1 - f) / 0.035, 0, 1)
    radius *= 0.88 + 0.12 * np.sqrt(foot)
    radius[(f < 0.05) | (f > 1)] = 0
    grain = grain_noise(inst, h, w, 0.006, 0.012, 70 * u)
    mat = blank(h, w, glass, grain, gloss=0.0)
    c0, c1 = max(0, int(cx - body - 2)), min(w, int(cx + body + 3))
    x = np.arange(c0, c1, dtype=np.float32)[None] - np.float32(cx)
    rad = np.maximum(radius, 1e-3)[:, None].astype(np.float32)
    q = np.clip(x / rad, -1, 1)
    mat.cover[:, c0:c1] = np.clip(rad - np.abs(x) + 0.5, 0, 1) * (radius > 0)[:, None]
    # clear wall: dark where one looks along it, two window reflections, thick base
    q2 = q * q
    tone = 1 - np.float32(0.6) * q2 * q2 * q2 - np.float32(0.12) * q2
    tone *= 1 - 0.45 * np.exp(-np.square((f - 0.985) / 0.02))[:, None].astype(np.float32)
    mat.albedo[:, c0:c1] *= tone[..., None]
    part = Part("bottle", u, mat, background)
    level = top + length * (float(design.uniform(0.2, 0.4)) + float(inst.normal(0, 0.004)))
    liquid = Component(
        "liquid",
        cx,
        (level + bottom) / 2,
        2 * body,
        bottom - 0.03 * length - level,
        0,
        int(design.integers(2)),
        drink,
    )
    sticker_h = float(design.uniform(0.2, 0.32)) * length
    sticker_y = top + length * float(design.uniform(0.62, 0.72))
    sticker = Component(
        "sticker",
        cx,
        sticker_y,
        1.9 * body * (1 - waist * 0.9),
        sticker_h,
        0,
        int(design.integers(1000)),
        hsv(float(design.random()), 0.1, 0.93),
    )
    cap = Component(
        "cap",
        cx,
        top + 0.045 * length,
        2.3 * neck,
        0.09 * length,
        0,
        int(design.integers(1000)),
        hsv(float(design.random()), 0.8, float(design.uniform(0.3, 0.8))),
    )
    part.components = [liquid, jitter(inst, sticker, u, 0.5, 0.4), jitter(inst, cap, u, 0.25, 0.3)]
    # what is round stays round under the label: two window reflections and dark flanks lie over everything
    streak = 0.35 * np.exp(-np.square((q + 0.62) / 0.07)) + 0.2 * np.exp(-np.square((q - 0.7) / 0.05))
    streak *= ((f > 0.1) & (f < 0.95))[:, None]
    grain[:, c0:c1] *= (1 - np.float32(0.3) * q2 * np.abs(q)) * (1 + streak)
    return part
