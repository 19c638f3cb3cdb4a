"""Retrieval of the nearest golden samples of a photo."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain

import numpy as np

from refdiff.memory.golden_bank.golden import IN_USE, GoldenHit
from refdiff.model.difference.features import Features, resize_to
from refdiff.tools.framing.frames import likely_frames, place_of
from refdiff.tools.framing.photos import Query, alignment, frame_grid, warped
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.frame_vectors import Vectors, vectors_as_it_lies, vectors_in_frame
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace

_FRAMES = 3  # of a product of measured values, that a file is registered to


def nearest_goldens(
    workspace: Workspace,
    query: Query,
    product: str,
    k: int,
    exclude_ids: Collection[str] = (),
    clock: Clock | None = None,
) -> list[GoldenHit]:
    """The k nearest goldens of a photo, best first, whichever way round the part lies. It is registered anew.

    The encoder knows no angles: a part upside down resembles no golden. So a photo that does not lie as its nearest golden
    does is searched for again in that golden's frame; without a registration, at the three other right angles. The other
    goldens are taken if they are more similar and register; a part that lies upright costs nothing more.
    All are of the frame of the nearest. Where that has fewer, those of other frames that register fill up.
    The similarities are those of the photo as it was searched for. Raises UnknownProductError if there is no golden. Files
    of measured values are found by those, see `_nearest_measured`.
    """
    clock = clock or Clock()
    query.poses.clear()  # what it was compared with before must not change its result
    if workspace.kind(product) != "photo":

        def find(vectors: Vectors, without: Collection[str] = ()) -> list[GoldenHit]:
            with clock.stage("retrieve"):
                return workspace.bank.nearest(product, *vectors, k, exclude_ids={*exclude_ids, *without})

        with clock.stage("align"):
            in_frames = _measured_in_frames(workspace, query, product, exclude_ids)
        return _nearest_measured(workspace, query.key, product, in_frames, find)[:k]

    def search(features: Features, without: Collection[str] = exclude_ids) -> list[GoldenHit]:
        with clock.stage("retrieve"):
            return retrieve_reference(workspace, features, product, k, without)

    def register(hit: GoldenHit) -> Alignment:
        with clock.stage("align"):
            return alignment(workspace, query, hit.golden)

    features = query.features
    hits = search(features)
    found = register(hits[0])
    if not (found.ok and found.upright):
        if found.ok:
            grid = frame_grid(workspace, query, hits[0].golden, found)
            with clock.stage("encode"):
                views = [warped(workspace, query, grid)[1]]
        else:
            small = resize_to(query.image, features.work_size)  # what the encoder sees
            turned = [np.ascontiguousarray(np.rot90(small, quarters)) for quarters in (1, 2, 3)]
            with clock.stage("encode"):
                views = [workspace.encoder.embed(view) for view in turned]
        for view in views:
            others = search(view)
            if others[0].similarity > hits[0].similarity and (turned_back := register(others[0])).ok:
                hits, found, features = others, turned_back, view
    if not found.ok:
        return hits
    frame = place_of(workspace, hits[0].golden).anchor_id
    outside = [h for h in hits if place_of(workspace, h.golden).anchor_id != frame]
    if not outside:
        return hits
    elsewhere = {golden_id for golden_id, anchor in workspace.stores.frames.of(product).items() if anchor != frame}
    inside = search(features, {*exclude_ids, *elsewhere})
    return [*inside, *(h for h in outside if len(inside) < k and register(h).ok)][:k]


def _measured_in_frames(
    workspace: Workspace, query: Query, product: str, exclude_ids: Collection[str]
) -> dict[str, Vectors]:
    """By which goldens are found in each of the likely frames that a file registers to, by the ids of their anchors."""
    frames = workspace.stores.frames.of(product)
    unasked: Collection[str] = exclude_ids
    if len(set(frames.values())) > _FRAMES:  # those without a golden to compare with must not displace others
        unasked = frames.keys() - ({g.golden_id for g in workspace.bank.list(product, IN_USE)} - {*exclude_ids})
    likely = likely_frames(workspace, product, query.features, unasked)[:_FRAMES]
    found = {p.anchor_id: vectors_in_frame(workspace, query, p, product) for p in likely}
    return {anchor_id: vectors for anchor_id, vectors in found.items() if vectors is not None}


def _nearest_measured(
    workspace: Workspace,
    query_key: str,
    product: str,
    in_frames: Mapping[str, Vectors],
    find: Callable[[Vectors, Collection[str]], list[GoldenHit]],
) -> list[GoldenHit]:
    """The nearest goldens by what was measured where: in each frame, the goldens of the most similar first. Without any, as
    it lies. in_frames: see `_measured_in_frames`. find: searches for vectors, without goldens of those ids."""
    frames = workspace.stores.frames.of(product)
    found = [
        find(vectors, [golden_id for golden_id, anchor in frames.items() if anchor != anchor_id])
        for anchor_id, vectors in in_frames.items()
    ]
    found.sort(key=lambda hits: hits[0].similarity if hits else 0.0, reverse=True)
    hits: dict[str, GoldenHit] = {}  # a golden without a place is found in each frame
    for hit in chain(*found):
        hits.setdefault(hit.golden.golden_id, hit)
    nearest = list(hits.values()) or find(vectors_as_it_lies(workspace, query_key, product), ())
    if not nearest:
        raise workspace.bank.no_goldens(product)
    return nearest


def retrieve_reference(
    workspace: Workspace,
    features: Features,
    product: str,
    k: int = 1,
    exclude_ids: Collection[str] = (),
) -> list[GoldenHit]:
    """The k nearest goldens in use (fewer if there are fewer), best first. Raises UnknownProductError if there is none."""
    hits = workspace.bank.nearest(product, features.global_vec, features.patches, k, exclude_ids=exclude_ids)
    if not hits:
        raise workspace.bank.no_goldens(product)
    return hits
