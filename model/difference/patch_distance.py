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

from refdiff.model.difference.matching import ReferenceView, window_cells
from refdiff.model.number_format import number_format

VERSION = "fused-3"  # part of every calibration key: raise when scores change
GRID_STRIDE = 8
_STRIDES = (8, 16, 32)
_WINDOW_PART = 0.1  # half width of the matching window, as a part of the long side
_SCORED_PART = 0.01  # the image score is the mean of this part of the cells


def descriptors(maps: Mapping[int, Tensor]) -> Tensor:
    """(C, h, w) float32 unit-norm descriptors on the stride-8 grid, C = 40 + 112 + 320; each lies in one piece in memory.

    maps: encoder maps, stride -> (C, h, w).
    """
    h, w = maps[GRID_STRIDE].shape[-2:]
    parts = []
    for stride in _STRIDES:
        x = maps[stride][None].contiguous(memory_format=torch.channels_last)
        if x.shape[-2:] != (h, w):
            x = F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)
        parts.append(x[0].permute(1, 2, 0))
    return F.normalize(torch.cat(parts, 2), dim=2).permute(2, 0, 1)


def _closeness(query: Tensor, reference: Tensor) -> Tensor:
    """(Nq, Nr) cosine similarity of unit-norm descriptors (C, ...), minus 1.

    In bfloat16 where the CPU multiplies that itself, six times as fast. The 1 and what rounding did to the lengths are taken
    off inside the sum: what is rounded in the end is the small distance.
    """
    q, r = query.flatten(1).T, reference.flatten(1).T
    if number_format() is torch.float32:
        return q @ r.T - 1
    left, right = (x.bfloat16() for x in (q, r))
    q_over, r_over = ((x.float().norm(dim=1, keepdim=True) - 1).bfloat16() for x in (left, right))
    q_one, r_one = q_over.new_ones(len(q), 1), q_over.new_ones(len(r), 1)
    left = torch.cat([left, q_one, q_over, q_one], 1)
    right = torch.cat([right, -r_one, -r_one, -r_over], 1)
    return left @ right.T


def distance(query: Tensor, reference: ReferenceView) -> Tensor:
    """(h, w) float32 distance 0..2 of every query cell to its counterpart in one reference. query: its `descriptors`."""
    _c, h, w = query.shape
    cells = descriptors(reference.maps)
    closeness = _closeness(query, cells)
    anywhere = closeness.amax(1).float()
    if not reference.registered:
        return -anywhere.view(h, w)
    at, usable = window_cells(h, w, max(1, round(_WINDOW_PART * max(h, w))))
    if not reference.valid.all():
        usable = usable & reference.valid.flatten()[at]
    nearby = closeness.gather(1, at).masked_fill_(~usable, -2.0).amax(1).float()
    matched = (nearby + anywhere) / 2
    # Where the reference does not reach there is no counterpart nearby to miss, and close to its end its features are
    # those of the made-up pixels beyond: there the unmoved reference may answer too.
    unsure = _grown(~reference.valid).flatten()
    if unsure.any():
        rows = anywhere[unsure]
        if reference.own_maps is not None:
            own = cells if reference.own_maps is reference.maps else descriptors(reference.own_maps)
            rows = torch.maximum(rows, _closeness(query.flatten(1)[:, unsure], own).amax(1).float())
        matched[unsure] = torch.maximum(matched[unsure], rows)
    return -matched.view(h, w)


def _grown(cells: Tensor, by: int = 2) -> Tensor:
    """(h, w) bool grown by some cells; a descriptor sees about two."""
    return F.max_pool2d(cells[None, None].float(), 2 * by + 1, stride=1, padding=by)[0, 0] > 0


def anomaly_map(query: Mapping[int, Tensor], references: Sequence[ReferenceView]) -> Tensor:
    """(h, w) float32 >= 0: distance to the nearest counterpart in any reference; independent of their order.

    query: encoder maps, stride -> (C, h, w).
    """
    cells = descriptors(query)
    return torch.stack([distance(cells, r) for r in references]).amin(0).clamp_min(0)


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
