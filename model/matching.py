"""Soft matching of a query's features with those of its references: the reference as the query would see it.

At every stride each query cell looks for its counterpart among all cells of all registered references, once within a window
round its own place (what is missing or misplaced has none there) and once anywhere (natural variation has one somewhere).
The softmax-weighted features of the window are the *matched reference*. The finest stride follows the next coarser one's
best match instead of searching. There are no parameters here, so matches can be computed once and stored; the union over
references makes their order irrelevant. Knows nothing about heads, training or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32)
RADIUS = {8: 4, 16: 2, 32: 1}  # half width of the matching window, cells
TEMPERATURE = 0.02  # of the softmax over cosine similarities
_GUIDED = 4  # side of the block of fine cells that a coarse match points at
N_DISTANCES = 3


@dataclass(frozen=True)
class ReferenceMaps:
    """Encoder maps of one reference for one query.

    maps: stride -> (C, h, w); on the query's grid if `registered`, else in the reference's own frame (any size).
    valid: (h8, w8) bool, stride-8 cells that the registered reference really covers; ignored if not registered.
    """

    maps: dict[int, Tensor]
    valid: Tensor
    registered: bool = True


@dataclass(frozen=True)
class Matched:
    """query, reference: stride -> (B, C, h, w), the query's features and their soft match. distances: stride ->
    (B, 3, h, w) in 0..2: nearest in the window (best reference), the same averaged over references, nearest anywhere."""

    query: dict[int, Tensor]
    reference: dict[int, Tensor]
    distances: dict[int, Tensor]

    @staticmethod
    def stack(items: Sequence[Matched]) -> Matched:
        """One batch of several; all must have one size."""
        return Matched(
            *(
                {s: torch.cat([getattr(i, name)[s] for i in items]) for s in STRIDES}
                for name in ("query", "reference", "distances")
            )
        )


@lru_cache(maxsize=32)
def _outside_window(h: int, w: int, radius: int) -> Tensor:
    """(h*w, h*w) bool: True where a reference cell lies outside the window of a query cell."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    p = torch.stack([y.flatten(), x.flatten()], 1)  # (N, 2)
    return (p[:, None] - p[None]).abs().amax(-1) > radius


def _resized(valid: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(valid[None, None].float(), size=(h, w), mode="area")[0, 0] > 0.5


def _match(q: Tensor, references: Sequence[ReferenceMaps], stride: int, hard: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One stride of one image: matched (C, h, w), distances (3, h, w), best (h*w,) index into all reference cells."""
    _c, h, w = q.shape
    unit = F.normalize(q.flatten(1), dim=0)  # (C, N)
    flat = [r.maps[stride].flatten(1) for r in references]
    near, anywhere, each = [], [], []
    for reference, cells in zip(references, flat, strict=True):
        similarity = unit.T @ F.normalize(cells, dim=0)  # (N, M)
        anywhere.append(similarity.amax(1))
        if reference.registered:
            blocked = _outside_window(h, w, RADIUS[stride]) | ~_resized(reference.valid, h, w).flatten()[None]
            # -inf, not -1: the softmax of that would be denormal numbers, which are dead slow
            similarity = similarity.masked_fill(blocked, -torch.inf)
            best = similarity.amax(1)
            # a cell whose whole window is uncovered has no counterpart to miss
            uncovered = torch.isinf(best)
            if uncovered.any():
                similarity[uncovered] = unit.T[uncovered] @ F.normalize(cells, dim=0)
                best = torch.where(uncovered, similarity.amax(1), best)
        else:
            best = anywhere[-1]
        near.append(similarity)
        each.append(best)
    joined = torch.cat(near, 1)  # (N, sum of M)
    best_index = joined.argmax(1)
    source = torch.cat(flat, 1)  # (C, sum of M)
    matched = source[:, best_index] if hard else source @ torch.softmax(joined / TEMPERATURE, 1).T
    per_reference = torch.stack(each)  # (K, N)
    distances = 1 - torch.stack([per_reference.amax(0), per_reference.mean(0), torch.stack(anywhere).amax(0)])
    return matched.view(-1, h, w), distances.view(N_DISTANCES, h, w).clamp_min(0), best_index


def _match_guided(
    q: Tensor, references: Sequence[ReferenceMaps], coarse_best: Tensor, coarse_size: tuple[int, int], hard: bool
) -> tuple[Tensor, Tensor]:
    """Stride 4, among the 4 x 4 fine cells round the place that the stride-8 match points at."""
    c, h, w = q.shape
    h8, w8 = coarse_size
    blocks = []
    for r in references:
        # block of fine cells 2y-1 .. 2y+2, 2x-1 .. 2x+2 of every coarse cell of the reference
        fine = F.pad(r.maps[4][None], (1, 1, 1, 1), mode="replicate")
        blocks.append(F.unfold(fine, _GUIDED, stride=2)[0])  # (C*16, M8)
    chosen = torch.cat(blocks, 1)[:, coarse_best].view(c, _GUIDED**2, h8 * w8)  # (C, 16, N8)
    # the four fine cells of every coarse query cell
    mine = q.view(c, h8, 2, w8, 2).permute(0, 2, 4, 1, 3).reshape(c, 4, h8 * w8)  # (C, 4, N8)
    # (4, 16, N8); a batched matrix product of such small matrices is slower
    similarity = (F.normalize(mine, dim=0)[:, :, None] * F.normalize(chosen, dim=0)[:, None]).sum(0)
    if hard:
        picked = similarity.argmax(1)  # (4, N8)
        matched = torch.gather(chosen, 1, picked[None].expand(c, -1, -1))
    else:
        matched = (torch.softmax(similarity / TEMPERATURE, 1)[None] * chosen[:, None]).sum(2)
    distance = 1 - similarity.amax(1)  # (4, N8)

    def back(x: Tensor) -> Tensor:
        return x.view(-1, 2, 2, h8, w8).permute(0, 3, 1, 4, 2).reshape(-1, h, w)

    return back(matched), back(distance[None]).clamp_min(0)


@torch.inference_mode()
def match(query: dict[int, Tensor], references: Sequence[ReferenceMaps], *, hard: bool = False) -> Matched:
    """Match one query (stride -> (C, h, w), sides multiples of 32 px) with one or several references. B = 1.

    hard: take the best cell instead of the soft average (for comparison). Raises ValueError without a reference.
    """
    if not references:
        raise ValueError("no reference to match with: give one or more")
    matched, distances = {}, {}
    for stride in (32, 16, 8):
        matched[stride], distances[stride], best = _match(query[stride], references, stride, hard)
    size = (int(query[8].shape[-2]), int(query[8].shape[-1]))
    matched[4], fine = _match_guided(query[4], references, best, size, hard)
    coarse = F.interpolate(distances[8][None], scale_factor=2, mode="nearest")[0]
    distances[4] = torch.cat([fine, coarse[1:]])
    return Matched(
        {s: query[s][None] for s in STRIDES},
        {s: matched[s][None] for s in STRIDES},
        {s: distances[s][None] for s in STRIDES},
    )


def composite_reference(query: Tensor, references: Tensor) -> Tensor:
    """Of several registered reference pictures (K, 3, H, W) the one that fits the query (3, H, W) best, place by place."""
    if len(references) == 1:
        return references[0]
    difference = F.avg_pool2d((references - query).abs().mean(1, keepdim=True), 9, 1, 4)  # (K, 1, H, W)
    pick = difference.argmin(0, keepdim=True).expand(1, 3, -1, -1)
    return references.gather(0, pick)[0]
