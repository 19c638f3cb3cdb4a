"""Synthetic defects and nuisances for training a reference-conditioned difference: good photo in, pair out.

`add_defect` paints one defect and says which pixels it changed; `nuisance` and `jitter` change what two photos of the
same good part may differ in. Any image size, uint8 RGB in and out, the input is never written to; the same generator
state gives the same result. A grey image (R = G = B) stays grey. The brushes are in surface_defects.py and
component_defects.py.

`python -m refdiff.model.synthesis.photo_pairs --sheet FILE` draws an example sheet on rendered parts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.model.defect_types import COMPONENT_TYPES, DifferenceType
from refdiff.model.errors import InputError
from refdiff.model.images import F32, RgbImage
from refdiff.model.synthesis.brush import Job, Patch, filled, fractal
from refdiff.model.synthesis.materials import PART_KINDS
from refdiff.model.synthesis.render import render
from refdiff.model.synthesis.surface_defects import KINDS, UNBOUND

SYNTHETIC_TYPES: tuple[DifferenceType, ...] = tuple(KINDS)

_VISIBLE_LEVELS = 4.0
_MIN_AREA_PX = 6
_ATTEMPTS = 4


@dataclass(frozen=True)
class SyntheticDefect:
    """A painted defect. Farther than 4 px from the mask the image is the input."""

    image: RgbImage  # (H, W, 3) uint8
    mask: NDArray[np.bool_]  # (H, W) bool: changed by 4 grey levels or more, small gaps closed
    type: DifferenceType
    structural: bool  # a piece is missing, added, swapped or moved


def is_grey(image: RgbImage) -> bool:
    """Whether R = G = B everywhere."""
    return bool(np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2]))


def add_defect(
    image: RgbImage,
    rng: np.random.Generator,
    *,
    kind: DifferenceType | None = None,
    foreground: NDArray[np.bool_] | None = None,
    donor: RgbImage | None = None,
    contrast: float | None = None,
    size: float | None = None,
) -> SyntheticDefect | None:
    """Paint one defect on an (H, W, 3) uint8 image; None when it would not be visible (try again).

    kind: one of SYNTHETIC_TYPES, None = random, by what fits the image. foreground (H, W) bool: the part, default
    foreground_of(image); nine of ten defects lie on it. donor: an image to cut from. contrast 0 just visible .. 1
    obvious, None = random, mostly subtle. size: extent as a fraction of the short side, None = log-uniform from 0.01 to
    0.4. Raises InputError for an unknown kind or an image of another form.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"Image of shape {image.shape}, {image.dtype}: synthesis needs (H, W, 3) uint8.")
    if kind is not None and kind not in KINDS:
        raise InputError(f"Unknown synthetic defect {kind!r}: use one of {', '.join(SYNTHETIC_TYPES)}.")
    part = foreground_of(image) if foreground is None else foreground
    on_texture = bool(part.all())
    name = kind
    if name is None:
        weights = np.array([texture if on_texture else parts for _, parts, texture in KINDS.values()])
        name = SYNTHETIC_TYPES[int(rng.choice(len(weights), p=weights / weights.sum()))]
    extent = float(np.exp(rng.uniform(np.log(0.01), np.log(0.4)))) if size is None else size
    grey = is_grey(image)
    other = image if donor is None else donor
    if grey and donor is not None:
        other = np.repeat(cv2.cvtColor(donor, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)
    level = float(rng.beta(1.1, 1.8)) if contrast is None else float(np.clip(contrast, 0, 1))
    for _ in range(_ATTEMPTS):
        job = Job(
            image,
            rng,
            None if on_texture or not part.any() else part,
            other,
            level,
            max(3.0, extent * min(image.shape[:2])),
            bool(rng.random() < 0.9),
            grey,
        )
        patch = KINDS[name][0](job)
        if patch is not None and (made := _compose(job, patch, name)) is not None:
            return made
    return None


def _compose(job: Job, patch: Patch, name: DifferenceType) -> SyntheticDefect | None:
    """The image with the patch in it, where it is visible; None where that is under 6 px."""
    h, w = patch.pixels.shape[:2]
    here = (slice(patch.y0, patch.y0 + h), slice(patch.x0, patch.x0 + w))
    old = job.image[here].astype(np.float32)
    change = np.clip(np.rint(patch.pixels), 0, 255) - old
    if job.foreground is not None and job.on_part and name not in UNBOUND:
        change = np.rint(change * cv2.blur(job.foreground[here].astype(np.float32), (3, 3))[..., None])
    changed = (np.abs(change).max(2) >= _VISIBLE_LEVELS).astype(np.uint8)
    if int(changed.sum()) < _MIN_AREA_PX:
        return None
    # closed on a frame: at a window's rim the closing would only dilate
    mask = cv2.morphologyEx(np.pad(changed, 2), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))[2:-2, 2:-2]
    near = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    fade = np.asarray(cv2.blur(near.astype(np.float32), (5, 5)), np.float32)  # 1 on the mask, 0 from 5 px off it
    image = job.image.copy()
    image[here] = np.clip(np.rint(old + change * fade[..., None]), 0, 255).astype(np.uint8)
    full = np.zeros(image.shape[:2], bool)
    full[here] = mask > 0
    return SyntheticDefect(image, full, name, name in COMPONENT_TYPES)


def break_off(image: RgbImage, rng: np.random.Generator, foreground: NDArray[np.bool_]) -> SyntheticDefect | None:
    """Break a piece off the part, from a corner to nearly half of it: the background takes its place.

    foreground (H, W) bool: the part. None where the image shows no background, or where nothing would be seen.
    """
    share = float(foreground.mean())
    if not 0.03 < share < 0.9:
        return None
    h, w = foreground.shape
    angle = float(rng.uniform(0, 2 * np.pi))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    ragged = fractal(rng, h, w, 0.08 * min(h, w)) * float(rng.uniform(0, 0.03)) * min(h, w)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + ragged
    part = float(np.exp(rng.uniform(np.log(0.015), np.log(0.45))))
    gone = foreground & (along > np.quantile(along[foreground], 1 - part))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(gone.astype(np.uint8))
    if len(stats) < 2:
        return None
    if rng.random() < 0.5:  # an arm of several
        gone = labels == 1 + int(rng.integers(len(stats) - 1))
    rim = np.ones((7, 7), np.uint8)
    filling = filled(rng, image, cv2.dilate(foreground.astype(np.uint8), rim) > 0)
    alpha = cv2.GaussianBlur(
        cv2.dilate(gone.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32), (0, 0), 0.8
    )
    new = image + alpha[..., None] * (filling - image)
    out = np.clip(np.rint(new), 0, 255).astype(np.uint8)
    mask = np.abs(out.astype(np.int16) - image).max(2) >= _VISIBLE_LEVELS
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    if int(mask.sum()) < _MIN_AREA_PX:
        return None
    large = float(gone.sum()) > 0.06 * float(foreground.sum())
    return SyntheticDefect(out, mask, "missing_component" if large else "chip", large)


def sway(image: RgbImage, rng: np.random.Generator, *, max_shift_px: float = 2.0) -> RgbImage:
    """A smooth change of shape within tolerance, as between two good castings or two painted eyes; not a defect."""
    h, w = image.shape[:2]
    n = int(rng.integers(3, 8))
    grid = rng.standard_normal((2, n, n), dtype=np.float32) * np.float32(rng.uniform(0.2, 0.6) * max_shift_px)
    dx, dy = (cv2.resize(g, (w, h), interpolation=cv2.INTER_CUBIC) for g in grid)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    return np.asarray(cv2.remap(image, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def foreground_of(image: RgbImage) -> NDArray[np.bool_]:
    """Rough mask (H, W) of the part: what differs from a flat background that most of the border shows; all True where
    there is none (textures, parts that fill the frame)."""
    h, w = image.shape[:2]
    everything = np.ones((h, w), bool)
    shrink = max(1.0, max(h, w) / 192)
    sh, sw = max(8, round(h / shrink)), max(8, round(w / shrink))
    small = np.asarray(cv2.resize(image, (sw, sh), interpolation=cv2.INTER_AREA), np.uint8)
    edge = np.ones((sh, sw), bool)
    m = max(2, min(sh, sw) // 40)
    edge[m:-m, m:-m] = False
    fine = cv2.absdiff(small[..., 1], cv2.blur(small[..., 1], (5, 5)))
    if np.median(fine[edge]) > max(2.5, 0.6 * float(fine[~edge].mean())):
        return everything  # a texture runs to the border
    small = np.asarray(cv2.GaussianBlur(small, (3, 3), 0), np.uint8)
    away_by, off = _from_background(small, edge)
    tolerance = float(np.clip(3.5 * np.median(off), 9, 25))
    if (off < tolerance).mean() < 0.55:
        return everything
    away = (away_by > tolerance).astype(np.uint8)
    away = np.asarray(cv2.morphologyEx(away, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)), np.uint8)
    away = np.asarray(cv2.morphologyEx(away, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    outlines, _ = cv2.findContours(away, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(c) for c in outlines]
    keep = [c for c, a in zip(outlines, areas, strict=True) if a > 0.05 * max(areas)]
    part = np.zeros((sh, sw), np.uint8)
    cv2.drawContours(part, keep, -1, 255, -1)
    share = float((part > 0).mean())
    # a plain surface with a few marks on it is all part; a part is one thing with an extent
    if not 0.04 < share < 0.97 or len(keep) > 12:
        return everything
    return np.asarray(cv2.resize(part, (w, h), interpolation=cv2.INTER_LINEAR) > 127, np.bool_)


def _from_background(small: RgbImage, edge: NDArray[np.bool_]) -> tuple[F32, F32]:
    """Distance (h, w) in grey levels from the background, a plane per channel through most of the border; and the
    border's own."""
    sh, sw = small.shape[:2]
    ys, xs = np.nonzero(edge)
    ys, xs = ys[::3], xs[::3]
    terms = np.stack([np.ones(len(ys)), xs / sw, ys / sh], 1)
    colours = small[ys, xs].astype(np.float64)
    plane = np.stack([np.median(colours, 0), np.zeros(3), np.zeros(3)])
    for _ in range(3):  # what is far from the plane is part that touches the border
        off = np.abs(colours - terms @ plane).max(1)
        near = off <= max(6.0, 2.5 * float(np.median(off)))
        plane = np.linalg.lstsq(terms[near], colours[near], rcond=None)[0]
    plane = plane.astype(np.float32)
    x = np.arange(sw, dtype=np.float32)[None, :, None] / np.float32(sw)
    y = np.arange(sh, dtype=np.float32)[:, None, None] / np.float32(sh)
    away = np.abs(small - (plane[0] + x * plane[1] + y * plane[2])).max(2)
    return away, away[edge]


def nuisance(image: RgbImage, rng: np.random.Generator, strength: float = 1.0) -> RgbImage:
    """The same part in another photo: a random subset of exposure, gamma, contrast, white balance, light gradient, soft
    reflections and shadows, highlights, vignette, defocus or sharpening, noise and JPEG. Geometry stays.

    strength 0 = no change, 1 = as between stations.
    """
    if strength <= 0:
        return image.copy()
    h, w = image.shape[:2]
    grey = is_grey(image)

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    x = _tone(image[..., :1] if grey else image, rng, strength)
    if chance(0.5):
        field = _light_field(h, w, rng, strength)
        x = x * field[..., None] if chance(0.7) else x + (field[..., None] - 1) * np.float32(110)
    if chance(0.3):
        x = _glints(x, rng, strength)
    if chance(0.3):
        sigma = float(rng.uniform(0.3, 0.3 + 0.8 * strength)) * max(1.0, min(h, w) / 320)
        soft = np.asarray(cv2.GaussianBlur(x, (0, 0), sigma), np.float32).reshape(x.shape)
        x = soft if chance(0.6) else x + (x - soft) * np.float32(rng.uniform(0.1, 0.8) * strength)
    if chance(0.6):
        read, shot = rng.uniform(0, 2.5) * strength, rng.uniform(0, 0.15) * strength
        noise = rng.standard_normal(x.shape, np.float32)
        x = x + noise * (np.float32(read) + np.float32(shot) * np.sqrt(np.clip(x, 0, 255)))
    out = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    if chance(0.4 * min(1.0, strength)):
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 99))]
        if grey:
            data = cv2.imencode(".jpg", out[..., 0], quality)[1]
            out = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)[..., None]
        else:
            data = cv2.imencode(".jpg", out[..., ::-1], quality)[1]
            out = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    return np.ascontiguousarray(np.repeat(out, 3, axis=2) if grey else out)


def _tone(image: NDArray[np.uint8], rng: np.random.Generator, strength: float) -> F32:
    """Exposure, gamma, contrast and, for colour, white balance: one table of 256 levels a channel."""
    levels = np.linspace(0, 1, 256)
    if rng.random() < 0.5:
        levels = levels * np.exp(rng.normal(0, 0.14) * strength)
    if rng.random() < 0.4:
        levels = np.clip(levels, 0, None) ** np.exp(rng.normal(0, 0.12) * strength)
    if rng.random() < 0.4:
        pivot = float(image[::7, ::7].mean()) / 255
        levels = pivot + (levels - pivot) * np.exp(rng.normal(0, 0.1) * strength)
    warm = rng.random() < 0.4
    channels = image.shape[2]
    table = np.empty((256, channels), np.float32)
    for c in range(channels):
        gain = np.exp(rng.normal(0, 0.05) * strength) if warm and channels == 3 else 1.0
        table[:, c] = levels * gain * 255
    out = np.empty(image.shape, np.float32)
    for c in range(channels):
        out[..., c] = cv2.LUT(np.ascontiguousarray(image[..., c]), np.ascontiguousarray(table[:, c]))
    return out


def _glints(x: F32, rng: np.random.Generator, strength: float) -> F32:
    """Highlights of a glossy surface grow and fade from photo to photo: what is brighter than its surroundings varies."""
    h, w = x.shape[:2]
    unit = max(1.0, min(h, w) / 320)
    level = np.asarray(x.mean(2), np.float32)
    raised = np.clip((level - cv2.blur(level, (int(31 * unit), int(31 * unit)))) / np.float32(40), 0, 1)
    field = fractal(rng, h, w, float(rng.uniform(8, 40)) * unit)
    change = (
        field * cv2.GaussianBlur(raised, (0, 0), 1.5 * unit) * np.float32(rng.uniform(20, 120) * min(1.0, strength))
    )
    return np.asarray(x + change[..., None], np.float32)


def _light_field(h: int, w: int, rng: np.random.Generator, strength: float) -> F32:
    """Gain (h, w) about 1: gradient, wide reflections or shadows, vignette."""
    n = 17  # far coarser than any defect
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    field = np.ones((n, n), np.float32)
    if rng.random() < 0.6:
        turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.18) * strength
        field += np.float32(slope) * (x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn)))
    for _ in range(int(rng.integers(0, 3))):
        cx, cy = rng.uniform(-1.2, 1.2, 2)
        wide, amount = rng.uniform(0.45, 1.0), rng.normal(0, 0.1) * strength
        field += np.float32(amount) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * wide**2)).astype(np.float32)
    if rng.random() < 0.3:
        field *= 1 - np.float32(rng.uniform(0, 0.1) * strength) * (x * x + y * y) / 2
    return np.asarray(cv2.resize(field, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def jitter(
    image: RgbImage,
    rng: np.random.Generator,
    *,
    max_shift_px: float = 2.0,
    max_angle_deg: float = 1.0,
    max_scale: float = 0.01,
) -> tuple[RgbImage, NDArray[np.float64]]:
    """A small change of pose about the image's centre, border replicated; and its matrix (3, 3), old px -> new px."""
    h, w = image.shape[:2]
    angle, scale = rng.uniform(-max_angle_deg, max_angle_deg), 1 + rng.uniform(-max_scale, max_scale)
    m = np.eye(3)
    m[:2] = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), float(angle), float(scale))
    m[:2, 2] += rng.uniform(-max_shift_px, max_shift_px, 2)
    moved = cv2.warpAffine(image, m[:2], (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8), m


def sheet(seed: int = 0, crop: int = 112) -> NDArray[np.uint8]:
    """Example picture (H, W, 3) uint8: a row per kind, per column the same place of a rendered part without the defect,
    its mask outlined, and with it."""
    rng = np.random.default_rng(seed)
    bases = [render(part, seed, 0, noise_sigma=1.0).image for part in PART_KINDS]
    rows = []
    for name in SYNTHETIC_TYPES:
        title = np.full((18, crop, 3), 255, np.uint8)
        text = name.removesuffix("_component") if name in COMPONENT_TYPES else name.replace("_", " ")
        cv2.putText(title, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        strip = [np.rot90(title)]
        for i, good in enumerate(bases):
            made = None
            while made is None or made.mask.sum() < 30:
                size, contrast = float(rng.uniform(0.06, 0.28)), float(rng.uniform(0.25, 1.0))
                made = add_defect(good, rng, kind=name, donor=bases[i - 1], size=size, contrast=contrast)
            marked = good.copy()
            wide = cv2.dilate(made.mask.astype(np.uint8), np.ones((7, 7), np.uint8))
            cv2.drawContours(marked, cv2.findContours(wide, cv2.RETR_EXTERNAL, 2)[0], -1, (255, 40, 40), 1)
            ys, xs = np.nonzero(made.mask)
            x0, y0 = (int(np.clip((v.min() + v.max() - crop) // 2, 0, 320 - crop)) for v in (xs, ys))
            here = (slice(y0, y0 + crop), slice(x0, x0 + crop))
            strip += [marked[here], made.image[here], np.full((crop, 4, 3), 255, np.uint8)]
        rows += [np.concatenate(strip, 1), np.full((4, 18 + len(bases) * (2 * crop + 4), 3), 255, np.uint8)]
    return np.concatenate(rows, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw synthetic defects on rendered parts.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Image.fromarray(sheet(args.seed)).quantize(128).save(args.sheet, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
