"""What golden samples of temperatures, heights and clouds are found by: the measured values themselves, in their frame.

Photos are found by the encoder, which sees what a picture is of, not how many mm or K a place of it has; nor does it know a
turned part. Measured values are compared where they lie on the anchor of a frame: whichever way a part was turned, and
exactly. The vectors have the sizes of the encoder's and lie in the same collection: a search is always of one product, and
so of one kind.
"""

from __future__ import annotations

import numpy as np

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.rows.frames import GoldenPlace
from refdiff.model.height.cells import cell_vectors
from refdiff.model.height.plane import Removal, fit, height_of
from refdiff.model.images import F32, RgbImage
from refdiff.tools.framing.frames import matrix_of, place_of
from refdiff.tools.framing.photos import alignment
from refdiff.tools.inspection.on_query import on_query, refined, turned
from refdiff.tools.kinds.reading import Reading
from refdiff.tools.vision.registration import Matrix
from refdiff.tools.workspace import Workspace

Vectors = tuple[F32, F32]  # of the whole, and of its parts: as `GoldenBank.add` takes them


def golden_vectors(workspace: Workspace, golden: Golden) -> Vectors:
    """By which a golden is found. Of measured values, it has to be placed before. Raises DamagedError."""
    reading = workspace.golden_reading(golden)
    if reading.values is None:
        features = workspace.golden_features(golden)
        return features.global_vec, features.patches
    place = place_of(workspace, golden)
    return _vectors(workspace, golden.product, _on_anchor(workspace, reading, place, matrix_of(place)))


def vectors_in_frame(
    workspace: Workspace, query: RgbImage, query_key: str, frame: GoldenPlace, product: str
) -> Vectors | None:
    """By which goldens of a frame (the place of any of them) are found for a file of measured values; None where that does
    not register. query_key: its sha256. Raises DamagedError where the anchor is."""
    anchor = Golden(frame.anchor_id, product, frame.anchor_sha256)
    found = alignment(workspace, query, query_key, anchor)
    if not found.ok:
        return None
    reading, back = workspace.reading(query_key, product), np.asarray(np.linalg.inv(found.matrix), np.float64)
    return _vectors(workspace, product, _on_anchor(workspace, reading, frame, back))


def vectors_as_it_lies(workspace: Workspace, query_key: str, product: str) -> Vectors:
    """The same of a file that does not register."""
    reading = workspace.reading(query_key, product)
    assert reading.values is not None, "measured"
    return _vectors(workspace, product, reading.values)


def _on_anchor(workspace: Workspace, reading: Reading, frame: GoldenPlace, matrix: Matrix) -> F32:
    """(H, W) values on the px of the anchor. matrix: their px -> its px, refined on the values themselves."""
    assert reading.values is not None, "measured"
    anchor = workspace.golden_reading(Golden(frame.anchor_id, frame.product, frame.anchor_sha256))
    if reading.scan is not None or anchor.values is None:  # clouds are placed when they are read
        return reading.values
    of_heights = workspace.kind(frame.product) == "depth"
    if of_heights:
        matrix = turned(anchor.values, reading.values, matrix)
    matrix = refined(anchor.values, reading.values, matrix)
    there = on_query(reading.values, matrix, (anchor.values.shape[0], anchor.values.shape[1]))
    # all of it may be warmer, or higher and tilted
    removal: Removal = "plane" if of_heights else "offset"
    plane, _ = fit(anchor.values, there, np.isfinite(there) & np.isfinite(anchor.values), removal)
    there += height_of(plane, there.shape)
    # where nothing was measured, or the picture ends, it is no more like one golden sample than like another
    return np.where(np.isfinite(there), there, anchor.values).astype(np.float32)


def _vectors(workspace: Workspace, product: str, values: F32) -> Vectors:
    window, encoder = workspace.how(product).window, workspace.encoder
    assert window is not None, "set with the first golden sample"
    return cell_vectors(values, window[1] - window[0], encoder.global_dim, encoder.patch_dim)
