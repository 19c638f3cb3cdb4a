"""Moulded shapes with studs and screws."""

from __future__ import annotations

import cv2
import numpy as np

from refdiff.model.synthesis.materials import (
    Component,
    blank,
    blend,
    clouds,
    disc,
    hsv,
    mix,
    paint,
    text_mask,
)
from refdiff.model.synthesis.parts.drawing import Part, Rng, grain_noise, jitter, table


def moulded(design: Rng, inst: Rng, h: int, w: int, u: float) -> Part:
    metal = design.random() < 0.4
    hue = float(design.random())
    colour = (
        hsv(0.6, 0.05, float(design.uniform(0.35, 0.75)))
        if metal
        else hsv(hue, float(design.uniform(0.3, 0.9)), float(design.uniform(0.12, 0.9)))
    )
    grain = grain_noise(inst, h, w, 0.015, 0.02, 50 * u)
    if metal:  # brushed
        brushed = cv2.resize(inst.standard_normal((h, max(2, w // 60)), dtype=np.float32), (w, h))
        grain += brushed * np.float32(0.05)
    mat = blank(h, w, colour, grain, gloss=0.55 if metal else 0.3)
    background = table(design, colour)
    cx, cy, big = w / 2, h / 2, min(w, h) * 0.5
    t = np.linspace(0, 2 * np.pi, 480, endpoint=False)
    shape = int(design.integers(4))
    n = int(design.integers(5, 22))
    if shape == 0:  # gear
        r = 0.80 + 0.1 * np.clip(np.sin(n * t) * 2.2, -1, 1)
    elif shape == 1:  # star or flower
        r = 0.70 + design.uniform(0.1, 0.2) * np.cos(min(n, 8) * t)
    elif shape == 2:  # rounded box
        k = float(design.uniform(3, 9))
        r = 0.78 / (np.abs(np.cos(t)) ** k + np.abs(np.sin(t) * design.uniform(1.0, 1.5)) ** k) ** (1 / k)
    else:  # free form
        r = np.full_like(t, 0.68)
        for i in range(1, 6):
            r += design.uniform(-0.07, 0.07) * np.cos(i * t + design.uniform(0, 6))
    r = np.clip(r * (1 + inst.normal(0, 0.0015)), 0.2, 0.95) * big
    outline = np.stack([cx + r * np.cos(t), cy + r * np.sin(t)], 1)
    solid = np.zeros((h, w), np.uint8)
    cv2.fillPoly(solid, [np.round(outline * 16).astype(np.int32)], (255,), lineType=cv2.LINE_AA, shift=4)
    inner = float(np.min(r))
    ring, count = float(design.uniform(0.45, 0.7)) * inner, int(design.integers(3, 9))
    phase = float(design.uniform(0, 2 * np.pi))
    spots = [
        (cx + ring * np.cos(phase + i * 2 * np.pi / count), cy + ring * np.sin(phase + i * 2 * np.pi / count))
        for i in range(count)
    ]
    room = min(0.24 * inner, ring * np.sin(np.pi / count) * 0.75)
    holes = np.zeros((h, w), np.uint8)
    bore = float(design.choice([0.0, 0.16, 0.24])) * inner
    drilled = [i % int(design.integers(2, 4)) == 0 for i in range(count)]
    for (x, y), is_hole in zip(spots, drilled, strict=True):
        if is_hole:
            cv2.fillPoly(holes, [np.round(disc(x, y, 0.62 * room) * 16).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    if bore:
        cv2.fillPoly(holes, [np.round(disc(cx, cy, bore, n=48) * 16).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    solid = np.minimum(solid, 255 - holes)
    # a bevel round every edge: height grows with the distance from it, then is flat
    dist = cv2.distanceTransform((solid > 127).astype(np.uint8), cv2.DIST_L2, 3)
    bevel = float(design.uniform(4, 14)) * u
    mat.height[:] = bevel * 0.75 * (1 - np.square(1 - np.clip(dist / bevel, 0, 1)))
    mat.height += clouds(inst, h, w, 45 * u) * np.float32(0.25 * u)
    mat.cover[:] = solid.astype(np.float32) / 255
    rim = np.zeros((h, w), np.uint8)
    if design.random() < 0.6:  # a raised or sunken ring
        cv2.circle(rim, (round(cx), round(cy)), round(ring + 1.25 * room), (255,), max(2, round(4 * u)), cv2.LINE_AA)
        blend(
            mat,
            np.minimum(np.asarray(cv2.GaussianBlur(rim, (0, 0), 1.2 * u), np.uint8), solid),
            0,
            0,
            rise=float(design.choice([-3.0, 3.0])) * u,
        )
    y_text = cy + (0.0 if not bore else min(bore + 11 * u, 0.9 * inner))
    word = "".join(design.choice(list("ABDEGHKMRX"), size=2)) + str(int(design.integers(10, 99)))
    mark = text_mask(word, 0.11 * inner, 1)
    blend(
        mat,
        np.asarray(cv2.GaussianBlur(mark, (0, 0), 0.5 * u), np.uint8),
        round(cx - mark.shape[1] / 2),
        round(y_text - mark.shape[0] / 2),
        colour=mix(colour, (0, 0, 0), 0.25),
        rise=-1.6 * u,
    )
    part = Part("moulded", u, mat, background)
    kind = "screw" if design.random() < 0.6 else "stud"
    fitted = [p for p, is_hole in zip(spots, drilled, strict=True) if not is_hole] or [(cx, cy)]
    screw_colour = (0.55, 0.5, 0.42) if metal and np.mean(colour) > 0.5 else (0.68, 0.68, 0.7)
    paintwork = screw_colour if kind == "screw" else mix(colour, (1, 1, 1), 0.3)
    looks = int(design.integers(1000))
    d = max(0.95 * room, 5 * u)
    for x, y in fitted:  # an empty seat shows when a component is missing
        paint(mat, disc(x, y, 0.42 * d), (0.04, 0.04, 0.04), rise=-2.5, gloss=0.0)
    angles = inst.uniform(0, 360, len(fitted)) if kind == "screw" else np.zeros(len(fitted))
    part.components = [
        jitter(inst, Component(kind, x, y, d, d, float(a), looks, paintwork), u, 0.2)
        for (x, y), a in zip(fitted, angles, strict=True)
    ]
    for k in range(24):  # free places for something that does not belong there
        a, rr = k * 2.4, inner * np.sqrt((k + 0.5) / 24) * 0.85
        x, y = cx + rr * np.cos(a), cy + rr * np.sin(a)
        window = solid[max(0, int(y - d / 2)) : int(y + d / 2), max(0, int(x - d / 2)) : int(x + d / 2)]
        if window.size and window.min() > 200 and all(np.hypot(x - p, y - q) > 1.1 * d for p, q in fitted):
            part.spots.append(Component(kind, float(x), float(y), d * 0.8, d * 0.8, 0.0, looks + 1, paintwork))
    return part
