"""Training pairs: a query, its reference(s) as registration would leave them, and what is known of the difference.

Four kinds of pairs: rendered parts with exact truth; random surfaces; photos of good samples, two of one product at a time,
as they are (a pair without a defect) or with a synthetic defect; photos of real defects with a mask, or with nothing but
"defective". Everything is drawn from one numpy Generator, so the same seed gives the same pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.defect_types import DIFFERENCE_TYPES, RENDERED_TYPES, STRUCTURAL_TYPES
from refdiff.model.errors import ImageError
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.synthesis.photo_pairs import add_defect, break_off, foreground_of, jitter, nuisance, sway
from refdiff.model.synthesis.render import (
    PART_KINDS,
    Pose,
    applicable_types,
    random_defect,
    random_light,
    random_pose,
    render,
)
from refdiff.model.synthesis.textures import random_material

Nearest = Callable[[Path, Sequence[Path]], list[Path]]  # query, candidates -> candidates, most alike first

PAIR_PX = 256
NO_TYPE = 255
_UNSURE_UP_TO = 0.2  # part of a stride-4 cell that a mask must cover to count


@dataclass(frozen=True)
class Photo:
    """A training photo."""

    path: Path
    defective: bool = False
    masks: tuple[Path, ...] = ()  # files of the truth (non-zero = defect, in any of them), none if good or unknown
    mask_inverted: bool = False  # zero = defect
    type: str | None = None  # of everything in the masks
    partner: Path | None = None  # its own reference, where the data set gives one
    boxes: tuple[tuple[int, int, int, int, str], ...] = ()  # x0, y0, x1, y1, type


@dataclass(frozen=True)
class Source:
    """Photos of one product."""

    name: str
    good: tuple[Photo, ...]
    bad: tuple[Photo, ...]
    licence: str  # for the model card
    textured: bool = False  # parts do not register: any place may match any other
    pixels_count: bool = False  # single pixels matter (binarised boards): no nuisance is added
    weight: float = 1.0  # how often it is drawn


@dataclass(frozen=True)
class ReferencePicture:
    """A reference as registration would leave it."""

    image: RgbImage  # (H, W, 3) uint8, on the query's grid if registered
    covered: NDArray[np.bool_]  # (H, W) bool: what it reaches of the query
    registered: bool


@dataclass(frozen=True)
class Pair:
    """A query with its references, and the truth about them."""

    query: RgbImage  # (256, 256, 3) uint8
    references: tuple[ReferencePicture, ...]
    label: bool  # the query is defective
    mask: NDArray[np.bool_] | None  # (256, 256) bool, None if only the label is known
    types: NDArray[np.uint8]  # (256, 256) uint8 index of DIFFERENCE_TYPES, 255 = none
    structural: bool | None  # a component or level is wrong, None if not known
    source: str  # name of where it is from
    real: bool = False  # the query shows a real defect


@dataclass
class Draft:
    """A pair at the resolution of its source; see `Pair`."""

    query: RgbImage
    references: list[RgbImage]
    mask: NDArray[np.bool_] | None
    types: NDArray[np.uint8]
    structural: bool | None
    covered: list[NDArray[np.bool_]] = field(default_factory=list)
    real: bool = False


def type_index(name: str) -> int:
    """Place of a type in DIFFERENCE_TYPES, also of the renderer's words; NO_TYPE for any other word."""
    known = RENDERED_TYPES.get(name, name)
    return DIFFERENCE_TYPES.index(known) if known in DIFFERENCE_TYPES else NO_TYPE


@lru_cache(maxsize=512)
def read_photo(path: Path) -> RgbImage:
    """(H, W, 3) uint8, at most 640 px long. Raises ImageError, OSError."""
    image = decode_image(path.read_bytes(), name=str(path))
    h, w = image.shape[:2]
    f = 640 / max(h, w)
    if f < 1:  # nothing finer reaches the network
        image = np.asarray(cv2.resize(image, (round(w * f), round(h * f)), interpolation=cv2.INTER_AREA), np.uint8)
    return image


def read_mask(photo: Photo, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The truth of a photo that has masks, (H, W) bool at `size`. Raises ImageError: one cannot be read, none marks
    anything."""
    marked = np.zeros(size, bool)
    for file in photo.masks:
        try:
            grey = cv2.cvtColor(decode_image(file.read_bytes(), name=str(file)), cv2.COLOR_RGB2GRAY)
        except OSError as e:
            raise ImageError(f"{file}: cannot be read ({e.strerror})") from e
        least = 128 if photo.mask_inverted or grey.max() >= 128 else 1  # of label ids everything above 0
        mask = (grey >= least) != photo.mask_inverted
        if mask.shape != size:
            mask = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_AREA) > 0
        marked |= mask
    if not marked.any():
        raise ImageError(f"{photo.masks[0]}: the mask marks no defect")
    return marked


def file_at_fault(photo: Photo, error: ImageError) -> Path:
    """Which file of a photo an error names."""
    return next((m for m in photo.masks if str(error).startswith(f"{m}:")), photo.path)


def _fit(image: RgbImage, size: tuple[int, int]) -> RgbImage:
    if image.shape[:2] == size:
        return image
    shrink = image.shape[0] * image.shape[1] > size[0] * size[1]
    how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size[::-1], interpolation=how), np.uint8)


# ---- where pairs come from ----


def rendered_pair(rng: np.random.Generator, k: int) -> Pair:
    """A rendered part in any pose beside good ones of its design, registered as the tools would."""
    kind = PART_KINDS[int(rng.integers(len(PART_KINDS)))]
    design = int(rng.integers(2**31))
    base = 320
    turned = kind != "bottle" and rng.random() < 0.5
    pose = random_pose(rng, max_angle_deg=180.0 if turned else 3.0, size=(base, base)) if rng.random() < 0.7 else Pose()
    strength = float(rng.uniform(0, 0.8))
    light = random_light(rng, strength=strength)
    other = light if rng.random() < 0.6 else random_light(rng, strength=strength)
    defects = []
    if rng.random() < 0.62:
        structural = [t for t in applicable_types(kind) if RENDERED_TYPES[t] in STRUCTURAL_TYPES]
        for _ in range(1 + int(rng.random() < 0.2)):
            only = structural if structural and rng.random() < 0.45 else None
            defects.append(random_defect(rng, kind, (base, base), types=only))
    noise = float(rng.uniform(0.5, 4))
    scene = render(kind, design, int(rng.integers(2**31)), size=(base, base), defects=defects, pose=pose, light=light,
                   noise_sigma=noise, noise_seed=int(rng.integers(2**31)))  # fmt: skip
    types = np.full((base, base), NO_TYPE, np.uint8)
    for truth in scene.defects:
        types[truth.mask] = type_index(truth.type)
    wrong = any(RENDERED_TYPES[t.type] in STRUCTURAL_TYPES and t.mask.any() for t in scene.defects)
    draft = Draft(scene.image, [], scene.defect_mask, types, wrong)
    if rng.random() < 0.15:  # what the renderer cannot break, the brush can
        spoil(draft, rng, None, scene.foreground)
    for _ in range(k):
        own = random_pose(rng, max_angle_deg=3.0, size=(base, base)) if rng.random() < 0.5 else Pose()
        golden = render(kind, design, int(rng.integers(2**31)), size=(base, base), pose=own, light=other,
                        noise_sigma=noise, noise_seed=int(rng.integers(2**31)))  # fmt: skip
        back = scene.transform @ np.linalg.inv(golden.transform)
        warped = cv2.warpPerspective(golden.image, back, (base, base), borderMode=cv2.BORDER_REPLICATE)
        reach = cv2.warpPerspective(np.full((base, base), 255, np.uint8), back, (base, base))
        draft.references.append(np.asarray(warped, np.uint8))
        draft.covered.append(np.asarray(reach > 127, bool))
    return _finish(draft, rng, "rendered", unregistered=0.08)


def surface_pair(rng: np.random.Generator, k: int) -> Pair:
    """A random surface beside other samples of the same material, with a synthetic defect or none."""
    n = 320
    material = random_material(rng, n)
    draft = Draft(material(rng), [material(rng) for _ in range(k)], np.zeros((n, n), bool),
                   np.full((n, n), NO_TYPE, np.uint8), False)  # fmt: skip
    if rng.random() < 0.6:
        donor = random_material(rng, n)(rng) if rng.random() < 0.3 else None
        spoil(draft, rng, donor, np.ones((n, n), bool))
    return _finish(draft, rng, "surfaces", unregistered=0.6, textured=True)


def photo_pair(source: Source, rng: np.random.Generator, k: int, nearest: Nearest) -> Pair:
    """A photo of a source beside good ones. nearest: orders candidate references, most similar first."""
    if source.bad and rng.random() < 0.45:
        return _defective_pair(source, rng, k, nearest)
    photo = source.good[int(rng.integers(len(source.good)))]
    query = read_photo(photo.path)
    size = query.shape[:2]
    references = [_fit(read_photo(p), size) for p in _references(source, photo, rng, k, nearest)]
    draft = Draft(query, references, np.zeros(size, bool), np.full(size, NO_TYPE, np.uint8), False)
    if rng.random() < 0.6:
        donor = read_photo(source.good[int(rng.integers(len(source.good)))].path) if rng.random() < 0.5 else None
        spoil(draft, rng, donor, foreground_of(query))
    return _finish(draft, rng, source.name, unregistered=0.5 if source.textured else 0.1, textured=source.textured,
                   bare=source.pixels_count)  # fmt: skip


def spoil(draft: Draft, rng: np.random.Generator, donor: RgbImage | None, foreground: NDArray[np.bool_]) -> None:
    """One or two synthetic defects on the query of a draft.

    donor: (H, W, 3), what foreign matter is cut from; None: the query. foreground: (H, W) bool, the part.
    """
    assert draft.mask is not None
    for _ in range(1 + int(rng.random() < 0.2)):
        for attempt in range(3):
            made = break_off(draft.query, rng, foreground) if attempt == 0 and rng.random() < 0.15 else None
            made = made or add_defect(draft.query, rng, donor=donor, foreground=foreground)
            if made is not None:
                draft.query = made.image
                draft.mask = draft.mask | made.mask
                draft.types[made.mask] = type_index(made.type)
                draft.structural = bool(draft.structural) or made.structural
                break


def _defective_pair(source: Source, rng: np.random.Generator, k: int, nearest: Nearest) -> Pair:
    photo = source.bad[int(rng.integers(len(source.bad)))]
    query = read_photo(photo.path)
    size = query.shape[:2]
    references = [_fit(read_photo(p), size) for p in _references(source, photo, rng, k, nearest)]
    types = np.full(size, NO_TYPE, np.uint8)
    mask: NDArray[np.bool_] | None = None
    if photo.boxes:
        mask = _boxes_mask(photo, query, references[0], types)
    elif photo.masks:
        mask = read_mask(photo, size)
        if photo.type:
            types[mask] = type_index(photo.type)
    draft = Draft(query, references, mask, types, None, real=True)
    return _finish(draft, rng, source.name, unregistered=0.5 if source.textured else 0.1, textured=source.textured,
                   bare=source.pixels_count)  # fmt: skip


def _boxes_mask(photo: Photo, query: RgbImage, reference: RgbImage, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels that changed inside each box; the box itself where none did."""
    changed = np.abs(query.astype(np.int16) - reference.astype(np.int16)).max(2) > 80
    mask = np.zeros(changed.shape, bool)
    for x0, y0, x1, y1, name in photo.boxes:
        inside = changed[y0:y1, x0:x1].astype(np.uint8)
        inside = cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        inside = cv2.dilate(inside, np.ones((3, 3), np.uint8))
        part = inside > 0 if inside.sum() >= 9 else np.ones(inside.shape, bool)
        mask[y0:y1, x0:x1] |= part
        types[y0:y1, x0:x1][part] = type_index(name)
    return mask


def _references(
    source: Source,
    photo: Photo,
    rng: np.random.Generator,
    k: int,
    nearest: Nearest,
) -> list[Path]:
    if photo.partner is not None:
        return [photo.partner]
    others = [p.path for p in source.good if p.path != photo.path]
    chosen = [others[i] for i in rng.permutation(len(others))[: int(rng.choice([8, 24, 60]))]]
    return nearest(photo.path, chosen)[:k]


# ---- from a draft to a pair ----


def _finish(
    draft: Draft,
    rng: np.random.Generator,
    source: str,
    *,
    unregistered: float,
    textured: bool = False,
    bare: bool = False,
) -> Pair:
    """Crop, pose noise, light; the same cut of query and references."""
    h, w = draft.query.shape[:2]
    covered = draft.covered or [np.ones((h, w), bool) for _ in draft.references]
    registered = rng.random() >= unregistered
    to_pair = _window(draft, rng)
    size = (PAIR_PX, PAIR_PX)
    area = abs(np.linalg.det(to_pair[:2, :2]))
    how = cv2.INTER_AREA if area < 0.5 else cv2.INTER_LINEAR
    tone = _tone(rng)
    query = tone(_warp(draft.query, to_pair, size, how))
    mask = None if draft.mask is None else _warp(draft.mask.astype(np.uint8) * 255, to_pair, size) > 40
    types = cv2.warpPerspective(draft.types, to_pair, size, flags=cv2.INTER_NEAREST, borderValue=NO_TYPE).astype(
        np.uint8
    )
    references = []
    for image, reach in zip(draft.references, covered, strict=True):
        view = to_pair
        if not registered and textured and rng.random() < 0.5:
            view = np.diag([-1.0, 1.0, 1.0]) + np.array([[0, 0, PAIR_PX - 1.0], [0, 0, 0], [0, 0, 0]])
            view = view @ to_pair
        picture = tone(_warp(image, view, size, how))
        reached = _warp(reach.astype(np.uint8) * 255, view, size, border=cv2.BORDER_CONSTANT) > 127
        if rng.random() < 0.8 and not bare:
            wide = 4.0 if rng.random() < 0.15 else 1.0
            picture, move = jitter(
                picture, rng, max_shift_px=1.5 * wide, max_angle_deg=0.7 * wide, max_scale=0.008 * wide
            )
            reached = _warp(reached.astype(np.uint8) * 255, move, size, border=cv2.BORDER_CONSTANT) > 127
        if not bare and rng.random() < 0.5:
            picture = sway(picture, rng, max_shift_px=float(rng.uniform(1, 4)))
        if not bare:
            picture = nuisance(picture, rng, float(rng.uniform(0, 0.7)))
        references.append(ReferencePicture(picture, reached, registered))
    if not bare:
        query = nuisance(query, rng, float(rng.uniform(0, 0.7)))
    label = True if mask is None else bool(mask.any())
    types = np.where(mask, types, NO_TYPE).astype(np.uint8) if mask is not None else types
    structural = draft.structural
    if structural and mask is not None:
        wrong = [DIFFERENCE_TYPES.index(t) for t in STRUCTURAL_TYPES]
        structural = bool(np.isin(types, wrong).any())
    return Pair(query, tuple(references), label, mask, types, structural, source, draft.real)


def _warp(
    image: NDArray,
    matrix: NDArray,
    size: tuple[int, int],
    how: int = cv2.INTER_LINEAR,
    border: int = cv2.BORDER_REPLICATE,
) -> NDArray[np.uint8]:
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if how == cv2.INTER_AREA or scale < 0.7:  # warping does not average: shrink first
        h, w = image.shape[:2]
        small = (max(1, round(w * scale)), max(1, round(h * scale)))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.diag([w / small[0], h / small[1], 1.0])
    return np.asarray(
        cv2.warpPerspective(image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border), np.uint8
    )


def _window(draft: Draft, rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, 3) source px -> pair px: the whole image, or a square of it that holds the defect; flips and quarter turns."""
    h, w = draft.query.shape[:2]
    side = float(min(h, w))
    whole = draft.mask is None or (max(h, w) / side < 1.6 and rng.random() < 0.5)
    if whole:
        fx, fy, x0, y0 = PAIR_PX / w, PAIR_PX / h, 0.0, 0.0
    else:
        side *= float(rng.uniform(0.4 if side > 400 else 0.6, 1.0))
        x0, y0 = rng.uniform(0, w - side), rng.uniform(0, h - side)
        if draft.mask is not None and draft.mask.any() and rng.random() < 0.8:
            ys, xs = np.nonzero(draft.mask)
            i = int(rng.integers(len(xs)))
            x0 = float(np.clip(xs[i] - rng.uniform(0.15, 0.85) * side, 0, w - side))
            y0 = float(np.clip(ys[i] - rng.uniform(0.15, 0.85) * side, 0, h - side))
        fx = fy = PAIR_PX / side
    m = np.array([[fx, 0, -fx * x0], [0, fy, -fy * y0], [0, 0, 1.0]])
    c = (PAIR_PX - 1) / 2
    for _ in range(int(rng.integers(4))):
        m = np.array([[0, -1, 2 * c], [1, 0, 0], [0, 0, 1.0]]) @ m
    if rng.random() < 0.5:
        m = np.array([[-1, 0, 2 * c], [0, 1, 0], [0, 0, 1.0]]) @ m
    return np.asarray(m, np.float64)


def _tone(rng: np.random.Generator) -> Callable[[RgbImage], RgbImage]:
    """One change of colours for query and references alike: other products, not other light."""
    draw = rng.random()
    if draw < 0.1:  # overexposed: the background is plain white
        gain = float(rng.uniform(1.1, 2.0))
        return lambda image: np.asarray(cv2.convertScaleAbs(image, alpha=gain), np.uint8)
    if draw < 0.2:
        return lambda image: np.asarray(255 - image, np.uint8)
    if draw < 0.3:
        order = rng.permutation(3)
        return lambda image: np.ascontiguousarray(image[..., order])
    if draw < 0.4:
        return lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    if draw < 0.53:  # dark or flat photos
        lo, hi = sorted(rng.uniform(0, 255, 2))
        lo, hi = (lo, hi) if hi - lo > 60 else (0.0, float(rng.uniform(60, 255)))
        table = np.linspace(lo, hi, 256).round().astype(np.uint8)
        return lambda image: np.asarray(cv2.LUT(image, table), np.uint8)
    return lambda image: image


def marked_cells(share: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which cells count as defective, of the part 0..1 of each that a defect covers: those that it covers enough of; of a
    defect that is too small for any, those that it covers most. (H, W) of both."""
    return np.asarray(share >= min(_UNSURE_UP_TO, max(float(share.max()), 1e-6)), bool)


def cell_targets(
    mask: NDArray[np.bool_] | None, types: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of a mask and types (H, W): (H/4, W/4) uint8 0/1, stride-4 cells that hold enough of the defect, and its type there
    (255 = none). mask: None if unknown."""
    h, w = types.shape[0] // 4, types.shape[1] // 4
    types = types.reshape(h, 4, w, 4).transpose(0, 2, 1, 3).reshape(h, w, 16)
    known = types != NO_TYPE
    # any type of the cell will do: cells with two are rare
    kind = np.where(known.any(2), np.where(known, types, 0).max(2), NO_TYPE).astype(np.uint8)
    if mask is None:
        return np.zeros((h, w), np.uint8), kind
    return marked_cells(mask.reshape(h, 4, w, 4).mean((1, 3))).astype(np.uint8), kind
