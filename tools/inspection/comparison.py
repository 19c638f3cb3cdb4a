"""Retrieve, align and score in one function: the path that inspection, calibration and evaluation all take."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from refdiff.memory.golden_bank.golden import Golden, GoldenHit
from refdiff.memory.golden_bank.similarity import ranked
from refdiff.model.difference.features import Features
from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage
from refdiff.tools.framing.frames import place_of
from refdiff.tools.framing.photos import Query
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.frame_vectors import Vectors, golden_vectors, vectors_as_it_lies, vectors_in_frame
from refdiff.tools.inspection.methods import Asked, method_of
from refdiff.tools.inspection.pixel_format import format_problem
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.zones import ignored
from refdiff.tools.workspace import Workspace


def compare(
    workspace: Workspace,
    query: RgbImage,
    product: str,
    *,
    query_key: str | None = None,
    references: int | None = None,
    exclude_ids: Collection[str] = (),
    goldens: Sequence[Golden] | None = None,
    features: Features | None = None,
) -> Comparison:
    """Compare a photo (H, W, 3) uint8 RGB with its nearest goldens.

    references: K, default from the settings. exclude_ids: goldens left out (calibration). goldens: compare with these
    instead of retrieving. features: of the photo, if known. Raises UnknownProductError when there is no golden.
    """
    clock = Clock()
    query_key = query_key or hashlib.sha256(repr(query.shape).encode() + query.tobytes()).hexdigest()
    with clock.stage("encode"):
        photo = Query(query, query_key, features or workspace.encoder.embed(query))
    if goldens is None:
        k = references or workspace.settings.references
        hits = nearest_goldens(workspace, photo, product, k, exclude_ids, clock)
    else:
        hits = similarities(workspace, photo, goldens)
    return compare_with(workspace, photo, product, hits, clock, exclude_ids)


def compare_with(
    workspace: Workspace,
    query: Query,
    product: str,
    hits: list[GoldenHit],
    clock: Clock,
    unseen: Collection[str] = (),
) -> Comparison:
    """Compare a photo with retrieved goldens. clock: has timed what went before.

    unseen: goldens (ids) that the network must not have been trained on.
    """
    if not hits:
        raise InputError("no golden samples to compare with were given")
    with clock.stage("align"):
        ignore, placed = ignored(workspace, query, product)
    asked = Asked(workspace, query, product, hits, clock, unseen, ignore)
    method = method_of(workspace, product)
    references, difference = method.compare(asked)
    known = workspace.stores.products.get(product)
    deep = method.exposed and known is not None and known.intensity_window is not None
    if difference.colour is None:
        problem = format_problem(query.image, workspace.golden_image(hits[0].golden), deep=deep)
    else:
        problem = difference.colour.format_problem
    registered = [r.alignment for r in references]
    return Comparison(hits, registered, references[0], difference, ignore, placed, query.features, problem, clock.ms)


def similarities(workspace: Workspace, query: Query, goldens: Sequence[Golden]) -> list[GoldenHit]:
    """How similar a photo is to each of given goldens of one product, by the bank's own yardstick, in their order.

    Those of measured values have to be in the bank; raises UnknownRecordError."""
    features = query.features
    measured: dict[str, Vectors] = {}  # of the photo in each frame, by its anchor

    def both(golden: Golden) -> tuple[Vectors, Vectors]:
        if workspace.kind(golden.product) == "photo":
            return (features.global_vec, features.patches), golden_vectors(workspace, golden)
        place = place_of(workspace, golden)
        if place.anchor_id not in measured:
            found = vectors_in_frame(workspace, query, place, golden.product)
            measured[place.anchor_id] = found or vectors_as_it_lies(workspace, query.key, golden.product)
        return measured[place.anchor_id], workspace.bank.vectors(golden.golden_id)

    hits = []
    for golden in goldens:
        (ours, our_patches), (whole, patches) = both(golden)
        hits += ranked([(golden, float(ours @ whole), patches)], our_patches, 1)
    return hits
