"""Retrieve, align and score in one function: the path that inspection, calibration and evaluation all take."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.bank import Golden, GoldenHit
from refdiff.model.difference.encoder import Features
from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage
from refdiff.tools.inspection.retrieval import retrieve_reference
from refdiff.tools.inspection.zones import place_zones
from refdiff.tools.score_difference import Difference, score_difference
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace


@dataclass(frozen=True)
class Comparison:
    """One photo against its references, nearest first. timings_ms: where the time went."""

    hits: list[GoldenHit]
    alignments: list[Alignment]
    difference: Difference
    ignore: NDArray[np.bool_] | None
    zones_placed: bool
    timings_ms: dict[str, float] = field(default_factory=dict)


class _Clock:
    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.ms[name] = self.ms.get(name, 0.0) + (now - self._last) * 1000
        self._last = now


def compare(
    workspace: Workspace,
    query: RgbImage,
    product: str,
    *,
    query_key: str | None = None,
    references: int | None = None,
    exclude_ids: Iterable[str] = (),
    exclude_groups: Iterable[str] = (),
    goldens: Sequence[Golden] | None = None,
    features: Features | None = None,
) -> Comparison:
    """Compare a photo (H, W, 3) uint8 RGB with its nearest goldens.

    references: K, default from the settings. exclude_*: goldens left out (calibration). goldens: compare with these
    instead of retrieving. features: of the photo, if known. Raises UnknownProductError when there is no golden.
    """
    clock = _Clock()
    query_key = query_key or hashlib.sha256(repr(query.shape).encode() + query.tobytes()).hexdigest()
    if features is None:
        features = workspace.encoder.embed(query)
    clock.lap("encode")
    k = references or workspace.settings.references
    if goldens is None:
        hits = retrieve_reference(workspace, features, product, k, exclude_ids, exclude_groups)
    else:
        if not goldens:
            raise InputError("no golden samples to compare with were given")
        hits = [similarity_to(workspace, features, g) for g in goldens]
    clock.lap("retrieve")
    masks, placed = place_zones(workspace, query, query_key, product, "ignore")
    ignore = np.logical_or.reduce(list(masks.values())) if masks else None
    alignments = [workspace.alignment(query, query_key, h.golden) for h in hits]
    clock.lap("align")
    pairs = [(h.golden, a) for h, a in zip(hits, alignments, strict=True)]
    result = score_difference(workspace, query, features, pairs, ignore)
    clock.lap("score")
    return Comparison(hits, alignments, result, ignore, placed, clock.ms)


def similarity_to(workspace: Workspace, features: Features, golden: Golden) -> GoldenHit:
    """How similar a photo is to one given golden, by the bank's own yardstick."""
    other = workspace.golden_features(golden)
    similarity = float((features.patches @ other.patches.T).max(1).mean())
    return GoldenHit(golden, similarity, float(features.global_vec @ other.global_vec))
