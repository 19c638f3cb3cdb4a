"""The difference of a photo and its registered golden samples: anomaly map, image score, types.

Both lie in one frame, whose golden features come from the cache; what is found there goes back to the photo's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from propcache.api import cached_property

from refdiff.memory.golden_bank.golden import Golden, GoldenHit
from refdiff.model.cloud.difference import CloudDifference
from refdiff.model.difference.comparing import MAP_STRIDE, SCORED_PART, Comparing, fuse
from refdiff.model.difference.feature_maps import GRID_STRIDE
from refdiff.model.difference.features import Features, work_size
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.patch_distance import anomaly_map as patch_distance
from refdiff.model.difference.patch_distance import image_score, reached_cells
from refdiff.model.height.difference import HeightDifference
from refdiff.model.images import RgbImage
from refdiff.model.thermal.difference import HeatDifference
from refdiff.tools.framing.photos import GoldenOnGrid, Grid, Query, Seen, frame_grid, own_grid
from refdiff.tools.framing.tiles import TILE_PX, Blend, Tile
from refdiff.tools.inspection.focus import Focus
from refdiff.tools.vision.regions import MIN_RELATIVE_PEAK, map_size, on_map
from refdiff.tools.vision.registration import Alignment, Matrix, coverage, scaling, warp, warp_reference
from refdiff.tools.workspace import Workspace

_SURROUNDINGS = 2.0  # cells of the descriptors around a finding that differ because of it
_LEVEL_PART = 0.25  # a defect that covers less than three quarters of the photo leaves this part of the cells as it is


@dataclass(frozen=True)
class Difference:
    """How a photo differs from its references."""

    anomaly_map: NDArray[np.float32]  # `map_size` of the photo, >= 0; 0 where no reference reaches
    score: float  # image score, continuous
    peak: float  # largest value of the map
    covered: float  # part 0..1 of the photo that some reference reaches
    scored: float  # part 0..1 of the grid that the score is of: reached, and in no ignore zone
    types: NDArray[np.float32]  # (T, h, w) probabilities of DIFFERENCE_TYPES, all over the photo
    cell: float  # px of the map that the distance to the nearest patch cannot tell apart: one of its cells
    focus_problem: str  # why the photo's focus makes this unreliable, "" if it does not
    level: float  # lower quartile of the cells that count: how much even what fits best differs
    # of photos: what the score is the mean of; None where it is the value of the map's highest place
    cells: ScoredCells | None = None
    added: float = 0.0  # part of the score that no place of the map shows: wrong counts, a photo that does not register
    heat: HeatDifference | None = None  # of a thermal picture: what its places are measured in
    height: HeightDifference | None = None  # of a height map: the same
    scan: CloudDifference | None = None  # of a point cloud: the same
    colour: ColourDifference | None = None  # of a height map with a colour photo: see `colour.as_one`
    # the same: mm of height, and of the colour's map, that are 1 of the map
    thresholds: tuple[float, float] = (1.0, 1.0)
    # the same: of what stands out alone, the part of its threshold from which a place is one of it; see
    # `colour.as_each_stands_out`
    least: tuple[float | None, float | None] = (None, None)

    @property
    def offset(self) -> float:
        """What was added to the measured values of the nearest reference; 0 for kinds that have none."""
        return self.heat.shift_k if self.heat is not None and self.heat.removed else 0.0

    @property
    def fit(self) -> tuple[float, float, float, float]:
        """Of height maps, what was added to the heights of the nearest reference (a plane: mm at px (0, 0), mm a px to the
        right, down), and what they were multiplied by before."""
        return (0.0, 0.0, 0.0, 1.0) if self.height is None else (*self.height.plane, self.height.factor)

    @property
    def colour_map(self) -> NDArray[np.float32] | None:
        """(H, W), of height maps with a colour photo: the colour's part of the anomaly map; else None."""
        if self.colour is None:
            return None
        return np.asarray(self.colour.found.anomaly_map / np.float32(self.thresholds[1]), np.float32)

    def cell_of(self, size: tuple[int, ...]) -> float:
        """px of a photo of `size` (H, W, ...) that the map cannot tell apart."""
        return self.cell * max(size[:2]) / max(self.anomaly_map.shape)


@dataclass(frozen=True)
class RegisteredGolden:
    """A golden as it lies on a photo of `size` (H, W)."""

    workspace: Workspace
    golden: Golden
    alignment: Alignment
    size: tuple[int, int]

    @cached_property
    def picture(self) -> RgbImage:
        """The golden on the photo's pixel grid, (H, W, 3) uint8; merely resized where it did not register."""
        return warp_reference(self.workspace.golden_image(self.golden), self.alignment.matrix, self.size)[0]

    @cached_property
    def reduced(self) -> RgbImage:
        """The same at the `map_size` of the photo, for all that needs no finer pixels."""
        if map_size(self.size) == self.size:
            return self.picture
        return on_map(self.workspace.golden_image(self.golden), self.alignment.matrix, self.size)


@dataclass(frozen=True)
class ColourDifference:
    """How the colour photo of a height map differs. query: (H, W, 3), the photo. nearest: its golden sample in colour.

    alignments: of all its golden samples, as their heights lie, with the edge correlation of the colours.
    """

    found: Difference
    query: RgbImage
    nearest: RegisteredGolden
    alignments: list[Alignment]
    format_problem: str  # as of `Comparison`


@dataclass(frozen=True)
class Comparison:
    """One photo against its references, nearest first."""

    hits: list[GoldenHit]
    alignments: list[Alignment]
    nearest: RegisteredGolden
    difference: Difference
    ignore: NDArray[np.bool_] | None  # `map_size` of the photo: what lies in ignore zones
    zones_placed: bool
    features: Features  # of the photo as it is
    format_problem: str  # why the photo's pixel format makes this unreliable, "" if it does not
    timings_ms: dict[str, float]  # encode, retrieve, align, score


def comparison_grid(query: Query, references: Sequence[RegisteredGolden], working_px: int | None = None) -> Grid:
    """Where a photo is compared: in the frame of the first reference that registered, else on its own pixels.

    working_px: of the frame's long side; default: that of retrieval.
    """
    for one in references:
        if one.alignment.ok:
            return frame_grid(one.workspace, query, one.golden, one.alignment, working_px)
    return own_grid(query)


@dataclass(frozen=True)
class SizedPhoto:
    """A photo at one working size."""

    grid: Grid
    tiles: Iterable[Seen]


class ReferenceViews:
    """A golden as the photo on a grid sees it, tile by tile; in its own pixels if it could not be registered."""

    def __init__(self, reference: RegisteredGolden, grid: Grid) -> None:
        self._workspace, self._golden = reference.workspace, reference.golden
        on_grid = GoldenOnGrid(reference.workspace, reference.golden, reference.alignment, grid)
        self._there = on_grid if reference.alignment.ok else None

    def view(self, seen: Seen) -> ReferenceView:
        """The golden where a tile of the photo is."""
        if self._there is None:
            own = self._workspace.golden_features(self._golden)
            anywhere = np.ones(own.maps.grid, bool)
            return ReferenceView(own.maps, anywhere, registered=False)
        there = self._there.on(seen.tile)
        photo, reaches = seen.picture.covered, there.picture.covered
        # where the photo ends there is as little to compare as where the golden does
        covered = reaches & photo
        cells = cv2.resize(
            covered.astype(np.float32),
            (seen.tile.w // GRID_STRIDE, seen.tile.h // GRID_STRIDE),
            interpolation=cv2.INTER_AREA,
        )
        # what the golden does not show on this grid may lie beyond its edge
        beyond = bool((photo & ~reaches).any())
        own_maps = self._workspace.golden_features(self._golden).maps if beyond else there.maps
        return ReferenceView(there.maps, cells > 0.5, True, there.picture.pixels, covered, own_maps)


def _cells(grid: Grid, stride: int) -> tuple[int, int]:
    return grid.size[0] // stride, grid.size[1] // stride


def score_difference(
    query: RgbImage,
    sizes: Sequence[SizedPhoto],
    references: Sequence[RegisteredGolden],
    ignore: NDArray[np.bool_] | None = None,
    network: Comparing | None = None,
) -> Difference:
    """Compare a photo (H, W, 3) with its registered (or, where that failed, unregistered) goldens.

    sizes: the photo at one or more working sizes, the finest first; what they say counts alike. ignore: bool, at the
    photo's `map_size`, what does not count (the map is 0 there). network: default the shared one.
    """
    size, network = map_size(query.shape), network or references[0].workspace.difference
    focus, grid = Focus(), sizes[0].grid
    back = OnPhoto(query.shape, grid)
    ignored = back.onto(ignore) > 0.5 if ignore is not None and ignore.any() else None

    def look_at(seen: Seen, here: Sequence[ReferenceView]) -> None:
        focus.add(seen.picture.pixels, here, None if ignored is None else seen.tile.of(ignored, MAP_STRIDE))

    finest = compared_at(sizes[0], references, network, look_at)
    seen_at = [finest, *(compared_at(sized, references, network) for sized in sizes[1:])]
    keep = scored_cells(finest.reached, ignored, grid)
    cells = mean_cells([s.cells for s in seen_at], [s.reached for s in seen_at]) * keep
    coarsest = max(max(grid.size) / max(sized.grid.size) for sized in sizes)
    scored_by = ScoredCells(cells, keep, grid, back, _SURROUNDINGS * coarsest * GRID_STRIDE / MAP_STRIDE)
    # half a cell of smoothing: the map must not show the grid
    large = cv2.resize(cells, grid.size[::-1], interpolation=cv2.INTER_LINEAR)
    smooth = back.to(np.asarray(cv2.GaussianBlur(large, (0, 0), MAP_STRIDE / 2), np.float32), size)
    if ignore is not None:
        smooth[ignore] = 0
    score = scored_by.score
    covered = float((back.to(finest.reached, back.cells) > 0.5).mean())
    types = np.stack([back.to(_mean_of(kind), back.cells) for kind in zip(*(s.types for s in seen_at), strict=True)])
    scored, cell, problem = float(keep.mean()), back.cell_px(size), focus.problem()
    level = float(np.quantile(cells[keep], _LEVEL_PART)) if keep.any() else 0.0
    return Difference(smooth, score, float(smooth.max()), covered, scored, types, cell, problem, level, scored_by)


@dataclass(frozen=True)
class ScoredCells:
    """What the image score of a photo is the mean of.

    values: (h, w) >= 0 of a grid, at the stride of the map; keep: those that count. back: to the photo. surroundings: cells
    around a defect that differ because of it.
    """

    values: NDArray[np.float32]
    keep: NDArray[np.bool_]
    grid: Grid
    back: OnPhoto
    surroundings: float

    @property
    def score(self) -> float:
        return grid_score(self.values, self.keep, self.grid)

    def score_without(self, found: NDArray[np.bool_]) -> float:
        """The score if what was `found`, bool on the photo, and what surrounds it did not count; 0 where it is so much
        lower that it may be the halo of what was found."""
        there = self.back.onto(found) > 0
        if not there.any():
            return self.score
        away = cv2.distanceTransform((~there).astype(np.uint8), cv2.DIST_L2, 5) > self.surroundings
        rest = grid_score(self.values, self.keep & away, self.grid)
        return rest if rest > MIN_RELATIVE_PEAK * self.score else 0.0


@dataclass(frozen=True)
class ComparedPhoto:
    """What a photo at one working size says."""

    cells: NDArray[np.float32]  # (h, w) >= 0 of the grid, at the stride of the map
    types: NDArray[np.float32]  # (T, h, w) probabilities
    reached: NDArray[np.float32]  # 1 where some reference reaches, else 0; at the stride of the grid


def compared_at(
    sized: SizedPhoto,
    references: Sequence[RegisteredGolden],
    network: Comparing,
    look_at: Callable[[Seen, Sequence[ReferenceView]], None] = lambda seen, here: None,
) -> ComparedPhoto:
    """A photo at one working size beside its references. look_at: is shown each tile, and the references there."""
    views = [ReferenceViews(r, sized.grid) for r in references]
    fine, coarse = Blend(sized.grid.size, MAP_STRIDE), Blend(sized.grid.size, GRID_STRIDE)
    for seen in sized.tiles:
        here = [v.view(seen) for v in views]
        look_at(seen, here)
        cells, types = compared(seen, here, network)
        fine.add("cells", seen.tile, cells)
        fine.add("types", seen.tile, types)
        coarse.add("reached", seen.tile, reach(seen.tile, here))
    return ComparedPhoto(fine.mean("cells"), fine.mean("types"), coarse.mean("reached"))


def mean_cells(cells: Sequence[NDArray[np.float32]], reached: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean cells (h, w) of a photo at several working sizes, as many as at the first. reached: see `ComparedPhoto`.

    Where a further size reaches no golden sample (its cells are larger, so along their ends that is wider) it says nothing.
    """
    size = cells[0].shape
    weights = np.stack([np.ones(size, bool), *(_resized(r, size) > 0.5 for r in reached[1:])])
    return np.asarray(np.average(np.stack([_resized(c, size) for c in cells]), 0, weights), np.float32)


def _mean_of(planes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of planes of one frame, each of any size; (h, w) as the first."""
    return np.asarray(np.mean([_resized(p, planes[0].shape) for p in planes], 0), np.float32)


def _resized(plane: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def compared(
    seen: Seen, here: Sequence[ReferenceView], network: Comparing
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A tile of the photo beside its references: cells (h, w) >= 0 at the stride of the map, and (T, h, w) types."""
    made = network.compare(seen.picture.pixels, seen.maps, here)
    distance = np.asarray(patch_distance(seen.maps, here))
    return fuse(distance, np.asarray(made.logits), network.power), np.asarray(made.types)


def reach(tile: Tile, here: Sequence[ReferenceView]) -> NDArray[np.float32]:
    """1 where some reference reaches, else 0: (h, w) of a tile at the stride of the grid."""
    return np.asarray(reached_cells(here, (tile.h // GRID_STRIDE, tile.w // GRID_STRIDE)), np.float32)


def scored_cells(reached: NDArray[np.float32], ignored: NDArray[np.bool_] | None, grid: Grid) -> NDArray[np.bool_]:
    """Cells of a grid, at the stride of the map, that count: some reference reaches them, and none of `ignored`."""
    keep = cv2.resize(reached, _cells(grid, MAP_STRIDE)[::-1], interpolation=cv2.INTER_NEAREST) > 0.5
    return keep if ignored is None else keep & ~ignored


def grid_score(cells: NDArray[np.float32], keep: NDArray[np.bool_], grid: Grid) -> float:
    """The image score of the cells of a grid."""
    # as many cells as of one tile: a defect does not score less because more is looked at
    part = SCORED_PART * min(1.0, (TILE_PX // MAP_STRIDE) ** 2 / max(1, int(keep.sum())))
    return image_score(cells, keep, part if not grid.whole else SCORED_PART)


class OnPhoto:
    """Brings planes of a grid to the photo of size `photo` that lies on it, and back.

    cells: (h, w) of the photo in cells of the map.
    """

    def __init__(self, photo: tuple[int, ...], grid: Grid) -> None:
        self._photo, self._grid = photo, grid
        self.cells = _cells(grid, MAP_STRIDE)
        if not grid.still:
            work = work_size((photo[0], photo[1]), max(grid.size))
            self.cells = work[0] // MAP_STRIDE, work[1] // MAP_STRIDE

    def to(self, plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """A plane of the whole grid, of any resolution, on the photo at `size` (H, W); 0 where the grid ends."""
        if self._grid.still:
            return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        matrix = self._matrix(plane.shape, size)
        return np.asarray(warp(plane, matrix, size) * coverage(matrix, plane.shape, size), np.float32)

    def cell_px(self, size: tuple[int, int]) -> float:
        """Side of a cell of the distance to the nearest patch, px of the photo at `size` (H, W)."""
        # px of the photo that a px of the grid shows, in the middle
        h, w = self._grid.size
        middle = np.array([[[w / 2, h / 2], [w / 2 + 1, h / 2], [w / 2, h / 2 + 1]]], np.float64)
        a, b, c = cv2.perspectiveTransform(middle, self._matrix(self._grid.size, size))[0]
        # a working size below one tile never counted for more: specks were left out by the size of the photo
        return max(float(np.hypot(*(b - a))), float(np.hypot(*(c - a)))) * GRID_STRIDE * min(1.0, max(h, w) / TILE_PX)

    def onto(self, plane: NDArray[np.bool_]) -> NDArray[np.float32]:
        """What part 0..1 of each cell of the grid a plane of the photo covers: (h, w) at the stride of the map."""
        cells = _cells(self._grid, MAP_STRIDE)
        small = cv2.resize(plane.astype(np.float32), self.cells[::-1], interpolation=cv2.INTER_AREA)
        if self._grid.still:
            return np.asarray(small, np.float32)
        matrix = np.asarray(np.linalg.inv(self._matrix(cells, self.cells)), np.float64)
        return np.asarray(warp(small, matrix, cells), np.float32)

    def _matrix(self, plane: tuple[int, ...], size: tuple[int, int]) -> Matrix:
        on_photo = np.linalg.inv(self._grid.matrix) @ scaling(plane, self._grid.size)
        return np.asarray(scaling(self._photo, size) @ on_photo, np.float64)
