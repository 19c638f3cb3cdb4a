"""A photo and its golden samples in one frame, drawn as finely as the product asks for: what networks compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.tools.framing.photos import Query, Seen, alignments, photo_on
from refdiff.tools.framing.tiles import Tile
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import RegisteredGolden, SizedPhoto, comparison_grid
from refdiff.tools.inspection.fineness import working_px
from refdiff.tools.inspection.zones import product_spec
from refdiff.tools.workspace import Workspace


@dataclass(frozen=True)
class RegisteredPair:
    """A photo and its references in one frame."""

    references: list[RegisteredGolden]
    sizes: list[SizedPhoto]  # the photo, the finest first


def pair_with(
    workspace: Workspace,
    query: Query,
    product: str,
    hits: Sequence[GoldenHit],
    clock: Clock,
    tiles_of: Callable[[Sequence[Tile]], list[Tile]] | None = None,
) -> RegisteredPair:
    """Register a photo with retrieved goldens, and draw it in their common frame: as finely as the product asks for, and
    where that takes several tiles, also as a whole. Arguments as of `comparison.compare_with`.

    tiles_of: chooses those to be drawn of a grid of several tiles, two or more; default: all.
    """
    with clock.stage("align"):
        px = working_px(workspace, product_spec(workspace, product), hits[0].golden)
        registered = alignments(workspace, query, [h.golden for h in hits], px)
    size = (query.image.shape[0], query.image.shape[1])
    references = [RegisteredGolden(workspace, h.golden, a, size) for h, a in zip(hits, registered, strict=True)]
    with clock.stage("encode"):
        sizes = sizes_of(query, references, px, tiles_of)
    return RegisteredPair(references, sizes)


def sizes_of(
    query: Query,
    references: Sequence[RegisteredGolden],
    px: int,
    tiles_of: Callable[[Sequence[Tile]], list[Tile]] | None = None,
) -> list[SizedPhoto]:
    """A photo in the frame of its registered references, the finest size first. px: working px of the long side of that."""
    grids = [comparison_grid(query, references, px)]
    if not grids[0].whole:
        # What is large, or wrong as a whole, shows in the whole; what is small, in the tiles.
        grids.append(comparison_grid(query, references))
        if tiles_of is not None:
            grids[0] = replace(grids[0], tiles=tiles_of(grids[0].tiles))
    workspace = references[0].workspace
    return [SizedPhoto(grid, _begun(photo_on(workspace, query, grid))) for grid in grids]


def _begun(tiles: Iterator[Seen]) -> Iterator[Seen]:
    """The tiles, the first drawn already: most grids have no other."""
    return chain([next(tiles)], tiles)
