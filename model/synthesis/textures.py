"""Random surfaces without a layout: grained, veined, cellular, speckled, fibrous, latticed. For training on textures.

A *material* is a random process whose parameters are drawn once; every sample of it is another piece of the same surface,
so two samples are a pair without a defect that no registration can bring together.

`python -m refdiff.model.synthesis.textures --sheet FILE` draws an example sheet, one material a column.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from refdiff.model.images import F32, RgbImage

_Field = Callable[[np.random.Generator], F32]  # a sample's own randomness -> (n, n) about 0..1


def random_material(rng: np.random.Generator, n: int) -> Callable[[np.random.Generator], RgbImage]:
    """Draw a material; the function returned draws (n, n, 3) uint8 samples of it."""
    main = _FIELDS[int(rng.integers(len(_FIELDS)))](rng, n)
    second = _FIELDS[int(rng.integers(len(_FIELDS)))](rng, n) if rng.random() < 0.5 else None
    share = float(rng.uniform(0.1, 0.5))
    colours = _colours(rng)
    relief, light = float(rng.uniform(0, 3)) * (rng.random() < 0.5), float(rng.uniform(0, 2 * np.pi))
    grain, drift = float(rng.uniform(0, 0.04)), float(rng.uniform(0, 0.12))
    contrast = float(rng.beta(2, 1.5))

    def sample(own: np.random.Generator) -> RgbImage:
        value = main(own)
        if second is not None:
            value = (1 - share) * value + share * second(own)
        value = 0.5 + (value - 0.5) * contrast + drift * (_noise(own, n, 2.5, 1.0, 0.0) - 0.5)
        at = np.clip(value, 0, 1) * (len(colours) - 1)
        low = np.minimum(at.astype(np.intp), len(colours) - 2)
        part = (at - low)[..., None]
        picture = colours[low] * (1 - part) + colours[low + 1] * part
        if relief:
            dx, dy = cv2.Sobel(value, cv2.CV_32F, 1, 0), cv2.Sobel(value, cv2.CV_32F, 0, 1)
            picture = picture * (1 + relief * 0.25 * (dx * np.cos(light) + dy * np.sin(light)))[..., None]
        picture = picture + own.normal(0, grain, (n, n, 1))
        return np.asarray(np.clip(picture * 255, 0, 255).round(), np.uint8)

    return sample


def _colours(rng: np.random.Generator) -> F32:
    """(2 or 3, 3) float32 0..1: grey, one hue, or any."""
    count = int(rng.integers(2, 4))
    dark, bright = sorted(rng.uniform(0.05, 0.95, 2))
    if bright - dark < 0.15:
        dark, bright = max(0.0, dark - 0.15), min(1.0, bright + 0.15)
    level = np.linspace(dark, bright, count)[:, None]
    if rng.random() < 0.5:
        level = level[::-1]
    draw = rng.random()
    if draw < 0.3:
        return np.repeat(level, 3, 1).astype(np.float32)
    hue = rng.uniform(0.6, 1.0, (1 if draw < 0.8 else count, 3))
    return np.clip(level * hue / hue.max(1, keepdims=True), 0, 1).astype(np.float32)


def _stretched(field: NDArray) -> F32:
    """To 0..1 by its 1 % and 99 % quantiles."""
    low, high = np.quantile(field[::4, ::4], (0.01, 0.99))
    return np.asarray(np.clip((field - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _noise(own: np.random.Generator, n: int, falloff: float, stretch: float, angle: float) -> F32:
    """Noise whose spectrum falls as f ** -falloff, stretched along a direction; 0..1."""
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]
    u = fx * np.cos(angle) + fy * np.sin(angle)
    v = fy * np.cos(angle) - fx * np.sin(angle)
    f = np.sqrt((u * stretch) ** 2 + v**2)
    f[0, 0] = 1
    spectrum = np.fft.rfft2(own.standard_normal((n, n))) * np.maximum(f, 1.5 / n) ** -falloff
    return _stretched(np.fft.irfft2(spectrum, (n, n)))


def _grained(rng: np.random.Generator, n: int) -> _Field:
    """Cloudy, brushed, rough."""
    falloff, angle = float(rng.uniform(0.3, 2.0)), float(rng.uniform(0, np.pi))
    stretch = float(np.exp(rng.uniform(0, np.log(20)))) if rng.random() < 0.6 else 1.0
    return lambda own: _noise(own, n, falloff, stretch, angle)


def _veined(rng: np.random.Generator, n: int) -> _Field:
    """Wood and marble: bands bent by noise."""
    bands, angle = float(rng.uniform(3, 30)), float(rng.uniform(0, np.pi))
    bend, falloff, sharp = float(rng.uniform(0.5, 6)), float(rng.uniform(1.4, 2.2)), float(rng.uniform(0.4, 3))
    stretch = float(rng.uniform(1, 8))
    y, x = np.mgrid[0:n, 0:n] / n
    along = (x * np.cos(angle) + y * np.sin(angle)) * bands

    def field(own: np.random.Generator) -> F32:
        phase = along + bend * _noise(own, n, falloff, stretch, angle + np.pi / 2) + own.uniform(0, 1)
        return np.asarray((0.5 + 0.5 * np.sin(2 * np.pi * phase)) ** sharp, np.float32)

    return field


def _cellular(rng: np.random.Generator, n: int) -> _Field:
    """Leather, pebbles, crystals, mosaic: distance to the borders of cells, or a tone for each."""
    count = int(np.exp(rng.uniform(np.log(40), np.log(3000))))
    squash, angle = float(rng.uniform(1, 3)), float(rng.uniform(0, np.pi))
    border, toned, regular = float(rng.uniform(0.05, 0.6)), rng.random() < 0.4, rng.random() < 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, squash])
    y, x = np.mgrid[0:n, 0:n]
    grid = np.stack([x.ravel(), y.ravel()], 1) @ turn

    def field(own: np.random.Generator) -> F32:
        if regular:
            side = max(2, round(count**0.5))
            steps = np.mgrid[-1 : side + 1, -1 : side + 1].reshape(2, -1).T
            points = (steps + 0.5) * n / side
            points = points + own.normal(0, 0.18 * n / side, points.shape) + own.uniform(0, n / side, 2)
        else:
            points = own.uniform(-0.05 * n, 1.05 * n, (count, 2))
        near, which = cKDTree(points @ turn).query(grid, 2)
        edge = (near[:, 1] - near[:, 0]) / (n / count**0.5)
        value = np.clip(edge / border, 0, 1)
        if toned:
            value = 0.4 * value + 0.6 * own.uniform(0, 1, len(points))[which[:, 0]]
        return np.asarray(value.reshape(n, n), np.float32)

    return field


def _speckled(rng: np.random.Generator, n: int) -> _Field:
    """Granite, terrazzo, foam: round spots of various tones on a ground."""
    density, small, large = float(rng.uniform(0.002, 0.03)), float(rng.uniform(0.5, 2)), float(rng.uniform(2, 9))
    one_tone, soft = rng.random() < 0.5, float(rng.uniform(0, 1.5))

    def field(own: np.random.Generator) -> F32:
        out = np.full((n, n), 0.5 if not one_tone else 0.1, np.float32)
        for _ in range(int(density * n * n / large)):
            x, y = own.uniform(0, n, 2)
            size = small + (large - small) * own.beta(1, 3)
            tone = 0.9 if one_tone else float(own.uniform(0, 1))
            axes = (max(1, round(size)), max(1, round(size * own.uniform(0.5, 1))))
            cv2.ellipse(out, (int(x), int(y)), axes, float(own.uniform(0, 180)), 0, 360, tone, -1, cv2.LINE_AA)
        return np.asarray(cv2.GaussianBlur(out, (0, 0), soft) if soft > 0.3 else out, np.float32)

    return field


def _fibrous(rng: np.random.Generator, n: int) -> _Field:
    """Felt, carpet, paper: many strokes, along one direction or none."""
    count, length = int(np.exp(rng.uniform(np.log(300), np.log(4000)))), float(rng.uniform(8, 60))
    angle, spread, thick = float(rng.uniform(0, np.pi)), float(rng.choice([0.1, 0.4, 3.0])), int(rng.integers(1, 3))

    def field(own: np.random.Generator) -> F32:
        out = np.full((n, n), 0.5, np.float32)
        starts = own.uniform(-0.05 * n, 1.05 * n, (count, 2))
        turns = angle + own.normal(0, spread, count)
        for (x, y), turn, tone in zip(starts, turns, own.uniform(0, 1, count), strict=True):
            end = (int(x + length * np.cos(turn)), int(y + length * np.sin(turn)))
            cv2.line(out, (int(x), int(y)), end, float(tone), thick, cv2.LINE_AA)
        return out

    return field


def _latticed(rng: np.random.Generator, n: int) -> _Field:
    """Mesh, knit, perforated sheet: a repeated motif, its phase and a little wobble differ between samples."""
    period, angle = float(np.exp(rng.uniform(np.log(5), np.log(50)))), float(rng.uniform(0, np.pi))
    aspect, sharp = float(rng.uniform(0.6, 1.6)), float(rng.uniform(1, 8))
    skew, wobble, motif = float(rng.choice([0.0, 0.5])), float(rng.uniform(0, 0.25)), int(rng.integers(3))
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period
    v = (y * np.cos(angle) - x * np.sin(angle)) / (period * aspect)

    def field(own: np.random.Generator) -> F32:
        a = u + own.uniform(0, 1) + wobble * (_noise(own, n, 2.0, 1.0, 0.0) - 0.5)
        b = v + own.uniform(0, 1) + wobble * (_noise(own, n, 2.0, 1.0, 0.0) - 0.5)
        a = a + skew * np.floor(b)
        s, t = np.cos(2 * np.pi * a), np.cos(2 * np.pi * b)
        value = (s * t, np.maximum(s, t), s + t)[motif]
        return np.asarray(1 / (1 + np.exp(-sharp * value)), np.float32)

    return field


_FIELDS = (_grained, _veined, _cellular, _speckled, _fibrous, _latticed)


def sheet(seed: int = 0, materials: int = 12, n: int = 160) -> NDArray[np.uint8]:
    """Examples: one material a column, three samples of it below each other."""
    columns = []
    for i in range(materials):
        material = random_material(np.random.default_rng([seed, i]), n)
        columns.append(np.concatenate([material(np.random.default_rng([seed, i, j])) for j in range(3)]))
    return np.concatenate(columns, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw an example sheet of random surfaces.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    Image.fromarray(sheet(options.seed, n=96)).save(options.sheet)


if __name__ == "__main__":
    main()
