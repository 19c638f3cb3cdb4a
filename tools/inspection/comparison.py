"""Retrieve, align and score in one function: the path that inspection, calibration and evaluation all take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import Golden, GoldenHit
from refdiff.model.difference.encoder import Features
from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage
from refdiff.tools.framing.photos import Seen, alignments, photo_on
from refdiff.tools.framing.tiles import Tile
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import (
    Difference,
    RegisteredGolden,
    SizedPhoto,
    comparison_grid,
    score_difference,
)
from refdiff.tools.inspection.fineness import working_px
from refdiff.tools.inspection.pixel_format import format_problem
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.zones import ignored, product_spec
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace


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


def compare(
    workspace: Workspace,
    query: RgbImage,
    product: str,
    *,
    query_key: str | None = None,
    references: int | None = None,
    exclude_ids: Collection[str] = (),
    goldens: Sequence[Golden] | None = None,
    features: Features | None = None,
) -> Comparison:
    """Compare a photo (H, W, 3) uint8 RGB with its nearest goldens.

    references: K, default from the settings. exclude_ids: goldens left out (calibration). goldens: compare with these
    instead of retrieving. features: of the photo, if known. Raises UnknownProductError when there is no golden.
    """
    clock = Clock()
    query_key = query_key or hashlib.sha256(repr(query.shape).encode() + query.tobytes()).hexdigest()
    with clock.stage("encode"):
        features = features or workspace.encoder.embed(query)
    if goldens is None:
        k = references or workspace.settings.references
        hits = nearest_goldens(workspace, query, query_key, features, product, k, exclude_ids, clock)
    else:
        workspace.forget_poses(query_key)
        hits = [similarity_to(workspace, features, g) for g in goldens]
    return compare_with(workspace, query, query_key, features, product, hits, clock, exclude_ids)


def compare_with(
    workspace: Workspace,
    query: RgbImage,
    query_key: str,
    features: Features,
    product: str,
    hits: list[GoldenHit],
    clock: Clock,
    unseen: Collection[str] = (),
) -> Comparison:
    """Compare a photo with retrieved goldens. query_key: sha256 of the photo. clock: has timed what went before.

    unseen: goldens (ids) that the network must not have been trained on.
    """
    if not hits:
        raise InputError("no golden samples to compare with were given")
    with clock.stage("align"):
        ignore, placed = ignored(workspace, query, query_key, product)
    pair = pair_with(workspace, query, query_key, features, product, hits, clock)
    with clock.stage("score"):
        network = workspace.network(product, unseen)
        difference = score_difference(query, pair.sizes, pair.references, ignore, network)
    known = workspace.stores.products.get(product)
    deep = known is not None and known.intensity_window is not None
    problem = format_problem(query, workspace.golden_image(hits[0].golden), deep=deep)
    registered = [r.alignment for r in pair.references]
    return Comparison(hits, registered, pair.references[0], difference, ignore, placed, features, problem, clock.ms)


@dataclass(frozen=True)
class RegisteredPair:
    """A photo and its references in one frame."""

    references: list[RegisteredGolden]
    sizes: list[SizedPhoto]  # the photo, the finest first


def pair_with(
    workspace: Workspace,
    query: RgbImage,
    query_key: str,
    features: Features,
    product: str,
    hits: Sequence[GoldenHit],
    clock: Clock,
    tiles_of: Callable[[Sequence[Tile]], list[Tile]] | None = None,
) -> RegisteredPair:
    """Register a photo with retrieved goldens, and draw it in their common frame: as finely as the product asks for, and
    where that takes several tiles, also as a whole. Arguments as of `compare_with`.

    tiles_of: chooses those to be drawn of a grid of several tiles, two or more; default: all.
    """
    with clock.stage("align"):
        px = working_px(workspace, product_spec(workspace, product), hits[0].golden)
        registered = alignments(workspace, query, query_key, [h.golden for h in hits], px)
    size = (query.shape[0], query.shape[1])
    references = [RegisteredGolden(workspace, h.golden, a, size) for h, a in zip(hits, registered, strict=True)]
    with clock.stage("encode"):
        grids = [comparison_grid(query, query_key, features, references, px)]
        if not grids[0].whole:
            # What is large, or wrong as a whole, shows in the whole; what is small, in the tiles.
            grids.append(comparison_grid(query, query_key, features, references))
            if tiles_of is not None:
                grids[0] = replace(grids[0], tiles=tiles_of(grids[0].tiles))
        sizes = [SizedPhoto(grid, _begun(photo_on(workspace, query, query_key, features, grid))) for grid in grids]
    return RegisteredPair(references, sizes)


def _begun(tiles: Iterator[Seen]) -> Iterator[Seen]:
    """The tiles, the first drawn already: most grids have no other."""
    return chain([next(tiles)], tiles)


def similarity_to(workspace: Workspace, features: Features, golden: Golden) -> GoldenHit:
    """How similar a photo is to one given golden, by the bank's own yardstick."""
    other = workspace.golden_features(golden)
    similarity = float((features.patches @ other.patches.T).max(1).mean())
    return GoldenHit(golden, similarity, float(features.global_vec @ other.global_vec))
