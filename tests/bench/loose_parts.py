"""Parts that lie loosely, to be counted, in the `mvtec` layout: python tests/bench/loose_parts.py

Equal clips and screws on a plain ground, at random places and angles, under another light in every photo. Good photos show
the right number of each kind; in a bad one a part is missing, extra, or of the other kind. The same seed draws the same
photos. There are no masks: nothing lies in a certain place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from bench_data import MANIFEST
from numpy.typing import NDArray
from PIL import Image

_FINE = 4  # drawn at so many times the size, then reduced: no jagged edges


@dataclass(frozen=True)
class LooseProduct:
    """counts: of clips and of screws in a good photo. wrong: of which a bad photo has another number; None: of any."""

    name: str
    counts: tuple[int, int]
    wrong: int | None = None


PRODUCTS = (
    LooseProduct("loose_clips", (6, 0)),
    LooseProduct("loose_mixed", (5, 3)),
    LooseProduct("loose_single", (5, 1), wrong=1),
)
WRONG = ("missing", "extra", "wrong_kind")


def _clip(length: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A U of bent wire: (H, W) brightness and mask."""
    side = round(1.4 * length)
    mask = np.zeros((side, side), np.uint8)
    c, half, wide = side / 2, length / 2, length / 4
    points = np.array([[c + half, c - wide], [c - half, c - wide], [c - half, c + wide], [c + half * 0.6, c + wide]])
    cv2.polylines(mask, [np.round(points).astype(np.int32)], False, 255, round(length / 7), cv2.LINE_AA)
    shade = 120 + 90 * cv2.GaussianBlur(mask, (0, 0), length / 30).astype(np.float32) / 255
    return shade.astype(np.uint8), mask


def _screw(length: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A head and a threaded shaft: (H, W) brightness and mask."""
    side = round(1.4 * length)
    mask, shade = np.zeros((side, side), np.uint8), np.full((side, side), 90, np.uint8)
    c, half, head, shaft = side / 2, length / 2, length / 5, length / 11
    left, right = round(c - half), round(c + half)
    cv2.rectangle(mask, (left, round(c - shaft)), (right, round(c + shaft)), 255, -1)
    for x in range(left, right, max(2, round(length / 14))):
        cv2.line(shade, (x, round(c - shaft)), (x + round(length / 24), round(c + shaft)), 160, round(length / 40) + 1)
    cv2.circle(mask, (left, round(c)), round(head), 255, -1, cv2.LINE_AA)
    cv2.circle(shade, (left, round(c)), round(head), 140, -1)
    cv2.line(shade, (round(left - head / 2), round(c)), (round(left + head / 2), round(c)), 50, round(length / 24))
    return shade, mask


def photo(counts: tuple[int, int], rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8: so many clips and screws, none touching another."""
    length, fine = 0.17 * size * _FINE, size * _FINE
    drawings = [_clip(length)] * counts[0] + [_screw(length)] * counts[1]
    ground = np.float32([104, 112, 118]) + rng.normal(0, 3, 3).astype(np.float32)
    coarse = cv2.resize(rng.normal(0, 5, (24, 24)).astype(np.float32), (fine, fine), interpolation=cv2.INTER_CUBIC)
    image = ground + coarse[..., None]
    taken = np.zeros((fine, fine), np.uint8)
    side = round(1.45 * length)  # of the window that holds a part at any angle
    reach = np.ones((round(length / 5),) * 2, np.uint8)
    for shade, mask in drawings:
        middle = shade.shape[0] / 2
        while True:
            x, y = (int(v) for v in rng.integers(0, fine - side, 2))
            turn = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 360), 1.0)
            turn[:, 2] += side / 2 - middle
            here, at = cv2.warpAffine(mask, turn, (side, side)), (slice(y, y + side), slice(x, x + side))
            if not (cv2.dilate(here, reach) & taken[at]).any():
                break
        taken[at] |= here
        shadow = cv2.GaussianBlur(np.roll(here, round(length / 25), (0, 1)), (0, 0), length / 40)
        below = image[at] * (1 - 0.35 * (shadow.astype(np.float32) / 255)[..., None])
        part = cv2.warpAffine(shade, turn, (side, side)).astype(np.float32) * rng.uniform(0.92, 1.08)
        alpha = (here.astype(np.float32) / 255)[..., None]
        image[at] = (1 - alpha) * below + alpha * part[..., None]
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.08, 0.08, 2)
    light = rng.uniform(0.9, 1.1) * (1 + slope[0] * across[:, None] + slope[1] * across)
    noisy = small * light[..., None] + rng.normal(0, 1.5, small.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _wrong(product: LooseProduct, how: str, rng: np.random.Generator) -> tuple[int, int]:
    """The counts of a bad photo."""
    found = list(product.counts)
    kind = product.wrong
    if kind is None:
        kind = int(rng.integers(2)) if product.counts[1] else 0
    if how != "extra":
        found[kind] -= 1
    if how != "missing":
        found[kind if how == "extra" else 1 - kind] += 1
    return found[0], found[1]


def draw(product: LooseProduct, out: Path, *, seed: int, good: int, bad: int, size: int) -> None:
    """Write `out/<product>`: half of the good photos to enrol, half to test."""
    rng = np.random.default_rng([seed, *product.name.encode()])
    for i in range(good + bad):
        kind = "good" if i < good else WRONG[i % len(WRONG)]
        counts = product.counts if kind == "good" else _wrong(product, kind, rng)
        place = out / product.name / ("train" if i < good // 2 else "test") / kind / f"{i:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(counts, rng, size)).save(place)
    manifest = {"product": product.name, "licence": "drawn by this project", "seed": seed, "size": size,
                "counts": {"good": good, "defective": bad}}  # fmt: skip
    (out / product.name / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Where the products are laid out.")] = Path("bench-data"),
    seed: Annotated[int, typer.Option(help="Draws everything.")] = 0,
    good: Annotated[int, typer.Option(min=4, help="Good photos a product, half of them to enrol.")] = 80,
    bad: Annotated[int, typer.Option(min=3, help="Bad photos a product.")] = 45,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the photos, px.")] = 512,
) -> None:
    """Draw loose parts for `refdiff evaluate`."""
    for product in PRODUCTS:
        draw(product, out, seed=seed, good=good, bad=bad, size=size)
        print(f"{out / product.name}: {good} good, {bad} bad")


if __name__ == "__main__":
    typer.run(main)
