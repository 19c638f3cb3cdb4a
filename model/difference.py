"""The difference of a query and its references in feature space, training-free: soft patch matching of frozen features.

Every query cell looks for its best counterpart in the reference, once within a window around the registered place (finds
what is missing or misplaced) and once anywhere (forgives natural variation); the two cosine distances are averaged
(cf. SPADE, Cohen & Hoshen 2020; PatchCore, Roth et al. 2022). Several references: the best counterpart in any of them.
Knows nothing about goldens or calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refdiff.model.encoder import Features
from refdiff.model.matching import window_cells

VERSION = "fused-1"  # part of every calibration key: raise when scores change
GRID_STRIDE = 8
STRIDES = (8, 16, 32)
_WINDOW = 0.1  # half width of the matching window, as a part of the long side
_TOP = 0.01  # the image score is the mean of this part of the cells


@dataclass(frozen=True)
class ReferenceView:
    """One reference as seen from the query.

    descriptors: (C, h, w) unit norm, on the query's grid if `registered`, else in its own frame.
    valid: (h, w) bool, cells that the registered reference covers; all True if not registered.
    original: (C, h', w') unit norm, the reference in its own frame, for cells that the registered one does not cover.
    """

    descriptors: Tensor
    valid: Tensor
    registered: bool
    original: Tensor | None = None


def descriptors(features: Features) -> Tensor:
    """(C, h, w) float32 unit-norm descriptors on the stride-8 grid, C = 40 + 112 + 320."""
    h, w = features.maps[GRID_STRIDE].shape[-2:]
    parts = []
    for stride in STRIDES:
        x = features.maps[stride][None]
        if x.shape[-2:] != (h, w):
            x = F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)
        parts.append(x[0])
    return F.normalize(torch.cat(parts), dim=0)


def distance(query: Tensor, reference: ReferenceView) -> Tensor:
    """(h, w) float32 distance 0..2 of every query cell to its counterpart in one reference."""
    _c, h, w = query.shape
    similarity = query.flatten(1).T @ reference.descriptors.flatten(1)  # (Nq, Nr)
    anywhere = similarity.amax(1)
    if not reference.registered:
        return (1 - anywhere).view(h, w)
    at, usable = window_cells(h, w, max(1, round(_WINDOW * max(h, w))))
    if not reference.valid.all():
        usable = usable & reference.valid.flatten()[at]
    nearby = similarity.gather(1, at).masked_fill_(~usable, -1.0).amax(1)
    matched = (nearby + anywhere) / 2
    # Where the reference does not reach there is no counterpart nearby to miss, and close to its end its features are
    # those of the made-up pixels beyond: there the unmoved reference may answer too.
    unsure = _grown(~reference.valid).flatten()
    if unsure.any():
        rows = anywhere[unsure]
        if reference.original is not None:
            own = query.flatten(1)[:, unsure].T @ reference.original.flatten(1)
            rows = torch.maximum(rows, own.amax(1))
        matched[unsure] = torch.maximum(matched[unsure], rows)
    return (1 - matched).view(h, w)


def _grown(cells: Tensor, by: int = 2) -> Tensor:
    """(h, w) bool grown by some cells; a descriptor sees about two."""
    return F.max_pool2d(cells[None, None].float(), 2 * by + 1, stride=1, padding=by)[0, 0] > 0


def anomaly_map(query: Tensor, references: Sequence[ReferenceView]) -> Tensor:
    """(h, w) float32 >= 0: distance to the nearest counterpart in any reference; independent of their order."""
    return torch.stack([distance(query, r) for r in references]).amin(0).clamp_min(0)


def judged(references: Sequence[ReferenceView], grid: tuple[int, int]) -> Tensor:
    """(h, w) bool of the query's grid: cells that some reference reaches; of the others nothing can be said."""
    reached = torch.zeros(grid, dtype=torch.bool)
    for reference in references:
        # an unregistered reference is compared with as a whole
        reached |= ~_grown(~reference.valid, 1) if reference.registered else torch.ones(grid, dtype=torch.bool)
    return reached


def image_score(cells: Tensor, keep: Tensor | None = None, part: float = _TOP) -> float:
    """Mean of the largest `part` of the cells (h, w), those where `keep` is False left out."""
    values = cells.flatten() if keep is None else cells[keep]
    if values.numel() == 0:
        return 0.0
    return float(values.topk(max(1, int(values.numel() * part))).values.mean())
