"""Woven fabrics."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import F32
from refdiff.model.synthesis.materials import (
    Material,
    clouds,
    hsv,
    mix,
)
from refdiff.model.synthesis.parts.drawing import Part, Rng

# over/under pattern per weave: 1 = warp (vertical yarn) on top
_WEAVES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((1, 0), (0, 1)),  # plain
    ((1, 1, 0), (0, 1, 1), (1, 0, 1)),  # twill 2/1
    ((1, 1, 0, 0), (0, 1, 1, 0), (0, 0, 1, 1), (1, 0, 0, 1)),  # twill 2/2
    ((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1), (0, 0, 1, 1)),  # basket
    ((1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),  # satin
)


def weave(design: Rng, inst: Rng, h: int, w: int, u: float) -> Part:
    pattern = np.array(_WEAVES[int(design.integers(len(_WEAVES)))], bool)
    pitch_x, pitch_y = (float(v) * u for v in design.uniform(6.0, 13.0) * design.uniform(0.85, 1.15, 2))
    hue, value = float(design.random()), float(design.uniform(0.15, 0.9))
    warp_colour = hsv(hue, float(design.uniform(0, 0.6)), value)
    weft_colour = mix(
        warp_colour,
        hsv(float(design.random()), 0.5, float(design.uniform(0.2, 0.9))),
        float(design.choice([0.05, 0.25, 0.8])),
    )
    nx, ny = int(w / pitch_x) + 3, int(h / pitch_y) + 3
    stripe = max(2, int(design.integers(3, 14)))
    striped = design.random() < 0.35

    def yarns(n: int, pitch: float, length: int) -> tuple[NDArray, NDArray, F32]:
        """Index and position -1..1 across the yarn for each pixel, and centres; yarns are unevenly spaced."""
        edges = np.cumsum(np.maximum(pitch * (1 + 0.06 * inst.standard_normal(n + 1)), 0.5 * pitch))
        edges -= 1.5 * pitch
        at = np.arange(length)
        index = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, n - 1)
        lo, hi = edges[index], edges[index + 1]
        return (
            index,
            (2 * (at - lo) / (hi - lo) - 1).astype(np.float32),
            ((edges[1:] + edges[:-1]) / 2).astype(np.float32),
        )

    ix, px, cx = yarns(nx, pitch_x, w)
    iy, py, cy = yarns(ny, pitch_y, h)
    over = pattern[iy[:, None] % pattern.shape[0], ix[None] % pattern.shape[1]]
    # round yarns that dive under their crossings: high in mid float, low at its ends
    round_x = np.sqrt(np.clip(1 - 0.9 * px**2, 0, 1)).astype(np.float32)[None]
    round_y = np.sqrt(np.clip(1 - 0.9 * py**2, 0, 1)).astype(np.float32)[:, None]
    crown_y = np.sqrt(np.clip(1 - 0.55 * py**2, 0, 1)).astype(np.float32)[:, None]
    crown_x = np.sqrt(np.clip(1 - 0.55 * px**2, 0, 1)).astype(np.float32)[None]
    top = np.where(over, round_x * crown_y, round_y * crown_x).astype(np.float32)
    height = top * np.float32(0.33 * min(pitch_x, pitch_y))
    # per yarn colour: dye and twist differ a little from yarn to yarn, and between goods
    tone_x = (1 + 0.045 * inst.standard_normal(nx)).astype(np.float32)[ix]
    tone_y = (1 + 0.045 * inst.standard_normal(ny)).astype(np.float32)[iy]
    if striped:
        tone_x = tone_x * np.where((ix // stripe) % 2, 0.62, 1.0).astype(np.float32)
    tone = np.where(over, tone_x[None], tone_y[:, None]) * (0.45 + 0.55 * top)
    albedo = np.where(over[..., None], np.asarray(warp_colour, np.float32), np.asarray(weft_colour, np.float32))
    albedo *= tone[..., None]
    # slubs: clouds stretched along the yarns
    fibre = cv2.resize(inst.standard_normal((h // 10 + 2, w // 2 + 1), dtype=np.float32), (w, h))
    across = cv2.resize(inst.standard_normal((h // 2 + 1, w // 10 + 2), dtype=np.float32), (w, h))
    grain = np.where(over, fibre, across).astype(np.float32) * np.float32(0.07)
    grain += clouds(inst, h, w, 110 * u) * np.float32(0.03)
    grain += 1
    # the cloth is never laid straight
    amp = 0.16 * min(pitch_x, pitch_y)
    dx, dy = clouds(inst, h, w, 55 * u) * np.float32(amp), clouds(inst, h, w, 55 * u) * np.float32(amp)
    map_x = np.arange(w, dtype=np.float32)[None] - dx
    map_y = np.arange(h, dtype=np.float32)[:, None] - dy
    stacked = np.dstack([albedo, height])
    moved = cv2.remap(stacked, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    planes = [np.full((h, w), v, np.float32) for v in (0.06, 1.0)]
    mat = Material(
        np.ascontiguousarray(moved[..., :3], np.float32),
        np.ascontiguousarray(moved[..., 3], np.float32),
        planes[0],
        planes[1],
        grain,
    )
    part = Part("weave", u, mat, (0.03, 0.03, 0.03))
    part.yarns, part.displacement = (cx, cy), (dx, dy)
    return part
