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

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refdiff.model.difference.feature_maps import FeatureMaps

STRIDES = (4, 8, 16, 32)
RADIUS = {8: 4, 16: 2, 32: 1}  # half width of the matching window, cells
TEMPERATURE = 0.02  # of the softmax over cosine similarities
_GUIDED = 4  # side of the block of fine cells that a coarse match points at
N_DISTANCES = 3


@dataclass(frozen=True)
class ReferenceView:
    """One reference as seen from one query: what both halves of the difference compare the query with."""

    # stride -> (C, h, w); on the query's grid if registered, else in the reference's own frame (any size)
    maps: dict[int, Tensor]
    valid: Tensor  # (h8, w8) bool: stride-8 cells that a registered reference covers; ignored if not registered
    registered: bool = True
    picture: Tensor | None = None  # (3, H, W) uint8 on the query's working grid; None if not registered
    covered: Tensor | None = None  # (H, W) bool, pixels of `picture` that the reference covers
    own_maps: dict[int, Tensor] | None = None  # maps in its own frame, for cells that the registered ones do not cover


@dataclass(frozen=True)
class Matched:
    """B queries matched with their references."""

    query: dict[int, Tensor]  # stride -> (B, C, h, w) features
    reference: dict[int, Tensor]  # stride -> (B, C, h, w), what the references have in the query's place
    # stride -> (B, 3, h, w) in 0..2: nearest in the window (best reference), the same averaged over references, and
    # nearest anywhere
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
def window_cells(h: int, w: int, radius: int) -> tuple[Tensor, Tensor]:
    """(h*w, n) int64: the n = (2 radius + 1) ** 2 cells round every cell, and (h*w, n) bool: which of them exist."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    step = torch.arange(-radius, radius + 1)
    dy, dx = (d.flatten() for d in torch.meshgrid(step, step, indexing="ij"))
    yy, xx = y.flatten()[:, None] + dy, x.flatten()[:, None] + dx  # (N, n)
    inside = (yy >= 0) & (yy < h) & (xx >= 0) & (xx < w)
    return yy.clamp(0, h - 1) * w + xx.clamp(0, w - 1), inside


def _resized(valid: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(valid[None, None].float(), size=(h, w), mode="area")[0, 0] > 0.5


@dataclass(frozen=True)
class _Candidates:
    """What the N = h * w query cells may match in one reference of M cells."""

    at: Tensor  # (N, n): the cells of the window
    near: Tensor  # (N, n): their similarity, -inf where not usable
    anywhere: Tensor  # (N,) bool: the A rows in which all M cells count instead
    far: Tensor  # (A, M): their similarity
    closest: Tensor  # (N,): similarity of the closest of all cells

    def best(self) -> tuple[Tensor, Tensor]:
        """(N,) similarity of the best candidate and (N,) its cell."""
        value, place = self.near.max(1)
        cell = self.at.gather(1, place[:, None])[:, 0]
        if self.anywhere.any():
            value, cell = value.clone(), cell.clone()
            value[self.anywhere], cell[self.anywhere] = self.far.max(1)
        return value, cell

    def weighted(self, features: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the candidates of the features (C, h, w) times exp((similarity - top) / temperature), (N, C), and of
        these weights alone, (N,)."""
        if self.anywhere.all():
            weights = _exponential(self.far, top)
            return weights @ features.flatten(1).T, weights.sum(1)
        weights = _exponential(self.near, top)
        sums, total = _window_sums(weights, features), weights.sum(1)
        if self.anywhere.any():
            weights = _exponential(self.far, top[self.anywhere])
            sums[self.anywhere], total[self.anywhere] = weights @ features.flatten(1).T, weights.sum(1)
        return sums, total


def _window_sums(weights: Tensor, features: Tensor) -> Tensor:
    """(N, C) sums of the features (C, h, w) in the window round every cell, times weights (N, side**2)."""
    c, h, w = features.shape
    side = round(weights.shape[1] ** 0.5)
    wide = w + side - 1
    # per row of cells one product: the window's rows of features, each with what stands on both sides of the picture
    rows = F.pad(features, (side // 2,) * 4).permute(1, 2, 0).contiguous()  # (h + side - 1, wide, C)
    strips = rows.as_strided((h, side * wide, c), (wide * c, c, 1))
    spread = weights.new_zeros(h, w, side * wide)
    spread.as_strided((h, w, side, side), (w * side * wide, side * wide + 1, wide, 1)).copy_(
        weights.view(h, w, side, side)
    )
    return torch.bmm(spread, strips).flatten(0, 1)


def _exponential(similarity: Tensor, top: Tensor) -> Tensor:
    # what is smaller than exp(-60) would be denormal numbers in a moment, which are very slow; -inf becomes a plain 0
    scaled = (similarity - top[:, None]) / TEMPERATURE
    return torch.exp(scaled).masked_fill_(scaled < -60, 0.0)


def _candidates(unit: Tensor, reference: ReferenceView, stride: int, h: int, w: int) -> _Candidates:
    similarity = unit.T @ FeatureMaps.of(reference.maps).directed[stride]  # (N, M)
    if not reference.registered:
        at = similarity.new_zeros((h * w, 1), dtype=torch.int64)
        anywhere = torch.ones(h * w, dtype=torch.bool)
        return _Candidates(at, at.float(), anywhere, similarity, similarity.amax(1))
    at, usable = window_cells(h, w, RADIUS[stride])
    if not reference.valid.all():
        usable = usable & _resized(reference.valid, h, w).flatten()[at]
    near = similarity.gather(1, at).masked_fill_(~usable, -torch.inf)
    # a cell whose whole window is uncovered has no counterpart to miss: it may look anywhere
    anywhere = ~usable.any(1)
    # the search anywhere includes what completes the reference beyond its end, as in the pairs that the network learned from
    # the whole similarity is large, and not kept: the next reference's takes its place in the CPU's cache
    return _Candidates(at, near, anywhere, similarity[anywhere], similarity.amax(1))


def _match(query: FeatureMaps, references: Sequence[ReferenceView], stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """One stride of one image: matched (C, h, w), distances (3, h, w), best (h*w,) index into all reference cells."""
    h, w = query[stride].shape[-2:]
    unit = query.directed[stride]  # (C, N)
    found = [_candidates(unit, r, stride, h, w) for r in references]
    values, cells = (torch.stack(x) for x in zip(*(c.best() for c in found), strict=True))  # (K, N) each
    top, which = values.max(0)
    firsts = torch.tensor([0, *(c.far.shape[1] for c in found[:-1])]).cumsum(0)
    best_index = (cells + firsts[:, None]).gather(0, which[None])[0]
    sums, totals = zip(*(c.weighted(r.maps[stride], top) for c, r in zip(found, references, strict=True)), strict=True)
    matched = (torch.stack(sums).sum(0) / torch.stack(totals).sum(0)[:, None]).T  # (C, N)
    anywhere = torch.stack([c.closest for c in found]).amax(0)
    distances = 1 - torch.stack([top, values.mean(0), anywhere])
    return matched.reshape(-1, h, w), distances.view(N_DISTANCES, h, w).clamp_min(0), best_index


def _match_guided(
    q: Tensor, references: Sequence[ReferenceView], coarse_best: Tensor, coarse_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Stride 4, among the 4 x 4 fine cells round the place that the stride-8 match points at."""
    c, h, w = q.shape
    h8, w8 = coarse_size
    step = torch.arange(_GUIDED, device=q.device)
    rows, blocks, first = [], [], 0
    for r in references:
        # block of fine cells 2y-1 .. 2y+2, 2x-1 .. 2x+2 of every coarse cell of the reference
        fine = F.pad(r.maps[4][None], (1, 1, 1, 1), mode="replicate")[0]
        _c, high, wide = fine.shape
        y, x = (torch.arange(0, n - _GUIDED + 1, 2, device=q.device) for n in (high, wide))
        corner = first + (y[:, None] * wide + x).flatten()  # (M8,)
        blocks.append(corner[:, None] + (step[:, None] * wide + step).flatten())  # (M8, 16)
        rows.append(fine.flatten(1).T)
        first += high * wide
    at = torch.cat(blocks).index_select(0, coarse_best)  # (N8, 16)
    chosen = torch.cat(rows).index_select(0, at.flatten()).view(*at.shape, c)  # (N8, 16, C)
    # the four fine cells of every coarse query cell
    mine = q.view(c, h8, 2, w8, 2).permute(1, 3, 2, 4, 0).reshape(h8 * w8, 4, c)
    norm = chosen.norm(dim=2).clamp_min(1e-12)
    similarity = F.normalize(mine, dim=2) @ chosen.transpose(1, 2) / norm[:, None]  # (N8, 4, 16)
    matched = torch.softmax(similarity / TEMPERATURE, 2) @ chosen  # (N8, 4, C)
    distance = 1 - similarity.amax(2, keepdim=True)  # (N8, 4, 1)

    def back(x: Tensor) -> Tensor:
        return x.view(h8, w8, 2, 2, -1).permute(4, 0, 2, 1, 3).reshape(-1, h, w)

    return back(matched), back(distance).clamp_min(0)


@torch.inference_mode()
def match(query: dict[int, Tensor], references: Sequence[ReferenceView]) -> Matched:
    """Match one query (stride -> (C, h, w), sides multiples of 32 px) with one or several references. B = 1.

    Raises ValueError without a reference.
    """
    if not references:
        raise ValueError("no reference to match with: give one or more")
    maps, matched, distances = FeatureMaps.of(query), {}, {}
    for stride in (32, 16, 8):
        matched[stride], distances[stride], best = _match(maps, references, stride)
    size = (int(query[8].shape[-2]), int(query[8].shape[-1]))
    matched[4], fine = _match_guided(query[4], references, best, size)
    coarse = F.interpolate(distances[8][None], scale_factor=2, mode="nearest")[0]
    distances[4] = torch.cat([fine, coarse[1:]])
    return Matched(
        {s: query[s][None] for s in STRIDES},
        {s: matched[s][None] for s in STRIDES},
        {s: distances[s][None] for s in STRIDES},
    )


def composite_reference(query: Tensor, references: Tensor) -> Tensor:
    """Of several registered reference pictures (K, 3, H, W) the one that fits the query (3, H, W) best, place by place.

    All uint8.
    """
    if len(references) == 1:
        return references[0]
    here, others = query.numpy(), references.numpy()
    best, least = others[0].copy(), _unlikeness(here, others[0])
    for other in others[1:]:
        unlike = _unlikeness(here, other)
        fits = (unlike < least).view(np.uint8)
        cv2.copyTo(unlike, fits, least)
        for mine, plane in zip(best, other, strict=True):
            cv2.copyTo(plane, fits, mine)
    return torch.from_numpy(best)


def _unlikeness(query: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(H, W): how far two pictures (3, H, W) differ round every pixel; 9 x 9 pixels of 3 x 255 just fit."""
    red, green, blue = (cv2.absdiff(q, r) for q, r in zip(query, reference, strict=True))
    whole = cv2.add(cv2.add(red, green, dtype=cv2.CV_16U), blue, dtype=cv2.CV_16U)
    return np.asarray(
        cv2.boxFilter(whole, cv2.CV_16U, (9, 9), normalize=False, borderType=cv2.BORDER_CONSTANT), np.uint16
    )
