"""What golden samples of temperatures, heights and clouds are found by: the measured values themselves, in their frame.

Photos are found by the encoder, which sees what a picture is of, not how many mm or K a place of it has; nor does it know a
turned part. Measured values are compared where they lie on the anchor of a frame: whichever way a part was turned, and
exactly. The vectors have the sizes of the encoder's and lie in the same collection: a search is always of one product, and
so of one kind.
"""

from __future__ import annotations

import contextlib

import numpy as np

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.rows.frames import GoldenPlace
from refdiff.model.errors import DamagedError
from refdiff.model.height.cells import cell_vectors
from refdiff.model.height.plane import Removal, fit, height_of
from refdiff.model.images import F32
from refdiff.tools.framing.frames import goldens_of_frame, matrix_of, place_of
from refdiff.tools.framing.photos import Query, alignment
from refdiff.tools.inspection.on_query import on_query, refined, turned
from refdiff.tools.kinds.reading import Reading
from refdiff.tools.vision.registration import Matrix
from refdiff.tools.workspace import Workspace

VERSION = 1  # of what measured values are found by, part of their calibrations' keys: raise when it, or frames, change

Vectors = tuple[F32, F32]  # of the whole, and of its parts: as `GoldenBank.add` takes them


def golden_vectors(workspace: Workspace, golden: Golden, place: GoldenPlace | None = None) -> Vectors:
    """By which a golden is found. place: of measured values, that of the golden, which need not be kept yet. Raises
    DamagedError where its file is missing or damaged."""
    reading = workspace.golden_reading(golden)
    if reading.values is None:
        features = workspace.golden_features(golden)
        return features.global_vec, features.patches
    place = place or place_of(workspace, golden)
    matrix = matrix_of(place)
    for other in goldens_of_frame(workspace, place):
        with contextlib.suppress(DamagedError):
            there = _on_anchor(workspace, reading, other, place_of(workspace, other), matrix)
            return _vectors(workspace, golden.product, there)
    return _vectors(workspace, golden.product, _on_anchor(workspace, reading, golden, place, matrix))


def vectors_in_frame(workspace: Workspace, query: Query, frame: GoldenPlace, product: str) -> Vectors | None:
    """By which goldens of a frame (the place of any of them) are found for a file of measured values; None where that does
    not register to it, or no golden of it can be read."""
    reading = workspace.reading(query.key, product)
    for golden in goldens_of_frame(workspace, frame):
        with contextlib.suppress(DamagedError):
            found = alignment(workspace, query, golden)
            if not found.ok:
                return None
            place = place_of(workspace, golden)
            matrix = np.asarray(matrix_of(place) @ np.linalg.inv(found.matrix), np.float64)
            return _vectors(workspace, product, _on_anchor(workspace, reading, golden, place, matrix))
    return None


def vectors_as_it_lies(workspace: Workspace, query_key: str, product: str) -> Vectors:
    """The same of a file that does not register."""
    reading = workspace.reading(query_key, product)
    assert reading.values is not None, "measured"
    return _vectors(workspace, product, reading.values)


def _on_anchor(workspace: Workspace, reading: Reading, shown: Golden, place: GoldenPlace, matrix: Matrix) -> F32:
    """(H, W) values on the px of the anchor of a frame. matrix: their px -> its px, refined on the values themselves. shown:
    the anchor, or, where its file is lost, a golden that lies there (place). Raises DamagedError where that is lost too."""
    assert reading.values is not None, "measured"
    values = workspace.golden_reading(shown).values
    assert values is not None, "measured"
    if not place.is_anchor:
        values = on_query(values, matrix_of(place), place.anchor_size)
    there = reading.values
    if reading.scan is None:  # clouds are placed when they are read
        of_heights = workspace.kind(place.product) == "depth"
        if of_heights:
            matrix = turned(values, there, matrix)
        matrix = refined(values, there, matrix)
        there = on_query(there, matrix, (values.shape[0], values.shape[1]))
        # all of it may be warmer, or higher and tilted
        removal: Removal = "plane" if of_heights else "offset"
        plane, _ = fit(values, there, np.isfinite(there) & np.isfinite(values), removal)
        there = there + height_of(plane, there.shape)
    # where nothing was measured, or the picture ends, it is no more like one golden sample than like another
    return np.where(np.isfinite(there), there, values).astype(np.float32)


def _vectors(workspace: Workspace, product: str, values: F32) -> Vectors:
    window, encoder = workspace.how(product).window, workspace.encoder
    assert window is not None, "set with the first golden sample"
    return cell_vectors(values, window[1] - window[0], encoder.global_dim, encoder.patch_dim)
