"""The difference of a query and its references in feature space, training-free: soft patch matching of frozen features.

Every query cell looks for its best counterpart in the reference, once within a window around the registered place (finds
what is missing or misplaced) and once anywhere (forgives natural variation); the two cosine distances are averaged
(cf. SPADE, Cohen & Hoshen 2020; PatchCore, Roth et al. 2022). Several references: the best counterpart in any of them.
Knows nothing about goldens or calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.matching import ReferenceView, window_cells

VERSION = "fused-5"  # part of every calibration key: raise when scores change
_WINDOW_PART = 0.1  # half width of the matching window, as a part of the long side
_SCORED_PART = 0.01  # the image score is the mean of this part of the cells
_ALL = slice(None)


def distance(query: FeatureMaps, reference: ReferenceView, along: Tensor | None = None) -> Tensor:
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
        return (1 - anywhere).view(h, w)
    at, usable = window_cells(h, w, max(1, round(_WINDOW_PART * max(h, w))))
    if not reference.valid.all():
        usable = usable & reference.valid.flatten()[at]
    place = at.gather(1, _best(rough.gather(1, at).masked_fill_(~usable, -torch.inf))[:, None])[:, 0]
    nearby, elsewhere = anywhere.clone(), (place != closest).nonzero()[:, 0]
    nearby[elsewhere] = _closeness(query, cells, place[elsewhere], elsewhere)
    anywhere = torch.maximum(anywhere, nearby)
    matched = (nearby + anywhere) / 2
    # Where the reference does not reach there is no counterpart nearby to miss, and close to its end its features are
    # those of the made-up pixels beyond: there the unmoved reference may answer too.
    unsure = _grown(~reference.valid).flatten()
    if unsure.any():
        if reference.own_maps is not None and reference.own_maps is not reference.maps:
            own = FeatureMaps.of(reference.own_maps)
            sketch, directions = own.sketch
            best = _best(query.descriptors[unsure] @ directions @ sketch)
            anywhere[unsure] = torch.maximum(anywhere[unsure], _closeness(query, own, best, unsure))
        matched[unsure] = anywhere[unsure]
    return (1 - matched).view(h, w)


def _best(rough: Tensor) -> Tensor:
    """(N,) int64: where each row of (N, M) is largest."""
    return torch.from_numpy(rough.numpy().argmax(1))  # several times as fast as torch's own


def _closeness(query: FeatureMaps, cells: FeatureMaps, at: Tensor, rows: Tensor | slice = _ALL) -> Tensor:
    """(N,) cosine similarity of N query cells, `rows` of them, to the cell `at` (N,)."""
    return torch.linalg.vecdot(query.descriptors[rows], cells.descriptors.index_select(0, at))


def _grown(cells: Tensor, by: int = 2) -> Tensor:
    """(h, w) bool grown by some cells; a descriptor sees about two."""
    return F.max_pool2d(cells[None, None].float(), 2 * by + 1, stride=1, padding=by)[0, 0] > 0


def anomaly_map(query: Mapping[int, Tensor], references: Sequence[ReferenceView]) -> Tensor:
    """(h, w) float32 >= 0: distance to the nearest counterpart in any reference; independent of their order.

    query: encoder maps, stride -> (C, h, w).
    """
    maps, sketches = FeatureMaps.of(query), [FeatureMaps.of(r.maps).sketch for r in references]
    along = maps.descriptors @ torch.cat([directions for _, directions in sketches], 1)
    apart = along.split_with_sizes([len(cells) for cells, _ in sketches], 1)
    return torch.stack([distance(maps, r, a) for r, a in zip(references, apart, strict=True)]).amin(0).clamp_min(0)


def reached_cells(references: Sequence[ReferenceView], grid: tuple[int, int]) -> Tensor:
    """(h, w) bool of the query's grid: cells that some reference reaches; of the others nothing can be said."""
    reached = torch.zeros(grid, dtype=torch.bool)
    for reference in references:
        # an unregistered reference is compared with as a whole
        reached |= ~_grown(~reference.valid, 1) if reference.registered else torch.ones(grid, dtype=torch.bool)
    return reached


def image_score(cells: Tensor, keep: Tensor | None = None, part: float = _SCORED_PART) -> float:
    """Mean of the largest `part` of the cells (h, w), those where `keep` is False left out."""
    values = cells.flatten() if keep is None else cells[keep]
    if values.numel() == 0:
        return 0.0
    return float(values.topk(max(1, int(values.numel() * part))).values.mean())
