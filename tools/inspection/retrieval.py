"""Retrieval of the nearest golden samples of a photo."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.model.difference.features import Features, resize_to
from refdiff.model.images import RgbImage
from refdiff.tools.framing.frames import place_of
from refdiff.tools.framing.photos import alignment, frame_grid, warped
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace


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
    the photo. Raises UnknownProductError if there is no golden.
    """
    clock = clock or Clock()
    workspace.forget_poses(query_key)

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
