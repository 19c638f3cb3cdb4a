"""How similar golden samples are to a photo, by the vectors of both: the order in which a bank gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import Golden, GoldenHit

Vectors = NDArray[np.float32]
_MIN_CANDIDATES = 32


def candidates_of(k: int) -> int:
    """How many of the nearest by their global vectors are compared patch by patch, where k are asked for."""
    return max(_MIN_CANDIDATES, 4 * k)


def ranked(candidates: Sequence[tuple[Golden, float, Vectors]], patches: Vectors, k: int) -> list[GoldenHit]:
    """The k most similar of candidates (golden sample, cosine of its global vector, its patches (M, D)), best first.

    patches: (N, D) of the photo. By MaxSim (ColBERT, arXiv:2004.12832, eq. 3) divided by N.
    """
    similarities = max_sim(patches, [own for _, _, own in candidates])
    hits = [
        GoldenHit(golden, float(s), float(np.clip(cosine, 0.0, 1.0)))
        for (golden, cosine, _), s in zip(candidates, similarities, strict=True)
    ]
    hits.sort(key=lambda h: (-h.similarity, -h.global_similarity, h.golden.golden_id))
    return hits[:k]


def max_sim(query: Vectors, candidates: Sequence[Vectors]) -> NDArray[np.float64]:
    """(C,) mean over query patches of the best cosine in each candidate, clipped to 0..1.

    query: (N, Dp); candidates: C arrays (Mi, Dp), Mi >= 1; rows need not be unit norm.
    """
    if not candidates:
        return np.zeros(0)
    rows = unit_rows(np.concatenate(candidates).astype(np.float32))  # (M1 + ... + MC, Dp)
    starts = np.cumsum([0, *(len(c) for c in candidates[:-1])])
    best = np.maximum.reduceat(rows @ unit_rows(query).T, starts, axis=0)  # (C, N)
    similarity: NDArray[np.float64] = best.mean(axis=1, dtype=np.float64)
    return similarity.clip(0.0, 1.0)


def unit_rows(rows: Vectors) -> Vectors:
    """Rows of unit norm, float32."""
    rows = np.asarray(rows, dtype=np.float32)
    norms: Vectors = np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)
    return rows / norms
