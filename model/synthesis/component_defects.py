"""Structural synthetic defects: a piece of the photo is found, taken out, put elsewhere or swapped for another.

A piece is something that stands out from a window's rim (a component, a print, a hole), else just a cut-out.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from refdiff.model.images import F32, U8
from refdiff.model.synthesis.brush import Job, Patch, filled, lump


@dataclass(frozen=True)
class Piece:
    """Something that stands out of an image."""

    x0: int  # place of its window in the image, px
    y0: int
    window: U8  # (h, w, 3)
    alpha: F32  # (h, w) 0..1
    free: bool  # with an outline of its own; else a mere cut-out


def find_piece(job: Job, source: U8, size: float, rank: float = 1.0, tries: int = 10) -> Piece | None:
    """A piece about `size` px across; of `tries` boxes that at `rank` (1 = the most salient) or the next one in which
    a thing stands free of the rim; if there is none, a cut-out, well inside the part where possible."""
    h, w = source.shape[:2]
    here = source is job.image
    found: list[tuple[float, int, int, int, int]] = []
    for _ in range(tries):
        reach = size * float(np.exp(job.rng.uniform(-0.9, 0.1)))  # of about the size of what is there
        long_, short_ = max(3.0, reach), max(3.0, reach * float(job.rng.uniform(0.4, 1.0)))
        bw, bh = (long_, short_) if job.chance(0.5) else (short_, long_)
        pad = max(2.0, 0.25 * reach)
        fw, fh = min(w, round(bw + 2 * pad)), min(h, round(bh + 2 * pad))
        if here:
            cx, cy = job.spot()
        else:
            cx, cy = int(job.rng.integers(w)), int(job.rng.integers(h))
        x0, y0 = int(np.clip(cx - fw // 2, 0, w - fw)), int(np.clip(cy - fh // 2, 0, h - fh))
        p = int(pad)
        frame = source[y0 : y0 + fh, x0 : x0 + fw]
        mean_in, std_in = cv2.meanStdDev(frame[p : fh - p, p : fw - p])
        rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        mean_rim, std_rim = cv2.meanStdDev(rim[None])
        score = float(np.max(std_in) + 1.5 * np.max(np.abs(mean_in - mean_rim)) - 1.2 * np.max(std_rim))
        found.append((score, x0, y0, fw, fh))
    found.sort()
    wanted = round(rank * (len(found) - 1))
    order = sorted(range(len(found)), key=lambda i: abs(i - wanted))
    for i in order:
        _, x0, y0, fw, fh = found[i]
        frame = source[y0 : y0 + fh, x0 : x0 + fw]
        if (alpha := _outline(frame)) is not None:
            return Piece(x0, y0, frame, alpha, True)
    if here:
        order.sort(key=lambda i: -round(job.share_on_part(*found[i][1:]), 1))
    _, x0, y0, fw, fh = found[order[0]]
    if min(fw, fh) < 5:
        return None
    frame = source[y0 : y0 + fh, x0 : x0 + fw]
    return Piece(x0, y0, frame, _cutout(job.rng, fh, fw, max(2, min(fh, fw) // 6)), False)


def _outline(frame: U8) -> F32 | None:
    """Alpha of the thing in a window: the largest region that differs from the window's rim and does not touch it."""
    full_h, full_w = frame.shape[:2]
    shrink = max(1.0, max(full_h, full_w) / 64)
    if shrink > 1:
        frame = np.asarray(
            cv2.resize(frame, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA), np.uint8
        )
    h, w = frame.shape[:2]
    rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    away = np.abs(frame.astype(np.int16) - np.median(rim, 0).astype(np.int16)).max(2)
    away8 = np.minimum(away, 255).astype(np.uint8)
    cut, _ = cv2.threshold(away8, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    solid = (away8 > max(10.0, cut * 0.8)).astype(np.uint8)
    solid = np.asarray(cv2.morphologyEx(solid, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), np.uint8)
    n, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    best, area = 0, 0.1 * h * w
    for i in range(1, n):
        x, y, bw, bh, size = (int(v) for v in stats[i])
        touches = (x == 0) + (y == 0) + (x + bw == w) + (y + bh == h)
        if size > area and touches == 0 and size < 0.8 * h * w:
            best, area = i, size
    if not best:
        return None
    mask = cv2.dilate((labels == best).astype(np.uint8), np.ones((3, 3), np.uint8))
    outside, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros((h, w), np.uint8)
    cv2.drawContours(mask, outside, -1, 1, -1)
    alpha = np.asarray(cv2.resize(mask.astype(np.float32), (full_w, full_h)), np.float32)
    return np.asarray(cv2.blur(alpha, (3, 3)), np.float32)


def _cutout(rng: np.random.Generator, h: int, w: int, pad: int) -> F32:
    """Alpha (h, w) of a box, an ellipse or a lump in the middle of a window."""
    mask = np.zeros((h, w), np.float32)
    style = rng.random()
    if style < 0.4:
        mask[pad : h - pad, pad : w - pad] = 1
    elif style < 0.7:
        cv2.ellipse(mask, (w // 2, h // 2), (max(1, w // 2 - pad), max(1, h // 2 - pad)), 0, 0, 360, 1.0, -1)
    else:
        blob = lump(rng, min(h, w) - 2 * pad, soft=0.1, rough=0.5)
        mask = np.asarray(cv2.resize(blob, (w, h), interpolation=cv2.INTER_AREA), np.float32)
        mask[0], mask[-1], mask[:, 0], mask[:, -1] = 0, 0, 0, 0
    return np.asarray(cv2.blur(mask, (3, 3)), np.float32)


def turned(piece: Piece, angle_deg: float, scale: float, flip: bool = False) -> tuple[F32, F32]:
    """The piece rotated and scaled about its middle: pixels (h, w, 3) float32 and alpha, in a square window."""
    h, w = piece.alpha.shape
    n = int(np.ceil(np.hypot(h, w) * max(scale, 0.3))) + 2
    m = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), angle_deg, scale)
    m[:, 2] += ((n - w) / 2, (n - h) / 2)
    pixels, alpha = piece.window, piece.alpha
    if flip:
        pixels, alpha = np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(alpha[:, ::-1])
    moved = cv2.warpAffine(pixels, m, (n, n), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32), np.asarray(cv2.warpAffine(alpha, m, (n, n)), np.float32)


def missing_component(job: Job) -> Patch | None:
    """A piece is gone: filled from its surroundings, covered by another place, or its print is left."""
    piece = find_piece(job, job.image, job.size, 0.3 + 0.7 * job.contrast)
    if piece is None:
        return None
    hole = cv2.dilate((piece.alpha > 0.1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    if hole.all():
        return None
    new = _cloned(job, piece) if job.chance(0.4 if piece.free else 0.9) else filled(job.rng, piece.window, hole)
    if piece.free and job.chance(0.2):  # an empty place rather than plain ground: a print of what was there
        new += piece.alpha[..., None] * job.change(piece.window, colour=0.2) * np.float32(0.4)
    return Patch(piece.x0, piece.y0, _toned(job, piece.window, new, piece.alpha))


def _cloned(job: Job, piece: Piece) -> F32:
    """The piece covered by another place of the image whose rim is alike (the best of ten)."""
    h, w = piece.alpha.shape
    edge = (
        (slice(0, 1), slice(None)),
        (slice(-1, None), slice(None)),
        (slice(None), slice(0, 1)),
        (slice(None), slice(-1, None)),
    )
    old = piece.window.astype(np.float32)
    best, found = np.inf, old
    for _ in range(10):
        reach = np.array([job.w - w, job.h - h]) + 1
        near = np.array([piece.x0, piece.y0]) + job.rng.normal(0, 1.5, 2) * (w, h)
        x, y = (int(v) for v in np.clip(near, 0, reach - 1))
        if abs(x - piece.x0) < w * 0.7 and abs(y - piece.y0) < h * 0.7:
            continue
        other = job.image[y : y + h, x : x + w].astype(np.float32)
        gap = sum(float(np.abs(other[e] - old[e]).mean()) for e in edge)
        if gap < best:
            best, found = gap, other
    wide = np.asarray(cv2.dilate(piece.alpha, np.ones((3, 3), np.uint8)), np.float32)
    return old + wide[..., None] * (found - old)


def _toned(job: Job, under: U8 | F32, new: F32, alpha: F32) -> F32:
    """`new` over `under`, paler where it differs by more than the contrast asks for."""
    old = under.astype(np.float32)
    strength = float(np.abs(new - old).max(2).sum() / max(1.0, float(alpha.sum())))
    wanted = 30.0 * 9.0**job.contrast
    return old + (new - old) * np.float32(float(np.clip(wanted / max(strength, 1e-6), 0.35, 1.0)))


def _put(job: Job, base: U8 | F32, x0: int, y0: int, pixels: F32, alpha: F32, cx: int, cy: int) -> F32:
    """`base`, the window at (x0, y0), with a piece centred at image px (cx, cy)."""
    out = base.astype(np.float32)
    h, w = out.shape[:2]
    ah, aw = alpha.shape
    left, top = cx - aw // 2 - x0, cy - ah // 2 - y0
    a0, b0, a1, b1 = max(0, left), max(0, top), min(w, left + aw), min(h, top + ah)
    if a1 <= a0 or b1 <= b0:
        return out
    a = alpha[b0 - top : b1 - top, a0 - left : a1 - left, None]
    out[b0:b1, a0:a1] += a * (pixels[b0 - top : b1 - top, a0 - left : a1 - left] - out[b0:b1, a0:a1])
    return out


def added_component(job: Job) -> Patch | None:
    """A piece of the image or the donor where none belongs."""
    rng = job.rng
    source = job.donor if job.chance(0.4) else job.image
    best: list[tuple[float, Patch]] = []
    for _ in range(3):
        piece = find_piece(job, source, job.size, 0.4 + 0.6 * job.contrast, tries=4)
        if piece is None:
            return None
        angle = float(rng.choice([0.0, 90.0, 180.0, 270.0, rng.uniform(0, 360)]))
        pixels, alpha = turned(piece, angle, float(np.exp(rng.uniform(-0.25, 0.25))), job.chance(0.3))
        x, y = job.spot()
        window, x0, y0 = job.window(x, y, alpha.shape[1] + 4, alpha.shape[0] + 4)
        under: U8 | F32 = window
        if job.chance(0.4) and job.contrast > 0.2:
            blurred = np.asarray(cv2.GaussianBlur(alpha, (0, 0), 1.2), np.float32) * np.float32(0.4)
            off = int(np.ceil(job.unit)) + 1
            under = _put(job, window, x0, y0, np.zeros_like(pixels), blurred, x + off, y + off)
        new = _toned(job, window, _put(job, under, x0, y0, pixels, alpha, x, y), alpha)
        strength = float(np.abs(new - window).mean() / max(0.02, float(alpha.mean())))
        best.append((strength, Patch(x0, y0, new)))
    best.sort(key=lambda found: found[0])
    visible = [patch for strength, patch in best if strength > 6]
    return visible[round(job.contrast * (len(visible) - 1))] if visible else best[-1][1]


def wrong_component(job: Job) -> Patch | None:
    """A piece replaced by another, turned, recoloured or scaled."""
    rng = job.rng
    piece = find_piece(job, job.image, job.size, 0.3 + 0.7 * job.contrast)
    if piece is None:
        return None
    h, w = piece.alpha.shape
    cx, cy = piece.x0 + w // 2, piece.y0 + h // 2
    odds = [0.35, 0.2, 0.3, 0.15] if piece.free else [0.6, 0.4, 0.0, 0.0]
    style = rng.choice(["other", "turned", "recoloured", "scaled"], p=odds)
    if style == "recoloured":
        old = piece.window.astype(np.float32)
        change = job.change(piece.window, colour=0.9)
        if not job.grey and job.chance(0.3):
            change = np.asarray(old[..., rng.permutation([1, 2, 0])] - old, np.float32)
            change *= min(1.0, 1.2 * job.peak(piece.window) / max(1.0, float(np.abs(change).mean() * 2)))
        return Patch(piece.x0, piece.y0, old + piece.alpha[..., None] * change)
    if style == "other":
        other = find_piece(job, job.donor if job.chance(0.5) else job.image, job.size, 1.0)
        if other is None:
            return None
        pixels = np.asarray(cv2.resize(other.window, (w, h), interpolation=cv2.INTER_AREA), np.float32)
        alpha = np.asarray(cv2.resize(other.alpha, (w, h), interpolation=cv2.INTER_AREA), np.float32)
    elif style == "turned":
        pixels, alpha = turned(piece, float(rng.choice([90.0, 180.0, 270.0])), 1.0, job.chance(0.3))
    else:
        scale = 1 + (0.1 + 0.4 * job.contrast) * rng.choice([-1, 1])
        pixels, alpha = turned(piece, 0.0, float(scale))
    ground = filled(rng, piece.window, piece.alpha > 0.1) if (piece.alpha <= 0.1).any() else piece.window
    new = _put(job, ground, piece.x0, piece.y0, pixels, alpha, cx, cy)
    return Patch(piece.x0, piece.y0, _toned(job, piece.window, new, piece.alpha))


def misplaced_component(job: Job) -> Patch | None:
    """A piece shifted, and at times turned, from its place."""
    rng = job.rng
    piece = find_piece(job, job.image, job.size, 0.5 + 0.5 * job.contrast)
    if piece is None:
        return None
    h, w = piece.alpha.shape
    reach = max(1.5 * job.unit, (0.06 + 0.5 * job.contrast) * job.size)
    turn = rng.uniform(0, 2 * np.pi)
    dx, dy = round(reach * np.cos(turn)), round(reach * np.sin(turn))
    angle = float(rng.normal(0, 4 + 30 * job.contrast)) if job.chance(0.5) else 0.0
    pixels, alpha = turned(piece, angle, 1.0)
    cx, cy = piece.x0 + w // 2, piece.y0 + h // 2
    span = max(h, w) + 2 * (abs(dx) + abs(dy)) + 6
    window, x0, y0 = job.window(cx, cy, span, span)
    hole = np.zeros(window.shape[:2], bool)
    hole[piece.y0 - y0 : piece.y0 - y0 + h, piece.x0 - x0 : piece.x0 - x0 + w] = piece.alpha > 0.1
    if hole.all():
        return None
    return Patch(x0, y0, _put(job, filled(rng, window, hole), x0, y0, pixels, alpha, cx + dx, cy + dy))
