"""A photo and its references on one pixel grid: registered once, warped once, encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.records.frames import GoldenPlace
from refdiff.model.difference.encoder import Features, resize_to, work_size
from refdiff.model.difference.feature_maps import GRID_STRIDE
from refdiff.model.errors import DamagedError, UnknownRecordError
from refdiff.model.images import RgbImage
from refdiff.tools.feature_cache import Picture, rounded
from refdiff.tools.framing.frames import anchor_on_golden, carried_over, matrix_of, place_of
from refdiff.tools.vision.registration import Alignment, Matrix, on_grid
from refdiff.tools.workspace import Workspace

_MAX_MOVE_CELLS = 0.25  # displacement at which two images still count as lying alike


@dataclass(frozen=True)
class Grid:
    """The pixels on which a photo and its references are compared."""

    size: tuple[int, int]  # (H, W) work px, multiples of 32
    matrix: Matrix  # (3, 3): photo px -> grid px
    frame: GoldenPlace | None  # of a golden of the frame that it is; None: the photo's own pixels
    still: bool  # the photo lies on it as it is, merely resized


@dataclass(frozen=True)
class Seen:
    """An image on a grid, as the network sees it."""

    maps: dict[int, Tensor]  # stride -> (C, H / stride, W / stride)
    picture: Picture


def scaling(size: tuple[int, ...], target: tuple[int, ...]) -> Matrix:
    """(3, 3): px of an image of `size` (H, W, ...) -> px of the same image at `target`."""
    return np.diag([target[1] / size[1], target[0] / size[0], 1.0])


# ---- where it lies ----


def alignment(workspace: Workspace, query: RgbImage, query_key: str, golden: Golden) -> Alignment:
    """Registration of a golden to a photo (H, W, 3). query_key: sha256 of the photo.

    The photo is registered to the anchor of the golden's frame, which is computed once per photo and frame, and the result
    carried over; to the golden itself only where that fails. Raises DamagedError where its photo is missing or damaged.
    """
    place = place_of(workspace, golden)
    known = _anchor_alignment(workspace, query, query_key, place)
    if known is not None and known.ok:
        anchor = GoldenPlace(
            place.anchor_id, place.product, place.anchor_id, place.anchor_sha256, place.anchor_size, place.anchor_size,
            tuple(np.eye(3).ravel().tolist()),
        )  # fmt: skip
        return carried_over(known, anchor, place, query.shape[:2])
    if known is not None and place.is_anchor:
        return known
    workspace.golden_image(golden)  # says which golden is damaged
    return workspace.registration(query, query_key, golden.sha256, golden.product)


def _anchor_alignment(workspace: Workspace, query: RgbImage, query_key: str, place: GoldenPlace) -> Alignment | None:
    """Registration of a frame's anchor to a photo; None where the anchor's photo is lost."""
    itself = workspace.stores.frames.get(make_golden_id(place.product, query_key))
    if itself is not None and itself.anchor_id == place.anchor_id:
        return anchor_on_golden(itself)  # it was measured when this photo was enrolled
    try:
        return workspace.registration(query, query_key, place.anchor_sha256, place.product)
    except (DamagedError, UnknownRecordError):
        return None


def alignments(workspace: Workspace, query: RgbImage, query_key: str, goldens: Sequence[Golden]) -> list[Alignment]:
    """Registrations of several goldens to a photo; those in the frame of the first that registers follow from its own."""
    found: list[Alignment] = []
    known: tuple[Alignment, GoldenPlace] | None = None
    for golden in goldens:
        place = place_of(workspace, golden)
        if known is not None and place.anchor_id == known[1].anchor_id:
            found.append(carried_over(known[0], known[1], place, query.shape[:2]))
            continue
        found.append(alignment(workspace, query, query_key, golden))
        if known is None and found[-1].ok:
            known = (found[-1], place)
    return found


# ---- on the grid ----


def frame_grid(
    workspace: Workspace, query: RgbImage, query_key: str, features: Features, golden: Golden, on_photo: Alignment
) -> Grid:
    """The frame of a golden that is registered to a photo, at working size. features: of the photo as it is.

    It is the same for all goldens of the frame where the photo is registered to their anchor.
    """
    place = place_of(workspace, golden)
    size = work_size(place.anchor_size, workspace.model_settings.working_px)
    known = _anchor_alignment(workspace, query, query_key, place)
    of_anchor = known.matrix if known and known.ok else on_photo.matrix @ np.linalg.inv(matrix_of(place))
    matrix = scaling(place.anchor_size, size) @ np.linalg.inv(of_anchor)
    matrix = matrix / matrix[2, 2]
    still = size == features.work_size and not _moves(matrix @ scaling(size, query.shape), size)
    return Grid(size, matrix, place, still)


def own_grid(query: RgbImage, features: Features) -> Grid:
    """The photo's own pixels at working size."""
    return Grid(features.work_size, scaling(query.shape, features.work_size), None, True)


def _moves(matrix: Matrix, size: tuple[int, int], least: float = _MAX_MOVE_CELLS * GRID_STRIDE) -> bool:
    """Does it move any place of a grid by more px than a matching window forgives unnoticed?"""
    h, w = size
    corners = np.array([[[0, 0], [w, 0], [0, h], [w, h]]], np.float64)
    return float(np.abs(cv2.perspectiveTransform(corners, matrix) - corners).max()) > least


def photo_on(workspace: Workspace, query: RgbImage, query_key: str, features: Features, grid: Grid) -> Seen:
    """A photo on a grid, encoded there if it must be warped. features: of the photo as it is."""
    if grid.still:
        return Seen(features.maps, Picture.of(resize_to(query, grid.size)))
    picture, encoded = warped(workspace, query, query_key, grid)
    return Seen(encoded.maps, picture)


def warped(workspace: Workspace, query: RgbImage, query_key: str, grid: Grid) -> tuple[Picture, Features]:
    """A photo as it lies on the grid of a frame, completed by the anchor where it ends, and its features."""
    frame = grid.frame

    def beyond() -> RgbImage:
        assert frame is not None, "a photo is not warped to its own pixels"
        return _resized(workspace, frame.anchor_sha256, frame.product, grid.size).image

    return workspace.warped(query, query_key, grid.matrix, grid.size, beyond)


def _resized(workspace: Workspace, sha256: str, product: str, size: tuple[int, int]) -> Picture:
    """A golden's photo at a working size."""
    photo, on_disk = workspace.cache_key(sha256, product)

    def draw() -> Picture:
        return Picture.of(resize_to(workspace.image(sha256, product, "golden sample"), size))

    return workspace.pictures.get(f"{photo}-{size[0]}x{size[1]}", draw, on_disk)


def golden_on(workspace: Workspace, golden: Golden, on_photo: Alignment, grid: Grid) -> Seen:
    """A registered golden on a grid: from the cache where that is its own frame."""
    place = place_of(workspace, golden)
    in_frame = grid.frame is not None and place.anchor_id == grid.frame.anchor_id
    matrix = scaling(place.anchor_size, grid.size) @ matrix_of(place) if in_frame else grid.matrix @ on_photo.matrix

    def draw() -> Picture:
        return Picture.of(*on_grid(workspace.golden_image(golden), matrix, grid.size))

    def encode(picture: Picture) -> Features:
        return workspace.encoder.embed(picture.image, grid.size)

    if not in_frame:
        picture = draw()
        return Seen(rounded(encode(picture)).maps, picture)
    photo, on_disk = workspace.cache_key(golden.sha256, golden.product)
    own = work_size(place.size, workspace.model_settings.working_px)
    if own == grid.size and not _moves(matrix @ scaling(grid.size, place.size), grid.size, least=1e-3):
        picture = _resized(workspace, golden.sha256, golden.product, grid.size)
        return Seen(workspace.golden_features(golden).maps, picture)
    where = hashlib.sha256(repr((place.anchor_sha256, place.matrix, grid.size)).encode()).hexdigest()[:16]
    picture = workspace.pictures.get(f"{photo}-{where}", draw, on_disk)
    return Seen(workspace.features.get(f"{photo}-{where}", lambda: encode(picture), on_disk).maps, picture)
