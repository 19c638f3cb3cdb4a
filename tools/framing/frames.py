"""Which frame a golden belongs to: goldens of one product are registered to each other once, and the result is kept.

A frame is the pixel grid of one golden, its anchor. Goldens are placed in the order of their enrolment, each in a frame of
the goldens most similar to it; one that registers to none of them becomes an anchor itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from refdiff.memory.golden_bank.golden import STATUSES, Golden
from refdiff.memory.golden_bank.similarity import max_sim
from refdiff.memory.rows.frames import GoldenPlace
from refdiff.model.difference.features import Features
from refdiff.model.errors import DamagedError, UnknownRecordError
from refdiff.model.images import F32
from refdiff.model.progress import Progress, silent
from refdiff.tools.kinds.readers import reader_of
from refdiff.tools.kinds.reading import PlacingReader
from refdiff.tools.vision.refinement import refined
from refdiff.tools.vision.registration import Alignment, Matrix, carried
from refdiff.tools.workspace import Workspace

log = logging.getLogger(__name__)

_TRIED = 2  # frames that a golden is registered to before it becomes an anchor
_SIMILAR = 8  # goldens whose frames are tried
# asked of a golden besides what is asked of a photo: it stays where it was put
_MIN_OVERLAP = 0.6
_MAX_RESIDUAL_PART = 0.01  # of the long side


def place_of(workspace: Workspace, golden: Golden) -> GoldenPlace:
    """Where a golden lies in its frame; if nobody knows, all goldens of its product are placed first.

    A golden that is in no bank is its own anchor. Raises DamagedError where its photo is missing or damaged.
    """
    known = workspace.places.get(golden.golden_id)
    if known is not None:
        return known
    known = workspace.stores.frames.get(golden.golden_id)
    if known is None:
        with contextlib.suppress(UnknownRecordError):
            workspace.bank.get(golden.golden_id)
            place_goldens(workspace, golden.product)
            known = workspace.stores.frames.get(golden.golden_id)
    if known is None:
        return _anchor(workspace, golden)
    workspace.places[golden.golden_id] = known
    return known


def place_goldens(workspace: Workspace, product: str, progress: Progress = silent) -> None:
    """Place all goldens of a product that have no place yet, oldest first; one whose photo is damaged stays without."""
    placed = workspace.stores.frames.of(product)
    waiting = [g for g in workspace.bank.list(product) if g.golden_id not in placed]
    for done, golden in enumerate(waiting, start=1):
        try:
            workspace.stores.frames.put(found_place(workspace, golden, [g.golden_id for g in waiting[done:]]))
        except DamagedError as e:
            log.warning("%s", e)
        progress("registering golden samples", done, len(waiting))


def found_place(workspace: Workspace, golden: Golden, without: Sequence[str] = ()) -> GoldenPlace:
    """The place of a golden by its registration to those that have one, not kept. without: ids of goldens that have none.

    Raises DamagedError where its photo is missing or damaged.
    """
    image = workspace.golden_image(golden)
    for frame in _likely(workspace, golden, without):
        with contextlib.suppress(DamagedError, UnknownRecordError):
            found = workspace.registration(image, golden.sha256, frame.anchor_sha256, golden.product)
            if _fits(found, (image.shape[0], image.shape[1])):
                other = workspace.image(frame.anchor_sha256, golden.product, "golden sample")
                flat = not isinstance(reader_of(workspace.kind(golden.product)), PlacingReader)
                back = np.linalg.inv(refined(image, other, found.matrix) if flat else found.matrix)
                return GoldenPlace(
                    golden_id=golden.golden_id,
                    product=golden.product,
                    anchor_id=frame.anchor_id,
                    anchor_sha256=frame.anchor_sha256,
                    size=(image.shape[0], image.shape[1]),
                    anchor_size=(other.shape[0], other.shape[1]),
                    matrix=tuple((back / back[2, 2]).ravel().tolist()),
                    method=found.method,
                    residual_px=found.residual_px,
                    overlap=found.overlap,
                    ncc=found.ncc,
                )
    return _anchor(workspace, golden)


def _likely(workspace: Workspace, golden: Golden, without: Sequence[str]) -> list[GoldenPlace]:
    """The frames that the most similar goldens are in, best first, each by the place of one of those."""
    features = workspace.golden_features(golden)
    if (
        workspace.kind(golden.product) != "photo"
    ):  # whose goldens are found by what was measured, where it lies in a frame
        return likely_frames(workspace, golden.product, features, [golden.golden_id, *without])[:_TRIED]
    hits = workspace.bank.nearest(
        golden.product, features.global_vec, features.patches, _SIMILAR,
        exclude_ids=[golden.golden_id, *without], statuses=STATUSES,
    )  # fmt: skip
    places = (workspace.stores.frames.get(h.golden.golden_id) for h in hits)
    frames: dict[str, GoldenPlace] = {}
    for place in places:
        if place is not None:
            frames.setdefault(place.anchor_id, place)
    return list(frames.values())[:_TRIED]


def likely_frames(
    workspace: Workspace, product: str, features: Features, without: Collection[str] = ()
) -> list[GoldenPlace]:
    """The frames of a product by the places of their anchors, that first which looks most like a picture, and last those of
    which no golden can be read. without: ids of goldens whose frames do not count, unless another golden is in them."""
    anchors = {anchor for golden_id, anchor in workspace.stores.frames.of(product).items() if golden_id not in without}
    places = [p for anchor in sorted(anchors) if (p := workspace.stores.frames.get(anchor)) is not None]
    if len(places) < 2:
        return places
    looks = {p.anchor_id: look for p in places if (look := _look(workspace, p)) is not None}
    similar = dict(zip(looks, max_sim(features.patches, list(looks.values())), strict=True))
    return sorted(places, key=lambda p: -similar.get(p.anchor_id, -1.0))


def _look(workspace: Workspace, frame: GoldenPlace) -> F32 | None:
    """(N, Dp) patches of a golden of a frame; None where none can be read."""
    for golden in goldens_of_frame(workspace, frame):
        with contextlib.suppress(DamagedError):
            return workspace.golden_features(golden).patches
    return None


def goldens_of_frame(workspace: Workspace, frame: GoldenPlace) -> Iterator[Golden]:
    """The anchor of a frame (the place of any golden in it), then the others: one stands in where its file is lost."""
    yield Golden(frame.anchor_id, frame.product, frame.anchor_sha256)
    for golden_id, anchor in sorted(workspace.stores.frames.of(frame.product).items()):
        if anchor == frame.anchor_id != golden_id:
            with contextlib.suppress(UnknownRecordError):
                yield workspace.bank.get(golden_id)


def _fits(found: Alignment, size: tuple[int, int]) -> bool:
    left = found.residual_px or 0.0
    return found.ok and found.overlap >= _MIN_OVERLAP and left <= _MAX_RESIDUAL_PART * max(size)


def _anchor(workspace: Workspace, golden: Golden) -> GoldenPlace:
    h, w = workspace.golden_image(golden).shape[:2]
    return GoldenPlace(
        golden_id=golden.golden_id,
        product=golden.product,
        anchor_id=golden.golden_id,
        anchor_sha256=golden.sha256,
        size=(h, w),
        anchor_size=(h, w),
        matrix=tuple(np.eye(3).ravel().tolist()),
    )


def matrix_of(place: GoldenPlace) -> Matrix:
    """(3, 3) float64: golden px -> anchor px."""
    return np.array(place.matrix, np.float64).reshape(3, 3)


def anchor_of(place: GoldenPlace) -> GoldenPlace:
    """The place of the anchor of the same frame."""
    return GoldenPlace(
        place.anchor_id, place.product, place.anchor_id, place.anchor_sha256, place.anchor_size, place.anchor_size,
        tuple(np.eye(3).ravel().tolist()),
    )  # fmt: skip


def carried_over(known: Alignment, place: GoldenPlace, other: GoldenPlace, query_size: tuple[int, int]) -> Alignment:
    """How `other` lies on a photo of `query_size` (H, W), from how a golden of the same frame (`place`) does."""
    between = np.linalg.inv(matrix_of(place)) @ matrix_of(other)
    left = None if other.residual_px is None or other.golden_id == place.golden_id else other.residual_px
    return carried(known, between, left, other.size, query_size)
