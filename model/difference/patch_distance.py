"""The difference of a query and its references in feature space, training-free: soft patch matching of frozen features.

Every query cell looks for its best counterpart in the reference, once within a window around the registered place (finds
what is missing or misplaced) and once anywhere (forgives natural variation); the two cosine distances are averaged
(cf. SPADE, Cohen & Hoshen 2020; PatchCore, Roth et al. 2022). Several references: the best counterpart in any of them.
Knows nothing about goldens or calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refdiff.model.arrays import Array, copied, grown, library_of, like, offsets, rows, taken, where_true
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.matching import ReferenceView, window_cells

VERSION = "fused-5"  # part of every calibration key: raise when scores change
_WINDOW_PART = 0.1  # half width of the matching window, as a part of the long side
_SCORED_PART = 0.01  # the image score is the mean of this part of the cells
_ALL = slice(None)
_SEEN_CELLS = 2  # a descriptor sees about as many to each side


def distance(query: FeatureMaps, reference: ReferenceView, along: Array | None = None) -> Array:
    """(h, w) float32 distance 0..2 of every query cell to its counterpart in one reference.

    Counterparts are looked for in a sketch of the reference, and their distance is then measured in full. along: the query
    in the directions of that sketch, (h*w, d), if known.
    """
    h, w = query.grid
    cells = FeatureMaps.of(reference.maps)
    sketch, directions = cells.sketch
    rough = (query.descriptors @ directions if along is None else along) @ sketch  # (N, M)
    # also among what completes the reference beyond its end: cells inside find nothing closer there, those at its end do
    closest = _best(rough)
    anywhere = _closeness(query, cells, closest)
    if not reference.registered:
        return (1 - anywhere).reshape(h, w)
    valid = like(reference.valid, rough)
    at, usable = (like(x, rough) for x in window_cells(h, w, max(1, round(_WINDOW_PART * max(h, w)))))
    if not valid.all():
        usable = usable & valid.reshape(-1)[at]
    near = taken(rough, at)
    near[~usable] = -np.inf
    place = taken(at, _best(near)[:, None])[:, 0]
    nearby, elsewhere = copied(anywhere), where_true(place != closest)
    nearby[elsewhere] = _closeness(query, cells, place[elsewhere], elsewhere)
    anywhere = library_of(rough).maximum(anywhere, nearby)
    matched = (nearby + anywhere) / 2
    # Where the reference does not reach there is no counterpart nearby to miss, and close to its end its features are
    # those of the made-up pixels beyond: there the unmoved reference may answer too.
    unsure = grown(~valid, _SEEN_CELLS).reshape(-1)
    if unsure.any():
        if reference.own_maps is not None and reference.own_maps is not reference.maps:
            own = FeatureMaps.of(reference.own_maps)
            sketch, directions = own.sketch
            best = _best(query.descriptors[unsure] @ directions @ sketch)
            anywhere[unsure] = library_of(rough).maximum(anywhere[unsure], _closeness(query, own, best, unsure))
        matched[unsure] = anywhere[unsure]
    return (1 - matched).reshape(h, w)


def _best(rough: Array) -> Array:
    """(N,) int64: where each row of (N, M) is largest."""
    return like(np.asarray(rough).argmax(1), rough)  # numpy's is several times as fast as torch's


def _closeness(query: FeatureMaps, cells: FeatureMaps, at: Array, chosen: Array | slice = _ALL) -> Array:
    """(N,) cosine similarity of N query cells, `chosen` of them, to the cell `at` (N,)."""
    return library_of(at).linalg.vecdot(query.descriptors[chosen], rows(cells.descriptors, at))


def anomaly_map(query: Mapping[int, Array], references: Sequence[ReferenceView]) -> Array:
    """(h, w) float32 >= 0: distance to the nearest counterpart in any reference; independent of their order.

    query: encoder maps, stride -> (C, h, w).
    """
    maps, sketches = FeatureMaps.of(query), [FeatureMaps.of(r.maps).sketch for r in references]
    library = library_of(maps.descriptors)
    along = maps.descriptors @ library.concat([directions for _, directions in sketches], 1)
    begins = offsets([len(cells) for cells, _ in sketches])
    found = [distance(maps, r, along[:, b:e]) for r, b, e in zip(references, begins, begins[1:], strict=False)]
    return library.amin(library.stack(found), 0).clip(0)


def reached_cells(references: Sequence[ReferenceView], grid: tuple[int, int]) -> Array:
    """(h, w) bool of the query's grid: cells that some reference reaches; of the others nothing can be said."""
    reached = like(np.zeros(grid, bool), references[0].valid)
    for reference in references:
        # an unregistered reference is compared with as a whole
        reached = reached | (~grown(~reference.valid, 1) if reference.registered else True)
    return reached


def image_score(cells: Array, keep: Array | None = None, part: float = _SCORED_PART) -> float:
    """Mean of the largest `part` of the cells (h, w), those where `keep` is False left out."""
    values = np.asarray(cells)
    values = values.ravel() if keep is None else values[np.asarray(keep)]
    if not values.size:
        return 0.0
    count = max(1, int(values.size * part))
    return float(np.partition(values, -count)[-count:].mean())
