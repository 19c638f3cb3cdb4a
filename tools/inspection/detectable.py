"""How small a defect is found: marks of known size are drawn on the golden samples of a product and compared as photos are.

Each golden sample is inspected as its calibration inspects it, without what shows the same part and by a network that has
not seen it. A mark is found if the score would fail a part by that calibration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.rows.calibrations import Calibration, MarksFound
from refdiff.model.difference.comparing import MAP_STRIDE, Comparing
from refdiff.model.difference.feature_maps import GRID_STRIDE
from refdiff.model.difference.features import Encoding
from refdiff.model.errors import InputError, UnavailableError
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.model.synthesis.marks import Mark, drawn, room
from refdiff.model.synthesis.photo_pairs import foreground_of
from refdiff.tools.caches.feature_cache import Picture
from refdiff.tools.framing.photos import Grid, Query, Seen
from refdiff.tools.framing.tiles import Blend, Tile
from refdiff.tools.inspection.calibration import (
    MIN_PARTS_TO_FAIL,
    attained_alpha,
    calibration_key,
    count_parts,
    in_doubt,
    p_value,
)
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import (
    OnPhoto,
    ReferenceViews,
    RegisteredGolden,
    SizedPhoto,
    compared,
    grid_score,
    mean_cells,
    reach,
    scored_cells,
)
from refdiff.tools.inspection.fineness import WorkingPixel, working_pixel
from refdiff.tools.inspection.methods import check_networks
from refdiff.tools.inspection.pairs import pair_with
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.zones import place_zones
from refdiff.tools.workspace import Workspace

ALPHAS = (0.01, 0.02, 0.05)
SHARE = 0.95  # of the marks of a size that must be found
CONTRAST = 0.4
_MARKS = 30  # of each size
_SPOTS = (4, 6, 10, 16, 26, 42)  # diameters, working px; each about 1.6 times the one before
_STROKES = (8, 13, 20, 32, 52, 84)  # lengths, working px
_STROKE_WIDTH = 2
_SEED = 1

_SIZES = [
    *(("spot", Mark(d, d, CONTRAST)) for d in _SPOTS),
    *(("stroke", Mark(n, _STROKE_WIDTH, CONTRAST)) for n in _STROKES),
]


def check_enough_parts(workspace: Workspace, product: str) -> None:
    """Raises InputError with golden samples of too few parts to fail any: nothing can be said about what is found then; and
    where no network compares them, for marks are drawn for networks."""
    check_networks(workspace, product, "how small a mark is found")
    if (n := count_parts(workspace, product)) < MIN_PARTS_TO_FAIL:
        raise InputError(
            f"product {product!r} has golden samples of {n} parts; how small a defect is found can be said from "
            f"{MIN_PARTS_TO_FAIL} on. Calibrate without that, or add some: refdiff enroll --product {product!r} FOLDER"
        )


def find_marks(workspace: Workspace, calibration: Calibration, progress: Progress = silent) -> Calibration:
    """The calibration with what marks of all sizes score; kept with it, and not found out again for the same one.

    Takes minutes, more of them where photos are compared in tiles. Raises InputError with too few parts to fail any (as
    `check_enough_parts`), or where no mark fits on them.
    """
    if calibration.marks:
        return calibration
    check_enough_parts(workspace, calibration.product)
    ids = sorted(calibration.golden_ids)
    chosen = [ids[i * len(ids) // _MARKS] for i in range(_MARKS)] if len(ids) > _MARKS else ids
    scores: list[list[float]] = [[] for _ in _SIZES]
    for done, golden_id in enumerate(chosen, start=1):
        part = _Part.of(workspace, workspace.bank.get(golden_id), calibration.references)
        rng = np.random.default_rng([_SEED, int(hashlib.sha256(golden_id.encode()).hexdigest()[:8], 16)])
        here = len(range(done - 1, _MARKS, len(chosen)))  # of each size: those that its turn comes for
        for (_, mark), found in zip(_SIZES, scores, strict=True):
            drawn_here = (part.score_with(mark, rng) for _ in range(here))
            found.extend(score for score in drawn_here if score is not None)
        progress("drawing defects", done, len(chosen))
    # what does not fit on most parts is no size to speak of
    marks = [
        MarksFound(shape, mark.length, mark.width, mark.contrast, found)
        for (shape, mark), found in zip(_SIZES, scores, strict=True)
        if len(found) >= _MARKS / 2
    ]
    if not marks:
        raise InputError(
            f"product {calibration.product!r}: how small a defect is found cannot be said; none of the tried sizes fits on "
            "half of its golden samples, or their ignore zones leave no room"
        )
    if calibration_key(workspace, calibration.product, calibration.references) != calibration.key:
        raise UnavailableError(
            f"the golden samples of product {calibration.product!r} changed meanwhile; try again when nobody enrols or "
            "retires any"
        )
    made = replace(calibration, marks=marks)
    workspace.stores.calibrations.keep_marks(made)
    return made


@dataclass(frozen=True)
class _SizedSample:
    """A golden sample at one working size beside its references."""

    grid: Grid
    views: list[ReferenceViews]
    picture: RgbImage  # all of the grid
    covered: NDArray[np.bool_]  # (H, W) of the grid: what the photo shows
    tiles: list[tuple[Tile, Picture, NDArray[np.float32]]]  # as it is: what each shows, and its cells
    reached: NDArray[np.float32]  # see `ComparedPhoto`

    @classmethod
    def of(cls, sized: SizedPhoto, references: Sequence[RegisteredGolden], network: Comparing) -> _SizedSample:
        grid = sized.grid
        views = [ReferenceViews(r, grid) for r in references]
        picture, covered = np.zeros((*grid.size, 3), np.uint8), np.zeros(grid.size, bool)
        reached, tiles = Blend(grid.size, GRID_STRIDE), []
        for seen in sized.tiles:
            here, at = [v.view(seen) for v in views], _at(seen.tile)
            picture[at], covered[at] = seen.picture.image, seen.picture.covered
            reached.add("reached", seen.tile, reach(seen.tile, here))
            tiles.append((seen.tile, seen.picture, compared(seen, here, network)[0]))
        return cls(grid, views, picture, covered, tiles, reached.mean("reached"))

    def spoiled_as(self, finer: RgbImage, spoiled: RgbImage) -> RgbImage:
        """The sample at this size with what was drawn on it at a finer one."""
        size = self.picture.shape[1::-1]
        before, after = (cv2.resize(p, size, interpolation=cv2.INTER_AREA).astype(np.int16) for p in (finer, spoiled))
        return np.clip(self.picture + (after - before), 0, 255).astype(np.uint8)

    def cells_of(self, spoiled: RgbImage, encoder: Encoding, network: Comparing) -> NDArray[np.float32]:
        """(h, w) cells of the sample with what was drawn on it.

        Only tiles that show some of that are compared again; each is completed in its own way where the photo ends.
        """
        blend = Blend(self.grid.size, MAP_STRIDE)
        for tile, shown, clean in self.tiles:
            at, cells = _at(tile), clean
            changed = (spoiled[at] != self.picture[at]).any(2)
            if changed.any():
                picture = np.where(changed[..., None], spoiled[at], shown.image)
                maps = encoder.embed(picture, (tile.h, tile.w)).maps
                seen = Seen(tile, maps, Picture.of(picture, shown.covered))
                cells = compared(seen, [v.view(seen) for v in self.views], network)[0]
            blend.add("cells", tile, cells)
        return blend.mean("cells")


@dataclass(frozen=True)
class _Part:
    """A golden sample beside its references, ready to be drawn on."""

    workspace: Workspace
    network: Comparing
    sizes: list[_SizedSample]  # the finest first
    keep: NDArray[np.bool_]  # cells of the finest that count
    allowed: NDArray[np.bool_]  # (H, W) of the finest: where marks may lie

    @classmethod
    def of(cls, workspace: Workspace, golden: Golden, k: int) -> _Part:
        query = Query(workspace.golden_image(golden), golden.sha256, workspace.golden_features(golden))
        same_part = [g.golden_id for g in workspace.bank.list(golden.product) if g.group == golden.group]
        clock = Clock()
        hits = nearest_goldens(workspace, query, golden.product, k, same_part, clock)
        pair = pair_with(workspace, query, golden.product, hits, clock)
        network = workspace.network(golden.product, same_part)
        sizes = [_SizedSample.of(sized, pair.references, network) for sized in pair.sizes]
        finest = sizes[0]
        zones, _ = place_zones(workspace, query, golden.product, "ignore")
        ignored = None
        if zones:
            ignored = OnPhoto(query.image.shape, finest.grid).onto(np.logical_or.reduce(list(zones.values()))) > 0.5
        keep = scored_cells(finest.reached, ignored, finest.grid)
        counts = keep.repeat(MAP_STRIDE, 0).repeat(MAP_STRIDE, 1)
        allowed = counts & finest.covered & foreground_of(finest.picture)
        return cls(workspace, network, sizes, keep, allowed)

    def score_with(self, mark: Mark, rng: np.random.Generator) -> float | None:
        """The image score with a mark at a random place of the part; None where it does not fit."""
        ys, xs = np.nonzero(room(mark, self.allowed))
        turn = float(rng.uniform(0, np.pi))
        if not len(ys):
            return None
        i, finest = int(rng.integers(len(ys))), self.sizes[0]
        spoiled = drawn(finest.picture, mark, (int(xs[i]), int(ys[i])), turn)
        pictures = [spoiled, *(sized.spoiled_as(finest.picture, spoiled) for sized in self.sizes[1:])]
        encoder, network = self.workspace.encoder, self.network
        cells = [sized.cells_of(p, encoder, network) for sized, p in zip(self.sizes, pictures, strict=True)]
        return grid_score(
            mean_cells(cells, [sized.reached for sized in self.sizes]) * self.keep, self.keep, finest.grid
        )


def _at(tile: Tile) -> tuple[slice, slice]:
    return slice(tile.y, tile.y + tile.h), slice(tile.x, tile.x + tile.w)


def detectable(workspace: Workspace, calibration: Calibration) -> dict[str, Any] | None:
    """How large a mark has to be to be found, for people and --json; None where nobody has asked for it.

    Of each false-reject rate and shape the smallest tried size from which on 95 % of the marks of each size are found; None
    where even the largest is missed more often.
    """
    each = working_pixel(workspace, calibration.product)
    if not calibration.marks or each is None:
        return None
    doubted = in_doubt(workspace, calibration)
    smallest = []
    for alpha in ALPHAS:
        attained = attained_alpha(alpha, calibration.n, doubted)
        for shape in dict.fromkeys(m.shape for m in calibration.marks):
            of_shape = [m for m in calibration.marks if m.shape == shape]
            found = _smallest(calibration, of_shape, attained)
            sizes = {
                "smallest": None if found is None else _size(found, each),
                "largest_tried": _size(of_shape[-1], each),
            }
            smallest.append({"alpha": alpha, "attained": attained, "shape": shape, "width": of_shape[0].width} | sizes)
    made: dict[str, Any] = {
        "contrast": calibration.marks[0].contrast,
        "marks": min(len(m.scores) for m in calibration.marks),
        "share": SHARE,
        "working_px": each.working_px,
        "found": smallest,
    }
    return made | {"summary": said(made, each)}


def _smallest(calibration: Calibration, marks: Sequence[MarksFound], attained: float) -> MarksFound | None:
    """The first size, in rising order, from which on all are found often enough."""
    found = [np.mean([p_value(calibration, score) <= attained for score in m.scores]) for m in marks]
    missed = [i for i, share in enumerate(found) if share < SHARE]
    first = missed[-1] + 1 if missed else 0
    return marks[first] if first < len(marks) else None


def _size(mark: MarksFound, each: WorkingPixel) -> dict[str, float | None]:
    mm = None if each.mm is None else float(f"{mark.length * each.mm:.3g}")
    return {"working_px": mark.length, "px": float(f"{mark.length * each.px:.3g}"), "mm": mm}


def said(made: dict[str, Any], each: WorkingPixel) -> list[str]:
    """A line for each false-reject rate that is attained."""
    lines = []
    for attained in dict.fromkeys(row["attained"] for row in made["found"]):  # few good parts attain one rate alone
        rows = [row for row in made["found"] if row["attained"] == attained]
        alphas = list(dict.fromkeys(row["alpha"] for row in rows))
        rate = ", ".join(f"{alpha:g}" for alpha in alphas) + (
            f" (attained {attained:.3g})" if attained > alphas[0] else ""
        )
        words = dict.fromkeys(_said(row, each) for row in rows)
        lines.append(f"alpha {rate}: {'; '.join(words)}")
    return lines


def _said(row: dict[str, Any], each: WorkingPixel) -> str:
    what = "spots" if row["shape"] == "spot" else f"strokes {_shown(row['width'], each)} wide"
    how = "across" if row["shape"] == "spot" else "long"
    if row["smallest"] is None:
        return f"{what} of {_shown(row['largest_tried']['working_px'], each)} are missed too often"
    return f"{what} from {_shown(row['smallest']['working_px'], each)} {how}"


def _shown(working: float, each: WorkingPixel) -> str:
    px = f"{working * each.px:.3g} px"
    return px if each.mm is None else f"{working * each.mm:.2g} mm ({px})"
