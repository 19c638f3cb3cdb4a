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
from numpy.typing import NDArray

from refdiff.model.arrays import (
    Array,
    doubled,
    largest,
    library_of,
    like,
    norm,
    offsets,
    packed,
    padded,
    permuted,
    rows,
    softmax,
    strided,
    taken,
    unit,
    without_gradients,
)
from refdiff.model.difference.feature_maps import FeatureMaps

STRIDES = (4, 8, 16, 32)
RADIUS = {8: 4, 16: 2, 32: 1}  # half width of the matching window, cells
TEMPERATURE = 0.02  # of the softmax over cosine similarities
_GUIDED = 4  # side of the block of fine cells that a coarse match points at
N_DISTANCES = 3


@dataclass(frozen=True)
class ReferenceView:
    """One reference as seen from one query: what both halves of the difference compare the query with.

    What is no map may be a numpy array also where maps are tensors.
    """

    # stride -> (C, h, w); on the query's grid if registered, else in the reference's own frame (any size)
    maps: dict[int, Array]
    valid: Array  # (h8, w8) bool: stride-8 cells that a registered reference covers; ignored if not registered
    registered: bool = True
    picture: Array | None = None  # (3, H, W) uint8 on the query's working grid; None if not registered
    covered: Array | None = None  # (H, W) bool, pixels of `picture` that the reference covers
    own_maps: dict[int, Array] | None = None  # maps in its own frame, for cells that the registered ones do not cover


@dataclass(frozen=True)
class Matched:
    """B queries matched with their references."""

    query: dict[int, Array]  # stride -> (B, C, h, w) features
    reference: dict[int, Array]  # stride -> (B, C, h, w), what the references have in the query's place
    # stride -> (B, 3, h, w) in 0..2: nearest in the window (best reference), the same averaged over references, and
    # nearest anywhere
    distances: dict[int, Array]

    @staticmethod
    def stack(items: Sequence[Matched]) -> Matched:
        """One batch of several; all must have one size."""
        library = library_of(items[0].query[STRIDES[0]])
        return Matched(
            *(
                {s: library.concat([getattr(i, name)[s] for i in items]) for s in STRIDES}
                for name in ("query", "reference", "distances")
            )
        )


@lru_cache(maxsize=32)
def window_cells(h: int, w: int, radius: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(h*w, n) int64: the n = (2 radius + 1) ** 2 cells round every cell, and (h*w, n) bool: which of them exist."""
    y, x = (a.ravel() for a in np.mgrid[:h, :w])
    dy, dx = (a.ravel() for a in np.mgrid[-radius : radius + 1, -radius : radius + 1])
    yy, xx = y[:, None] + dy, x[:, None] + dx  # (N, n)
    inside = (yy >= 0) & (yy < h) & (xx >= 0) & (xx < w)
    return np.asarray(yy.clip(0, h - 1) * w + xx.clip(0, w - 1), np.int64), inside


def _resized(valid: Array, h: int, w: int) -> Array:
    """(h, w) bool: cells of which more than half is valid; the sides of (h8, w8) are multiples of h and w."""
    fy, fx = valid.shape[0] // h, valid.shape[1] // w
    return valid.reshape(h, fy, w, fx).sum(3).sum(1) * 2 > fy * fx


@dataclass(frozen=True)
class _Candidates:
    """What the N = h * w query cells may match in one reference of M cells."""

    at: Array  # (N, n): the cells of the window
    near: Array  # (N, n): their similarity, -inf where not usable
    anywhere: Array  # (N,) bool: the A rows in which all M cells count instead
    far: Array  # (A, M): their similarity
    closest: Array  # (N,): similarity of the closest of all cells

    def best(self) -> tuple[Array, Array]:
        """(N,) similarity of the best candidate and (N,) its cell."""
        value, place = largest(self.near, 1)
        cell = taken(self.at, place[:, None])[:, 0]
        if self.anywhere.any():
            value[self.anywhere], cell[self.anywhere] = largest(self.far, 1)
        return value, cell

    def weighted(self, features: Array, top: Array) -> tuple[Array, Array]:
        """Sums over the candidates of the features (C, h, w) times exp((similarity - top) / temperature), (N, C), and of
        these weights alone, (N,)."""
        cells = features.reshape(features.shape[0], -1).T
        if self.anywhere.all():
            weights = _exponential(self.far, top)
            return weights @ cells, weights.sum(1)
        weights = _exponential(self.near, top)
        sums, total = _window_sums(weights, features), weights.sum(1)
        if self.anywhere.any():
            weights = _exponential(self.far, top[self.anywhere])
            sums[self.anywhere], total[self.anywhere] = weights @ cells, weights.sum(1)
        return sums, total


def _window_sums(weights: Array, features: Array) -> Array:
    """(N, C) sums of the features (C, h, w) in the window round every cell, times weights (N, side**2)."""
    library = library_of(features)
    c, h, w = features.shape
    side = round(weights.shape[1] ** 0.5)
    wide = w + side - 1
    # per row of cells one product: the window's rows of features, each with what stands on both sides of the picture
    beside = packed(permuted(padded(features, side // 2), 1, 2, 0))  # (h + side - 1, wide, C)
    strips = strided(beside, (h, side * wide, c), (wide * c, c, 1))
    spread = library.zeros((h, w, side * wide), dtype=library.float32)
    strided(spread, (h, w, side, side), (w * side * wide, side * wide + 1, wide, 1))[:] = weights.reshape(
        h, w, side, side
    )
    return (spread @ strips).reshape(h * w, c)


def _exponential(similarity: Array, top: Array) -> Array:
    # what is smaller than exp(-60) would be denormal numbers in a moment, which are very slow; -inf becomes a plain 0
    scaled = (similarity - top[:, None]) / TEMPERATURE
    found = library_of(scaled).exp(scaled)
    found[scaled < -60] = 0.0
    return found


def _candidates(units: Array, reference: ReferenceView, stride: int, h: int, w: int) -> _Candidates:
    similarity = units.T @ FeatureMaps.of(reference.maps).directed[stride]  # (N, M)
    if not reference.registered:
        none = like(np.zeros((h * w, 1), np.int64), units)
        nothing = like(np.zeros((h * w, 1), np.float32), units)
        anywhere = like(np.ones(h * w, bool), units)
        return _Candidates(none, nothing, anywhere, similarity, library_of(units).amax(similarity, 1))
    at, usable = (like(x, units) for x in window_cells(h, w, RADIUS[stride]))
    valid = like(reference.valid, units)
    if not valid.all():
        usable = usable & _resized(valid, h, w).reshape(-1)[at]
    near = taken(similarity, at)
    near[~usable] = -np.inf
    # a cell whose whole window is uncovered has no counterpart to miss: it may look anywhere
    anywhere = ~usable.any(1)
    # the search anywhere includes what completes the reference beyond its end, as in the pairs that the network learned from
    # the whole similarity is large, and not kept: the next reference's takes its place in the CPU's cache
    return _Candidates(at, near, anywhere, similarity[anywhere], library_of(units).amax(similarity, 1))


def _match(query: FeatureMaps, references: Sequence[ReferenceView], stride: int) -> tuple[Array, Array, Array]:
    """One stride of one image: matched (C, h, w), distances (3, h, w), best (h*w,) index into all reference cells."""
    library = library_of(query[stride])
    h, w = query[stride].shape[-2:]
    units = query.directed[stride]  # (C, N)
    found = [_candidates(units, r, stride, h, w) for r in references]
    values, cells = (library.stack(x) for x in zip(*(c.best() for c in found), strict=True))  # (K, N) each
    top, which = largest(values, 0)
    firsts = like(np.array(offsets([c.far.shape[1] for c in found])[:-1], np.int64), units)
    best_index = taken((cells + firsts[:, None]).T, which[:, None])[:, 0]
    sums, totals = zip(*(c.weighted(r.maps[stride], top) for c, r in zip(found, references, strict=True)), strict=True)
    matched = (library.stack(sums).sum(0) / library.stack(totals).sum(0)[:, None]).T  # (C, N)
    anywhere = library.amax(library.stack([c.closest for c in found]), 0)
    distances = 1 - library.stack([top, values.mean(0), anywhere])
    return matched.reshape(-1, h, w), distances.reshape(N_DISTANCES, h, w).clip(0), best_index


def _match_guided(
    q: Array, references: Sequence[ReferenceView], coarse_best: Array, coarse_size: tuple[int, int]
) -> tuple[Array, Array]:
    """Stride 4, among the 4 x 4 fine cells round the place that the stride-8 match points at."""
    library = library_of(q)
    c, h, w = q.shape
    h8, w8 = coarse_size
    step = np.arange(_GUIDED)
    fine_rows, blocks, first = [], [], 0
    for r in references:
        # block of fine cells 2y-1 .. 2y+2, 2x-1 .. 2x+2 of every coarse cell of the reference
        fine = padded(r.maps[4], 1, repeat=True)
        _c, high, wide = fine.shape
        y, x = (np.arange(0, n - _GUIDED + 1, 2) for n in (high, wide))
        corner = first + (y[:, None] * wide + x).ravel()  # (M8,)
        blocks.append(corner[:, None] + (step[:, None] * wide + step).ravel())  # (M8, 16)
        fine_rows.append(fine.reshape(c, -1).T)
        first += high * wide
    at = rows(like(np.concatenate(blocks), q), coarse_best)  # (N8, 16)
    chosen = rows(library.concat(fine_rows), at.reshape(-1)).reshape(*at.shape, c)  # (N8, 16, C)
    # the four fine cells of every coarse query cell
    mine = permuted(q.reshape(c, h8, 2, w8, 2), 1, 3, 2, 4, 0).reshape(h8 * w8, 4, c)
    similarity = unit(mine, 2) @ library.swapaxes(chosen, 1, 2) / norm(chosen, 2)[:, None]  # (N8, 4, 16)
    matched = softmax(similarity / TEMPERATURE, 2) @ chosen  # (N8, 4, C)
    distance = 1 - library.amax(similarity, 2)[..., None]  # (N8, 4, 1)

    def back(x: Array) -> Array:
        return permuted(x.reshape(h8, w8, 2, 2, -1), 4, 0, 2, 1, 3).reshape(-1, h, w)

    return back(matched), back(distance).clip(0)


@without_gradients
def match(query: dict[int, Array], references: Sequence[ReferenceView]) -> Matched:
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
    distances[4] = library_of(fine).concat([fine, doubled(distances[8])[1:]])
    return Matched(
        {s: query[s][None] for s in STRIDES},
        {s: matched[s][None] for s in STRIDES},
        {s: distances[s][None] for s in STRIDES},
    )


def composite_reference(query: Array, references: Array) -> Array:
    """Of several registered reference pictures (K, 3, H, W) the one that fits the query (3, H, W) best, place by place.

    All uint8.
    """
    if len(references) == 1:
        return references[0]
    here, others = np.asarray(query), np.asarray(references)
    best, least = others[0].copy(), _unlikeness(here, others[0])
    for other in others[1:]:
        unlike = _unlikeness(here, other)
        fits = (unlike < least).view(np.uint8)
        cv2.copyTo(unlike, fits, least)
        for mine, plane in zip(best, other, strict=True):
            cv2.copyTo(plane, fits, mine)
    return like(best, query)


def _unlikeness(query: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(H, W): how far two pictures (3, H, W) differ round every pixel; 9 x 9 pixels of 3 x 255 just fit."""
    red, green, blue = (cv2.absdiff(q, r) for q, r in zip(query, reference, strict=True))
    whole = cv2.add(cv2.add(red, green, dtype=cv2.CV_16U), blue, dtype=cv2.CV_16U)
    return np.asarray(
        cv2.boxFilter(whole, cv2.CV_16U, (9, 9), normalize=False, borderType=cv2.BORDER_CONSTANT), np.uint16
    )
