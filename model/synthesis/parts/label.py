"""Printed labels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.synthesis.materials import (
    Colour,
    blank,
    blend,
    disc,
    hsv,
    paint,
    rounded,
    text_mask,
    write,
)
from refdiff.model.synthesis.parts.drawing import Part, Rng, grain_noise, table

_WORDS = [
    "pure",
    "natural",
    "organic",
    "fresh",
    "daily",
    "strong",
    "classic",
    "light",
    "original",
    "mild",
    "extra",
    "premium",
    "rapid",
    "quality",
]


def label(design: Rng, inst: Rng, h: int, w: int, u: float) -> Part:
    dark = design.random() < 0.25
    hue = float(design.random())
    paper = hsv(hue, 0.35, 0.2) if dark else hsv(hue, float(design.uniform(0, 0.14)), float(design.uniform(0.86, 0.97)))
    ink = (0.92, 0.9, 0.82) if dark else hsv(float(design.random()), 0.6, 0.16)
    accent = hsv(float(design.random()), float(design.uniform(0.5, 0.9)), float(design.uniform(0.45, 0.85)))
    mat = blank(h, w, paper, grain_noise(inst, h, w, 0.012, 0.012, 80 * u), gloss=float(design.choice([0.05, 0.3])))
    x0, y0 = (float(v) * u for v in design.uniform(8, 30, 2))
    x1, y1 = w - 1 - x0, h - 1 - y0
    paint(mat, rounded(x0, y0, x1, y1, float(design.choice([0, 8, 24])) * u), cover=1.0, rise=1.2)
    part = Part("label", u, mat, table(design, paper), paper=paper)
    # each print pass sits a little off its place on each sheet, and its ink is a little thicker or thinner
    off = {name: inst.normal(0, 0.45 * u, 2) for name in ("ink", "accent")}
    density = {name: float(inst.uniform(0.9, 1.0)) for name in off}

    def ink_box(px: NDArray, colour: Colour, layer: str) -> None:
        paint(mat, px + off[layer], colour, alpha=density[layer])

    bw, bh = x1 - x0, y1 - y0
    top = design.random() < 0.7
    banner = (y0, y0 + 0.2 * bh) if top else (y1 - 0.2 * bh, y1)
    ink_box(np.array([(x0, banner[0]), (x1, banner[0]), (x1, banner[1]), (x0, banner[1])]), accent, "accent")
    name = "".join(design.choice(list("AEIOULNRSTKM"), size=int(design.integers(4, 7))))
    size = min(0.105 * bh, 0.75 * bw / len(name))
    by = (banner[0] + banner[1]) / 2
    part.prints.append(
        write(
            mat,
            name,
            w / 2 + off["ink"][0],
            by + off["ink"][1],
            size,
            0,
            int(design.integers(4)),
            colour=(0.97, 0.97, 0.95) if sum(accent) < 1.7 else (0.08, 0.08, 0.1),
            alpha=density["ink"],
        )
    )
    # the rest in a grid of cells: logo, text, codes
    gy0, gy1 = (banner[1] + 6 * u, y1 - 6 * u) if top else (y0 + 6 * u, banner[0] - 6 * u)
    rows, cols = 2 + int(gy1 - gy0 > 170 * u), 2
    cells = [
        (
            x0 + 10 * u + c * (bw - 20 * u) / cols,
            gy0 + r * (gy1 - gy0) / rows,
            (bw - 20 * u) / cols,
            (gy1 - gy0) / rows,
        )
        for r in range(rows)
        for c in range(cols)
    ]
    kinds = ["barcode", "logo", *design.choice(["text", "text", "grid", "table"], size=len(cells) - 2)]
    for (cx, cy, cw, ch), what in zip(cells, design.permutation(kinds), strict=True):
        px, py = cx + 0.06 * cw, cy + 0.06 * ch
        pw, ph = 0.86 * cw, 0.86 * ch
        ox, oy = off["ink"]
        if what == "barcode":
            ph = min(ph, 0.6 * pw)
            edges = np.cumsum(design.choice([1.0, 1.0, 2.0, 3.0], size=61))
            edges = px + edges / edges[-1] * pw
            for a, b in zip(edges[0::2], edges[1::2], strict=False):
                ink_box(np.array([(a, py), (b, py), (b, py + 0.82 * ph), (a, py + 0.82 * ph)]), ink, "ink")
            digits = "".join(str(d) for d in design.integers(0, 10, 12))
            write(mat, digits, px + pw / 2 + ox, py + 0.93 * ph + oy, min(6 * u, pw / 11), colour=ink)
        elif what == "logo":
            mx, my, r = px + pw / 2, py + ph / 2, 0.42 * min(pw, ph)
            n = int(design.integers(3, 8))
            t = np.arange(2 * n) * np.pi / n + float(design.uniform(0, 6))
            star = (
                np.stack([np.cos(t), np.sin(t)], 1)
                * np.where(np.arange(2 * n) % 2, design.uniform(0.4, 0.9), 1.0)[:, None]
            )
            ink_box(disc(mx, my, r), accent, "accent")
            ink_box((mx, my) + star * 0.8 * r, paper, "ink")
            ink_box(disc(mx, my, 0.25 * r), ink, "ink")
            px, py, pw, ph = mx - r, my - r, 2 * r, 2 * r
        elif what == "grid":
            side = min(pw, ph)
            n = 15
            bits = (design.random((n, n)) < 0.5).astype(np.uint8) * 255
            bits[:5, :5] = bits[:5, -5:] = bits[-5:, :5] = 255
            bits[1:4, 1:4] = bits[1:4, -4:-1] = bits[-4:-1, 1:4] = 0
            mask = np.asarray(cv2.resize(bits, (round(side), round(side)), interpolation=cv2.INTER_NEAREST))
            blend(mat, mask, round(px + ox), round(py + oy), colour=ink, alpha=density["ink"])
            pw = ph = side
        else:
            lines = int(design.integers(4, 8))
            lh = ph / lines
            for i in range(lines):
                words = " ".join(design.choice(_WORDS, size=3))
                size = min(0.5 * lh, 7.5 * u)
                mask = text_mask(words, size, int(what == "table") * 2)[:, : int(pw)]
                blend(mat, mask, round(px + ox), round(py + i * lh + oy), colour=ink, alpha=density["ink"])
                if what == "table":
                    yy = py + (i + 0.9) * lh
                    ink_box(
                        np.array([(px, yy), (px + pw, yy), (px + pw, yy + 0.8 * u), (px, yy + 0.8 * u)]),
                        ink,
                        "ink",
                    )
        part.prints.append((px, py, px + pw, py + ph))
    return part
