"""Retrieval of the nearest golden samples of a photo."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from itertools import chain

import numpy as np

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.model.difference.features import Features, resize_to
from refdiff.model.errors import DamagedError
from refdiff.model.images import RgbImage
from refdiff.tools.framing.frames import likely_frames, place_of
from refdiff.tools.framing.photos import alignment, frame_grid, warped
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.frame_vectors import vectors_as_it_lies, vectors_in_frame
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace

_FRAMES = 3  # of a product of measured values, that a file is registered to


def nearest_goldens(
    workspace: Workspace,
    query: RgbImage,
    query_key: str,
    features: Features,
    product: str,
    k: int,
    exclude_ids: Collection[str] = (),
    clock: Clock | None = None,
) -> list[GoldenHit]:
    """The k nearest goldens of a photo (H, W, 3), best first, whichever way round the part lies.

    The encoder knows no angles: a part upside down resembles no golden. So a photo that does not lie as its nearest golden
    does is searched for again in that golden's frame; without a registration, at the three other right angles. The other
    goldens are taken if they are more similar and register; a part that lies upright costs nothing more.
    All are of the frame of the nearest. Where that has fewer, those of other frames that register fill up.
    features: of the photo as it is; the similarities are those of the photo as it was searched for. query_key: sha256 of
    the photo. Raises UnknownProductError if there is no golden. Files of measured values: see `_nearest_measured`.
    """
    clock = clock or Clock()
    workspace.forget_poses(query_key)
    if workspace.kind(product) != "photo":
        return _nearest_measured(workspace, query, query_key, features, product, k, exclude_ids, clock)

    def search(features: Features, without: Collection[str] = exclude_ids) -> list[GoldenHit]:
        with clock.stage("retrieve"):
            return retrieve_reference(workspace, features, product, k, without)

    def register(hit: GoldenHit) -> Alignment:
        with clock.stage("align"):
            return alignment(workspace, query, query_key, hit.golden)

    hits = search(features)
    found = register(hits[0])
    if not (found.ok and found.upright):
        if found.ok:
            grid = frame_grid(workspace, query, query_key, features, hits[0].golden, found)
            with clock.stage("encode"):
                views = [warped(workspace, query, query_key, grid)[1]]
        else:
            small = resize_to(query, features.work_size)  # what the encoder sees
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


def _nearest_measured(
    workspace: Workspace,
    query: RgbImage,
    query_key: str,
    features: Features,
    product: str,
    k: int,
    exclude_ids: Collection[str],
    clock: Clock,
) -> list[GoldenHit]:
    """The k nearest goldens by what was measured where: in each of the likely frames that the file registers to, the goldens
    of the most similar first. Without any, as it lies."""
    frames = workspace.stores.frames.of(product)
    found: list[list[GoldenHit]] = []
    for frame in likely_frames(workspace, product, features)[:_FRAMES]:
        vectors = None
        with clock.stage("align"), contextlib.suppress(DamagedError):
            vectors = vectors_in_frame(workspace, query, query_key, frame, product)
        if vectors is not None:
            elsewhere = {golden_id for golden_id, anchor in frames.items() if anchor != frame.anchor_id}
            with clock.stage("retrieve"):
                found.append(workspace.bank.nearest(product, *vectors, k, exclude_ids={*exclude_ids, *elsewhere}))
    found.sort(key=lambda hits: hits[0].similarity if hits else 0.0, reverse=True)
    if hits := list(chain(*found))[:k]:
        return hits
    with clock.stage("retrieve"):
        hits = workspace.bank.nearest(product, *vectors_as_it_lies(workspace, query_key, product), k, exclude_ids)
    if not hits:
        raise workspace.bank.no_goldens(product)
    return hits


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
