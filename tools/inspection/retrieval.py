"""Retrieval of the nearest golden samples of a photo."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.model.difference.encoder import Features, resize_to
from refdiff.model.images import RgbImage
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import in_work_px
from refdiff.tools.vision.registration import Alignment, warp_reference
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
    does is searched for again as that registration turns it back; without one, at the three other right angles. The other
    goldens are taken if they are more similar and register; a part that lies upright costs nothing more.
    features: of the photo as it is; the similarities are those of the photo as it was searched for. query_key: sha256 of
    the photo. Raises UnknownProductError if there is no golden.
    """
    clock = clock or Clock()

    def search(features: Features) -> list[GoldenHit]:
        with clock.stage("retrieve"):
            return retrieve_reference(workspace, features, product, k, exclude_ids)

    def register(hit: GoldenHit) -> Alignment:
        with clock.stage("align"):
            return workspace.alignment(query, query_key, hit.golden)

    hits = search(features)
    found = register(hits[0])
    if found.ok and found.upright:
        return hits
    small = resize_to(query, features.work_size)  # what the encoder sees
    if found.ok:
        own = workspace.golden_features(hits[0].golden)
        back = np.linalg.inv(in_work_px(found.matrix, features, own)).astype(np.float64)
        views = [warp_reference(small, back, own.work_size)[0]]
    else:
        views = [np.ascontiguousarray(np.rot90(small, quarters)) for quarters in (1, 2, 3)]
    for view in views:
        with clock.stage("encode"):
            turned = workspace.encoder.embed(view)
        others = search(turned)
        if others[0].similarity > hits[0].similarity and register(others[0]).ok:
            hits = others
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
