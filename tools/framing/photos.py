"""A photo and its references on one pixel grid: registered once, warped once, encoded once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cache, partial

import cv2
import numpy as np
from propcache.api import cached_property

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.rows.frames import GoldenPlace
from refdiff.model.arrays import Array
from refdiff.model.difference.feature_maps import GRID_STRIDE
from refdiff.model.difference.features import Features, resize_to, work_size
from refdiff.model.errors import DamagedError, UnknownRecordError
from refdiff.model.images import RgbImage
from refdiff.tools.caches.feature_cache import Picture, rounded
from refdiff.tools.framing.frames import anchor_of, carried_over, matrix_of, place_of
from refdiff.tools.framing.tiles import Tile, grid_tiles
from refdiff.tools.vision.refinement import refined
from refdiff.tools.vision.registration import Alignment, Matrix, OnGrid, completed, registered, scaling
from refdiff.tools.workspace import Workspace

# displacement, in work px, at which an image still lies on a grid as it is: a quarter of a cell for a photo, which matching
# forgives unnoticed; less for goldens, whose errors would add to it
_STILL_PHOTO_PX = 0.25 * GRID_STRIDE
_STILL_GOLDEN_PX = 0.5
_BATCH = 8  # tiles that are encoded at once
_DRAWN = "3"  # of how goldens are drawn in their frame: raise when that changes


@dataclass(frozen=True, eq=False)
class Query:
    """A photo that is compared with golden samples: its pixels, by which name caches know it, and how it was found to lie.

    image: (H, W, 3) uint8 RGB. key: sha256 of its file. features: of the photo as it is. poses: by frame, the golden that it
    was registered to and how that lies on it. They belong to one comparison: two at once, or one after another, of the same
    photo with other goldens must not see each other's.
    """

    image: RgbImage
    key: str
    features: Features
    poses: dict[str, tuple[GoldenPlace, Alignment]] = field(default_factory=dict)

    def as_registered(self) -> Query:
        """The same, which shares no further registration with this one."""
        return replace(self, poses=dict(self.poses))


@dataclass(frozen=True)
class Grid:
    """The pixels on which a photo and its references are compared, tile by tile."""

    size: tuple[int, int]  # (H, W) work px, multiples of 32
    matrix: Matrix  # (3, 3): photo px -> grid px
    frame: GoldenPlace | None  # of a golden of the frame that it is; None: the photo's own pixels
    still: bool  # the photo lies on it as it is, merely resized
    tiles: list[Tile]

    @property
    def whole(self) -> bool:
        return len(self.tiles) == 1


@dataclass(frozen=True)
class Seen:
    """An image on a tile of a grid, as the network sees it."""

    tile: Tile
    maps: dict[int, Array]  # stride -> (C, H / stride, W / stride)
    picture: Picture


# ---- where it lies ----


def alignment(workspace: Workspace, query: Query, golden: Golden) -> Alignment:
    """Registration of a golden to a photo.

    A photo is registered to one golden of a frame, the first that is asked for: that is the nearest, under the same lamp.
    The others of the frame follow. Where that fails, it is registered to the anchor. Raises DamagedError where the photo of
    the golden is missing or damaged.
    """
    place = place_of(workspace, golden)
    if (pose := query.poses.get(place.anchor_id)) is not None:
        known_place, known = pose
        same = known_place.golden_id == place.golden_id
        return known if same else carried_over(known, known_place, place, query.image.shape[:2])
    workspace.golden_image(golden)  # says which golden is damaged
    found = workspace.registration(query.image, query.key, golden.sha256, golden.product)
    if found.ok:
        query.poses[place.anchor_id] = place, found
    if found.ok or place.is_anchor:
        return found
    with contextlib.suppress(DamagedError, UnknownRecordError):
        known = workspace.registration(query.image, query.key, place.anchor_sha256, place.product)
        if known.ok:
            return carried_over(known, anchor_of(place), place, query.image.shape[:2])
    return found


def alignments(
    workspace: Workspace, query: Query, goldens: Sequence[Golden], working_px: int | None = None
) -> list[Alignment]:
    """Registrations of several goldens to a photo; those in the frame of the first that registers follow from its own.

    working_px: at which they will be compared; where that asks for it, the registration is refined.
    """
    found: list[Alignment] = []
    known: tuple[Alignment, GoldenPlace] | None = None
    for golden in goldens:
        place = place_of(workspace, golden)
        if known is not None and place.anchor_id == known[1].anchor_id:
            found.append(carried_over(known[0], known[1], place, query.image.shape[:2]))
            continue
        found.append(alignment(workspace, query, golden))
        if known is None and found[-1].ok:
            if working_px is not None and working_px > workspace.model_settings.working_px:
                found[-1] = _refined(workspace, query.image, found[-1], place)
            known = (found[-1], place)
    return found


def _refined(workspace: Workspace, query: RgbImage, found: Alignment, place: GoldenPlace) -> Alignment:
    """The registration of a golden to a photo, its frame's anchor registered to the photo's own pixels."""
    if (anchor := _anchor_photo(workspace, place)) is None:
        return found
    on_anchor = matrix_of(place)
    matrix = refined(query, anchor, found.matrix @ np.linalg.inv(on_anchor)) @ on_anchor
    return registered(found.method, matrix / matrix[2, 2], found.residual_px, found.overlap, found.ncc, place.size)


def _anchor_photo(workspace: Workspace, place: GoldenPlace) -> RgbImage | None:
    """The photo of the anchor of a golden's frame, (H, W, 3); None where it is missing or damaged: the anchor may be out of
    use, and must not keep the others from being used."""
    try:
        return workspace.image(place.anchor_sha256, place.product, "golden sample")
    except (DamagedError, UnknownRecordError):
        return None


# ---- on the grid ----


def frame_grid(
    workspace: Workspace, query: Query, golden: Golden, on_photo: Alignment, working_px: int | None = None
) -> Grid:
    """The frame of a golden that is registered to a photo.

    working_px: of its long side; default: that of retrieval.
    """
    place = place_of(workspace, golden)
    size, tiles = frame_tiles(workspace, place, working_px)
    matrix = scaling(place.anchor_size, size) @ matrix_of(place) @ np.linalg.inv(on_photo.matrix)
    matrix = np.round(matrix / matrix[2, 2], 9)  # the same whichever golden of the frame it was carried over from
    moves = _moves(matrix @ scaling(size, query.image.shape), size, _STILL_PHOTO_PX)
    still = size == query.features.work_size and not moves
    return Grid(size, matrix, place, still, tiles)


def frame_tiles(
    workspace: Workspace, place: GoldenPlace, working_px: int | None = None
) -> tuple[tuple[int, int], list[Tile]]:
    """(H, W) work px of the grid of a golden's frame, and its tiles. working_px: as for `frame_grid`."""
    least = workspace.model_settings.working_px
    px = working_px or least
    return work_size(place.anchor_size, px), grid_tiles(place.anchor_size, px, least)


def golden_tiles(workspace: Workspace, golden: Golden, working_px: int | None = None) -> Iterator[Seen]:
    """A golden on the tiles of its own frame, as every photo that is registered there is compared with it."""
    place = place_of(workspace, golden)
    size, tiles = frame_tiles(workspace, place, working_px)
    grid = Grid(size, scaling(place.anchor_size, size), place, False, tiles)
    on_anchor = registered("identity", matrix_of(place), 0.0, 1.0, 1.0, place.size)
    there = GoldenOnGrid(workspace, golden, on_anchor, grid)
    return (there.on(tile) for tile in tiles)


def own_grid(query: Query) -> Grid:
    """The photo's own pixels at the working size of retrieval."""
    h, w = query.features.work_size
    return Grid((h, w), scaling(query.image.shape, (h, w)), None, True, [Tile(0, 0, h, w)])


def _moves(matrix: Matrix, size: tuple[int, int], least: float) -> bool:
    """Does it move any place of a grid by more than `least` px?"""
    h, w = size
    corners = np.array([[[0, 0], [w, 0], [0, h], [w, h]]], np.float64)
    return float(np.abs(cv2.perspectiveTransform(corners, matrix) - corners).max()) > least


def photo_on(workspace: Workspace, query: Query, grid: Grid) -> Iterator[Seen]:
    """A photo on the tiles of a grid, encoded there if it must be warped."""
    if grid.still:
        yield Seen(grid.tiles[0], query.features.maps, Picture.of(resize_to(query.image, grid.size)))
    elif grid.whole:
        picture, encoded = warped(workspace, query, grid)
        yield Seen(grid.tiles[0], encoded.maps, picture)
    else:
        source, beyond = OnGrid(query.image, grid.matrix), _anchor_drawing(workspace, grid)
        for at in range(0, len(grid.tiles), _BATCH):
            tiles = grid.tiles[at : at + _BATCH]
            pictures = []
            for tile in tiles:
                drawn, covered = source.window(*astuple(tile))
                if not covered.all():
                    drawn = completed(drawn, covered, beyond().window(*astuple(tile))[0])
                pictures.append(Picture.of(drawn, covered))
            encoded_tiles = workspace.encoder.embed_batch([p.image for p in pictures], (tiles[0].h, tiles[0].w))
            for tile, picture, features_ in zip(tiles, pictures, encoded_tiles, strict=True):
                yield Seen(tile, features_.maps, picture)


def _anchor_drawing(workspace: Workspace, grid: Grid) -> Callable[[], OnGrid]:
    """Draws what lies beyond a photo on the grid of a frame, once it is asked for."""
    frame = grid.frame
    assert frame is not None, "a photo's own pixels need nothing beyond"

    @cache
    def drawing() -> OnGrid:
        anchor = _anchor_photo(workspace, frame)
        return _instead(workspace, frame, grid.size) if anchor is None else _anchor_on(anchor, grid.size)

    return drawing


def _anchor_on(anchor: RgbImage, size: tuple[int, int]) -> OnGrid:
    return OnGrid(anchor, scaling(anchor.shape, size))


def _instead(workspace: Workspace, frame: GoldenPlace, size: tuple[int, int]) -> OnGrid:
    """Draws, for an anchor whose photo is lost, the golden that was registered."""
    golden = workspace.golden_image(workspace.bank.get(frame.golden_id))
    return OnGrid(golden, scaling(frame.anchor_size, size) @ matrix_of(frame))


def warped(workspace: Workspace, query: Query, grid: Grid) -> tuple[Picture, Features]:
    """A photo as it lies on the grid of a frame, completed by the anchor where it ends, and its features."""
    frame = grid.frame
    assert frame is not None, "a photo is not warped to its own pixels"
    anchor = _anchor_photo(workspace, frame)

    def beyond() -> RgbImage:
        if anchor is None:
            return _instead(workspace, frame, grid.size).window(0, 0, *grid.size)[0]
        return _resized(workspace, frame.anchor_sha256, frame.product, grid.size, lambda: anchor).image

    shown = frame.golden_id if anchor is None else frame.anchor_id
    return workspace.warped(query.image, query.key, grid.matrix, grid.size, (frame.anchor_id, shown), beyond)


def _resized(
    workspace: Workspace, sha256: str, product: str, size: tuple[int, int], image: Callable[[], RgbImage]
) -> Picture:
    """A golden's photo, which `image` gives, at a working size."""
    photo, on_disk = workspace.cache_key(sha256, product)
    return workspace.pictures.get(f"{photo}-{size[0]}x{size[1]}", lambda: Picture.of(resize_to(image(), size)), on_disk)


class GoldenOnGrid:
    """A registered golden on the tiles of a grid: from the cache where that is its own frame, and it lies there as it was
    registered."""

    def __init__(self, workspace: Workspace, golden: Golden, on_photo: Alignment, grid: Grid) -> None:
        self._workspace, self._golden, self._grid = workspace, golden, grid
        place = place_of(workspace, golden)
        in_frame = scaling(place.anchor_size, grid.size) @ matrix_of(place)
        measured = np.asarray(grid.matrix @ on_photo.matrix, np.float64)
        # height maps are registered to each golden anew, which may turn a part that looks the same either way
        self._framed = (
            grid.frame is not None
            and place.anchor_id == grid.frame.anchor_id
            and not _moves(in_frame @ np.linalg.inv(measured), grid.size, _STILL_PHOTO_PX)
        )
        self._matrix = in_frame if self._framed else measured
        # in the frame as it is, it was encoded for retrieval
        as_it_is = grid.size == work_size(place.size, workspace.model_settings.working_px)
        plain = self._matrix @ scaling(grid.size, place.size)
        self._still = self._framed and grid.whole and as_it_is and not _moves(plain, grid.size, _STILL_GOLDEN_PX)
        self._frame = f"{place.anchor_sha256}{place.matrix}"

    def on(self, tile: Tile) -> Seen:
        """The golden as it lies on a tile."""
        workspace, grid, golden = self._workspace, self._grid, self._golden
        if self._still:
            image = partial(workspace.golden_image, golden)
            picture = _resized(workspace, golden.sha256, golden.product, grid.size, image)
            return Seen(tile, workspace.golden_features(golden).maps, picture)
        if not self._framed:
            picture = self._draw(tile)
            return Seen(tile, rounded(self._encode(picture)).maps, picture)
        photo, on_disk = workspace.cache_key(golden.sha256, golden.product)
        # asked of the photo that is drawn, not of its file: what is kept must say what it shows
        lost = "lost" if self._anchor is None else ""
        where = hashlib.sha256(f"{_DRAWN}{self._frame}{lost}{grid.size}{astuple(tile)}".encode()).hexdigest()[:16]
        # many tiles are drawn faster than read
        picture = workspace.pictures.get(f"{photo}-{where}", lambda: self._draw(tile), on_disk and grid.whole)
        encoded = workspace.features.get(f"{photo}-{where}", lambda: self._encode(picture), on_disk)
        return Seen(tile, encoded.maps, picture)

    @cached_property
    def _source(self) -> OnGrid:
        return OnGrid(self._workspace.golden_image(self._golden), self._matrix)

    @cached_property
    def _anchor(self) -> RgbImage | None:
        """The anchor, which is shown where the golden ends; None where its photo is lost, for what is drawn is kept and must
        not depend on the photo that is inspected."""
        return None if self._grid.frame is None else _anchor_photo(self._workspace, self._grid.frame)

    @cached_property
    def _beyond(self) -> OnGrid | None:
        return None if self._anchor is None else _anchor_on(self._anchor, self._grid.size)

    def _draw(self, tile: Tile) -> Picture:
        drawn, covered = self._source.window(*astuple(tile))
        if not covered.all() and self._beyond is not None:
            drawn = completed(drawn, covered, self._beyond.window(*astuple(tile))[0])
        return Picture.of(drawn, covered)

    def _encode(self, picture: Picture) -> Features:
        return self._workspace.encoder.embed(picture.image, (picture.pixels.shape[1], picture.pixels.shape[2]))
