"""Rendered scenes with known truth: part + defects + pose, light and noise.

    scene = render("circuit", design_seed=3, instance_seed=7, defects=[DefectSpec("scratch", size_mm=4.0)],
                   pose=Pose(angle_deg=30), light=Light(gain=0.4))

Same arguments, same pixels. Frames: *canonical* px is the image one gets without pose; `Scene.transform` maps it to
image px (both x right, y down, integer = pixel centre). Lamp and noise belong to the camera: turning the part turns
its highlights relative to it. Knows nothing about products, files or the network.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.defect_types import RenderedType
from refdiff.model.errors import InputError
from refdiff.model.images import F32
from refdiff.model.synthesis.defect_brushes.job import DefectSpec
from refdiff.model.synthesis.materials import PART_KINDS, PartKind, clouds, raster_plan
from refdiff.model.synthesis.parts.part import build_part
from refdiff.model.synthesis.render_defects import (
    RasterTruth,
    applicable_types,
    apply_defects,
    random_defect,
)

__all__ = [
    "PART_KINDS",
    "DefectSpec",
    "DefectTruth",
    "Light",
    "PartKind",
    "Pose",
    "Scene",
    "applicable_types",
    "map_points",
    "random_defect",
    "random_light",
    "random_pose",
    "render",
]


@dataclass(frozen=True)
class Pose:
    """How the part lies before the camera."""

    angle_deg: float = 0.0  # counter-clockwise on the screen, about the image centre
    scale: float = 1.0  # image px per canonical px
    shift_px: tuple[float, float] = (0.0, 0.0)  # image px right and down
    # (x, y) relative change of scale from the centre to the right and lower edge, |v| < 0.5
    perspective: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Light:
    """Lamp and camera. out = (gain * in) ** gamma on 0..1."""

    gain: float = 1.0
    gamma: float = 1.0
    azimuth_deg: float = 125.0  # where the lamp stands, counter-clockwise from the right of the image
    gradient: float = 0.0  # 0..1 fall-off away from the lamp
    temperature: float = 0.0  # -1 cold .. 1 warm
    blur_sigma: float = 0.0  # defocus, px
    jpeg_quality: int | None = None  # 1..100, None = no JPEG


@dataclass(frozen=True)
class DefectTruth:
    """One defect in the final image.

    Lines (scratch, crack, broken_yarn) have their length and width by construction, the others those of the smallest
    rotated box round the change. Lengths in mm are those on the part.
    """

    type: RenderedType
    mask: NDArray[np.bool_]  # (H, W) bool: every pixel that it touches (before defocus, noise and JPEG)
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px, exclusive end; 0, 0, 0, 0 if out of the frame
    path: NDArray[np.float64]  # (N, 2) image px: the line whose length is length_px
    length_px: float
    width_px: float  # across the path
    length_mm: float
    width_mm: float
    area_px: int  # of the mask
    centre: tuple[float, float]  # (x, y) image px
    # (dx, dy) image px by which a level or a component lies elsewhere; None for other defects
    moved_px: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scene:
    """A rendered photo and the truth about it."""

    image: NDArray[np.uint8]  # (H, W, 3) uint8 RGB
    defect_mask: NDArray[np.bool_]  # (H, W) bool, of all defects
    foreground: NDArray[np.bool_]  # (H, W) bool: the part as it is
    defects: tuple[DefectTruth, ...]
    transform: NDArray[np.float64]  # (3, 3) float64: canonical px -> image px
    mm_per_px: float  # of the image, at its centre
    kind: PartKind
    design_seed: int
    instance_seed: int


def map_points(transform: NDArray, points: NDArray) -> NDArray[np.float64]:
    """(N, 2) points through a 3x3 homography."""
    p = np.concatenate([np.asarray(points, np.float64), np.ones((len(points), 1))], 1) @ np.asarray(transform).T
    return p[:, :2] / p[:, 2:]


def pose_transform(pose: Pose, h: int, w: int) -> NDArray[np.float64]:
    """(3, 3) canonical px -> image px of an (h, w) image."""
    cx, cy = (w - 1) / 2, (h - 1) / 2
    t = np.deg2rad(pose.angle_deg)
    c, s = pose.scale * np.cos(t), pose.scale * np.sin(t)
    centre = np.array([[1, 0, -cx], [0, 1, -cy], [0, 0, 1.0]])
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [-pose.perspective[0] / max(cx, 1), -pose.perspective[1] / max(cy, 1), 1.0]])
    back = np.array([[1, 0, cx + pose.shift_px[0]], [0, 1, cy + pose.shift_px[1]], [0, 0, 1.0]])
    return np.asarray(back @ tilt @ turn @ centre, np.float64)


def _local_scale(m: NDArray[np.float64], x: float, y: float) -> float:
    """Image px per canonical px at a canonical point, direction averaged (square root of the area ratio)."""
    d = m[2, 0] * x + m[2, 1] * y + m[2, 2]
    return float(np.sqrt(abs(np.linalg.det(m) / d**3)))


def _length(path: NDArray[np.float64]) -> float:
    return float(np.hypot(*np.diff(path, axis=0).T).sum())


def _check(kind: str, size: tuple[int, int], pose: Pose, mm_per_px: float) -> None:
    if kind not in PART_KINDS:
        raise InputError(f"Unknown part kind {kind!r}: use one of {', '.join(PART_KINDS)}.")
    if min(size) < 32 or max(size) > 4096:
        raise InputError(f"Render size {size!r} is out of range: use 32 to 4096 px a side.")
    if not pose.scale > 0 or max(map(abs, pose.perspective)) >= 0.5:
        raise InputError(f"Pose {pose!r} is out of range: scale must be > 0 and |perspective| < 0.5.")
    if not mm_per_px > 0:
        raise InputError(f"mm_per_px {mm_per_px!r} must be > 0.")


def render(
    kind: PartKind,
    design_seed: int,
    instance_seed: int,
    *,
    size: tuple[int, int] = (320, 320),
    defects: Sequence[DefectSpec] = (),
    pose: Pose = Pose(),
    light: Light = Light(),
    noise_sigma: float = 2.0,
    noise_seed: int = 0,
    mm_per_px: float = 0.1,
) -> Scene:
    """Render one scene of `size` (H, W).

    design_seed: the product; instance_seed: the good sample; noise_seed: the photo of it. noise_sigma: grey levels.
    mm_per_px: of the canonical image; the scene's own is that divided by pose.scale. Raises InputError.
    """
    _check(kind, size, pose, mm_per_px)
    h, w = size
    ss, margin = raster_plan(kind)
    rh, rw = round(h * ss * margin), round(w * ss * margin)
    part = build_part(kind, design_seed, instance_seed, rh, rw, ss * min(h, w) / 320)
    # raster = canonical * ss + offset, the centres of both fall together
    offset = ((rw - 1) / 2 - ss * (w - 1) / 2, (rh - 1) / 2 - ss * (h - 1) / 2)
    to_raster = np.array([[ss, 0, offset[0]], [0, ss, offset[1]], [0, 0, 1.0]])
    transform = pose_transform(pose, h, w)
    from_raster = transform @ np.linalg.inv(to_raster)
    # the image is sampled 2 x 2 per pixel and averaged
    fine = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]]) @ from_raster

    in_view = None
    if defects:
        frame = np.full((h // 4, w // 4), 255, np.uint8)
        frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = 0, 0, 0, 0
        quarter = np.diag([w / (w // 4), h / (h // 4), 1.0])
        in_view = np.asarray(
            cv2.warpPerspective(frame, np.linalg.inv(from_raster) @ quarter, (rw, rh)) > 127, np.uint8
        ) * np.uint8(255)
    mat, lit, good_cover, found = apply_defects(
        part,
        defects,
        ss=ss,
        offset=offset,
        mm_per_px=mm_per_px,
        azimuth_deg=light.azimuth_deg - pose.angle_deg,
        in_view=in_view,
    )

    border = cv2.BORDER_REFLECT_101 if kind == "weave" else cv2.BORDER_CONSTANT

    def to_image(plane: NDArray) -> NDArray[np.uint8]:
        warped = cv2.warpPerspective(plane, fine, (2 * w, 2 * h), flags=cv2.INTER_LINEAR, borderMode=border)
        return np.asarray(cv2.resize(warped, (w, h), interpolation=cv2.INTER_AREA), np.uint8)

    covered = cv2.multiply(lit, cv2.cvtColor(mat.cover, cv2.COLOR_GRAY2RGB))
    layers = cv2.convertScaleAbs(cv2.merge([*cv2.split(covered), mat.cover]), alpha=255)
    seen = to_image(layers).astype(np.float32) / np.float32(255)
    shadow = to_image((good_cover * 255).astype(np.uint8)) if kind not in ("weave", "bottle") else None
    picture = _compose(seen, shadow, part.background, light, kind, design_seed)
    image = _photograph(
        picture, light, noise_sigma, (zlib.crc32(kind.encode()), design_seed, instance_seed, noise_seed)
    )

    truths = []
    for t in found:
        coverage = to_image(t.mask.astype(np.uint8) * 255)
        truths.append(_truth(t, coverage > 4, from_raster, ss, mm_per_px))
    total = np.zeros((h, w), bool)
    for truth in truths:
        total |= truth.mask
    return Scene(
        image,
        total,
        seen[..., 3] > 0.5,
        tuple(truths),
        transform,
        mm_per_px / pose.scale,
        kind,
        design_seed,
        instance_seed,
    )


def _truth(t: RasterTruth, mask: NDArray, from_raster: NDArray, ss: float, mm_per_px: float) -> DefectTruth:
    path = map_points(from_raster, t.path)
    at = np.array(t.centre)
    ends = None if t.moved is None else map_points(from_raster, np.array([at, at + t.moved]))
    scale = _local_scale(from_raster, *t.centre)
    centre = map_points(from_raster, np.array([t.centre]))[0]
    x, y, bw, bh = cv2.boundingRect(mask.astype(np.uint8))
    return DefectTruth(
        type=t.type,
        mask=mask,
        box=(x, y, x + bw, y + bh),
        path=path,
        length_px=_length(path),
        width_px=t.width * scale,
        length_mm=_length(t.path) / ss * mm_per_px,
        width_mm=t.width / ss * mm_per_px,
        area_px=int(mask.sum()),
        centre=(float(centre[0]), float(centre[1])),
        moved_px=None if ends is None else (float(ends[1, 0] - ends[0, 0]), float(ends[1, 1] - ends[0, 1])),
    )


def _compose(
    seen: F32,
    shadow: NDArray | None,
    table: tuple[float, float, float],
    light: Light,
    kind: str,
    design_seed: int,
) -> F32:
    """Part over table, (H, W, 3) 0..1. The shadow is the good part's: a chip in the rim does not move it."""
    h, w = seen.shape[:2]
    back = np.empty((h, w, 3), np.float32)
    back[:] = table
    if kind != "weave":
        rng = np.random.default_rng([zlib.crc32(kind.encode()), design_seed, 7])
        back *= 1 + np.float32(0.03) * clouds(rng, h, w, 0.3 * min(h, w))[..., None]
    if shadow is not None:
        t, d = np.deg2rad(light.azimuth_deg), 0.012 * min(h, w)
        move = np.array([[1, 0, -np.cos(t) * d], [0, 1, np.sin(t) * d]])
        soft = cv2.GaussianBlur(cv2.warpAffine(shadow, move, (w, h)), (0, 0), 0.012 * min(h, w) + 0.5)
        back *= 1 - np.float32(0.5 / 255) * np.asarray(soft, np.float32)[..., None]
    back *= 1 - seen[..., 3:]
    back += seen[..., :3]
    return back


def _photograph(image: F32, light: Light, noise_sigma: float, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Light and camera: fall-off, colour, exposure, defocus, noise, JPEG. (H, W, 3) 0..1 to uint8."""
    h, w = image.shape[:2]
    if light.gradient:
        t = np.deg2rad(light.azimuth_deg)
        along = (np.linspace(-1, 1, w) * np.cos(t))[None] - (np.linspace(-1, 1, h) * np.sin(t))[:, None]
        image *= (1 - light.gradient * (0.5 - along / 2 / np.sqrt(2))).astype(np.float32)[..., None]
    warm = 0.18 * light.temperature
    image *= np.array([1 + warm, 1.0, 1 - warm], np.float32) * np.float32(light.gain)
    np.clip(image, 0, 1, out=image)
    if light.gamma != 1.0:
        np.power(image, np.float32(light.gamma), out=image)
    if light.blur_sigma > 0:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), light.blur_sigma), np.float32)
    image *= 255
    if noise_sigma > 0:
        rng = np.random.default_rng([*seed, 2])
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise_sigma)
    out = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if light.jpeg_quality is not None:
        data = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, light.jpeg_quality])[1]
        out = np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
    return out


def random_pose(
    rng: np.random.Generator,
    *,
    max_angle_deg: float = 180.0,
    max_shift: float = 0.03,
    max_scale: float = 0.08,
    max_perspective: float = 0.04,
    size: tuple[int, int] = (320, 320),
) -> Pose:
    """A pose drawn evenly within the limits (shift as a fraction of the short side, scale as 1 +- max_scale)."""
    shift = rng.uniform(-max_shift, max_shift, 2) * min(size)
    tilt = rng.uniform(-max_perspective, max_perspective, 2)
    return Pose(
        float(rng.uniform(-max_angle_deg, max_angle_deg)),
        float(1 + rng.uniform(-max_scale, max_scale)),
        (float(shift[0]), float(shift[1])),
        (float(tilt[0]), float(tilt[1])),
    )


def random_light(rng: np.random.Generator, *, strength: float = 1.0) -> Light:
    """A light and camera setting; strength 0 = always the default, 1 = from dark and flat to bright and warm."""
    s = strength
    return Light(
        gain=float(np.exp(rng.uniform(-1.0, 0.2) * s)),
        gamma=float(np.exp(rng.uniform(-0.3, 0.3) * s)),
        azimuth_deg=float(125 + rng.uniform(-180, 180) * s),
        gradient=float(rng.uniform(0, 0.4) * s),
        temperature=float(rng.uniform(-0.7, 0.7) * s),
        blur_sigma=float(max(0.0, rng.uniform(-0.6, 1.1)) * s),
        jpeg_quality=int(rng.integers(60, 98)) if rng.random() < 0.5 * s else None,
    )
