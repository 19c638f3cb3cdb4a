"""The difference of a cloud and its golden samples in millimetres: where its surface lies outside of theirs, or inside.

All clouds are in one frame. Distances are signed: + outside of the golden sample's surface (extra material), - inside
(missing material). Where the golden sample has a surface and the cloud
has no points, nothing was measured: that is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from refdiff.model.cloud import atlas as drawing
from refdiff.model.cloud.atlas import SIZE, Atlas
from refdiff.model.cloud.points import Cloud
from refdiff.model.images import F32, Mask

_NEAREST = 8  # points of the golden sample whose planes a distance is the mean of
_ALIKE = 0.02  # their weight, below which none of them faces as a point does
# spacings by which a point may lie beside its nearest and still be above or below it: gaps of scattered points are so wide
_BESIDE = 5.0
_SMOOTHED = (8, 40)  # neighbours that a distance is smoothed over, at least and at most
_QUIET_PART = 2e-4  # of the size: what noise is smoothed down to, where that takes no more
_LINKED_PART = 0.1  # of the largest deviation: less is no part of a place
_LINKED = 2.5  # spacings: deviating points so near to each other are one place
_STANDS_OUT = 4.0  # standard deviations of the noise, from which a point deviates
_UNMEASURED = 3.0  # spacings from a golden point's place to the nearest measured one, along the surface
_DISPLACED_PART = 0.04  # of the size: farther away than that is no surface that has moved
# as deep as a hole is at its deepest (half the thickness, through a sheet), so many times as wide may it be
_TORN = 3.0
_ABOVE = 0.6  # mean cosine to the golden surface, from which a place lies above it; the walls of a hole do not
_TORN_PART = 0.1  # of the area of a place: so much of the golden surface may lack there for its volume to be known
_NORMAL_MAD = 1.4826
_COVERAGE = 2.0  # of an expanded uncertainty: about 95 %
_UNIFORM = math.sqrt(3.0)


@dataclass(frozen=True)
class CloudDifference:
    """A cloud (N points) against its references (nearest first), on the px of its atlas (`SIZE`)."""

    deviation: (
        F32  # (H, W) mm >= 0: how far the surface lies outside of what the references show; drawn where it belongs
    )
    signed: F32  # (H, W) mm, against the nearest reference; NaN where the cloud shows no point
    covered: Mask  # (H, W), the cloud shows a point
    distances: F32  # (N,) mm signed, smoothed, against the nearest reference
    raw: F32  # (N,) mm, the same without smoothing
    outside: F32  # (N,) mm >= 0, the first outside of all references
    at: NDArray[np.intp]  # (N,) flat px at which a point's deviation is drawn
    spread: F32  # (N,) mm, standard deviation of the distances to the references; 0 for one
    noise_mm: float  # standard deviation of `distances` where nothing differs
    missing: float  # part 0..1 of the nearest reference's surface that was not measured
    largest_gap: float  # the same, of the largest connected one
    facing: F32  # (N,) -1..1, cosine between the normals of a point and of the golden surface nearest to it
    torn_mm2: F32  # (N,) of the place that a point belongs to: area of the golden surface that lacks beside it
    descriptor: F32 | None  # (N,) see `descriptors_apart`; None where nobody asked


def compare(
    query: Cloud, references: Sequence[Cloud], drawn: Atlas, described: Sequence[Cloud] = ()
) -> CloudDifference:
    """Where the surface of `query` lies outside (or inside) of all its references' surfaces.

    drawn: the query's atlas. described: clouds whose descriptors the query's are compared with: the references before they
    were moved onto the query, which keep theirs. A place that deviates is drawn in one view: the one that its golden surface
    faces most.
    """
    tree = query.tree
    found: list[NDArray[np.float64]] = []
    facing = np.zeros_like(query.normals)
    for reference in references:
        distance, nearest = signed_distance(query.points, query.normals, reference)
        if not found:
            facing = reference.normals[nearest]
        found.append(distance)
    raw = np.stack(found)
    sigma = _spread_of(raw[0])
    quiet = (sigma / max(_QUIET_PART * query.size_mm, 1e-9)) ** 2
    k = int(np.clip(math.ceil(quiet), *_SMOOTHED))
    near = tree.query(query.points, k=min(k, len(query.points)))[1]
    smooth = raw[:, near].mean(2)  # (references, N)
    outside = np.where((smooth > 0).all(0), smooth.min(0), np.where((smooth < 0).all(0), -smooth.max(0), 0.0))
    noise = _spread_of(smooth[0])
    views = _one_view_a_place(query, outside, facing, _STANDS_OUT * noise)
    at = drawing.pixels(query.points, views, drawn.side_mm)
    deviation = _plane(at, outside, drawn, query)
    missing, gap, torn = _not_measured(query, references[0], outside, _deviating(query, outside, _STANDS_OUT * noise))
    spread = smooth.std(0, ddof=1) if len(references) > 1 else np.zeros(len(smooth[0]))
    return CloudDifference(
        deviation, drawn.of(smooth[0].astype(np.float32)), drawn.index >= 0, smooth[0].astype(np.float32),
        raw[0].astype(np.float32),
        outside.astype(np.float32), at, spread.astype(np.float32), noise, missing, gap,
        (query.normals * facing).sum(1), torn, descriptors_apart(query, described) if described else None,
    )  # fmt: skip


def signed_distance(points: F32, normals: F32, surface: Cloud) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Signed mm of points (N, 3) with their normals to a surface, and its nearest point.

    The mean over the planes of the nearest points, of those that face as the point does: near an edge the others are of
    another face. Where a point lies beside them all (beyond an edge), its plain distance.
    """
    distance, near = surface.tree.query(points, k=_NEAREST)
    apart = points[:, None].astype(np.float64) - surface.points[near]
    theirs = surface.normals[near]
    above = (apart * theirs).sum(2)
    alike = np.clip((theirs * normals[:, None]).sum(2), 0, 1) ** 4 / (distance**2 + surface.spacing_mm**2)
    # a surface that faces elsewhere, such as the wall of a hole: its nearest point alone
    none = alike.sum(1) * surface.spacing_mm**2 < _ALIKE
    alike[none] = 0
    alike[none, 0] = 1
    mean = (alike * above).sum(1) / alike.sum(1)
    beside = np.sqrt(np.maximum(distance[:, 0] ** 2 - above[:, 0] ** 2, 0.0)) > _BESIDE * surface.spacing_mm
    plain = np.where(above[:, 0] >= 0, 1.0, -1.0) * distance[:, 0]
    return np.where(beside, plain, np.clip(mean, -distance[:, 0], distance[:, 0])), near[:, 0]


def _spread_of(values: NDArray[np.floating]) -> float:
    return _NORMAL_MAD * float(np.median(np.abs(values - np.median(values))))


def _places(points: F32, spacing_mm: float) -> NDArray[np.intp]:
    """(N,) the number of the place that each point belongs to: those are one that are near to each other."""
    pairs = cKDTree(points).query_pairs(_LINKED * spacing_mm, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    return np.asarray(connected_components(links, directed=False)[1], np.intp)


def _deviating(query: Cloud, outside: NDArray[np.float64], least: float) -> NDArray[np.intp]:
    """(N,) the number of the place that each point belongs to, of those that deviate; -1 of the others."""
    made, away = np.full(len(outside), -1), np.flatnonzero(outside > least)
    if len(away):
        made[away] = _places(query.points[away], query.spacing_mm)
    return made


def _one_view_a_place(query: Cloud, outside: NDArray[np.float64], facing: F32, least: float) -> NDArray[np.intp]:
    """(N,) the view in which each point's deviation is drawn: that which its golden surface faces, of connected points that
    deviate the one that most of them face."""
    views = drawing.best_view(facing)
    away = np.flatnonzero(outside > max(least, _LINKED_PART * float(outside.max())))
    if len(away) < 2:
        return views
    place = _places(query.points[away], query.spacing_mm)
    votes = np.zeros((place.max() + 1, len(drawing.NAMES)))
    np.add.at(votes, (place, views[away]), outside[away])
    views[away] = votes.argmax(1)[place]
    return views


def _plane(at: NDArray[np.intp], outside: NDArray[np.float64], drawn: Atlas, query: Cloud) -> F32:
    """(H, W) the largest deviation at each px, spread over what a point covers."""
    plane = np.zeros(SIZE[0] * SIZE[1], np.float32)
    np.maximum.at(plane, at, outside.astype(np.float32))
    plane = plane.reshape(SIZE)
    reach = max(1, round(query.spacing_mm / drawn.mm_per_px))
    made = np.zeros_like(plane)
    for row in range(drawing.ROWS):  # never from one view into the next
        for column in range(drawing.COLUMNS):
            view = np.s_[
                row * drawing.VIEW_PX : (row + 1) * drawing.VIEW_PX,
                column * drawing.VIEW_PX : (column + 1) * drawing.VIEW_PX,
            ]
            made[view] = _closed(plane[view], reach)
    return made


def _closed(panel: F32, reach: int) -> F32:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(cv2.dilate(panel, kernel), np.float32)


def _not_measured(
    query: Cloud, reference: Cloud, outside: NDArray[np.float64], place: NDArray[np.intp]
) -> tuple[float, float, F32]:
    """The part of a reference's surface that the query has no points of, that of its largest connected place, and
    `CloudDifference.torn_mm2`. place: see `_deviating`."""
    depth = np.zeros(int(place.max()) + 2)  # the last: of points that do not deviate
    np.maximum.at(depth, place, np.where(place < 0, 0.0, outside))
    thin = reference.thinned(max(reference.spacing_mm, reference.size_mm / 120))
    distance, near = query.tree.query(thin.points)
    apart = query.points[near].astype(np.float64) - thin.points
    along = np.abs((apart * thin.normals).sum(1))
    beside = np.sqrt(np.maximum(distance**2 - along**2, 0.0))
    far = (beside > _UNMEASURED * max(query.spacing_mm, thin.spacing_mm)) | (
        along > _DISPLACED_PART * reference.size_mm
    )
    # beside a place that deviates, no farther than that explains: what lacks is part of what is found, such as a hole with
    # its walls. The rim of a larger one may deviate too, by little, and explains nothing.
    torn = far & (distance <= _TORN * depth[place[near]])
    lost = np.bincount(place[near[torn]], minlength=len(depth)) * _area_each(thin)
    lost = lost[place].astype(np.float32)
    gone = far & ~torn
    if not gone.any():
        return 0.0, 0.0, lost
    return float(gone.mean()), float(np.bincount(_places(thin.points[gone], thin.spacing_mm)).max() / len(gone)), lost


def _area_each(cloud: Cloud, points: F32 | None = None) -> float:
    """mm² of surface that a point stands for, around `points` of it; default: all."""
    around = cloud.tree.query(cloud.points if points is None else points, k=7)[0][:, -1]
    return math.pi * float(np.median(around)) ** 2 / 5


# ---- descriptors ----


def descriptors_apart(query: Cloud, references: Sequence[Cloud]) -> F32:
    """(N,) how unlike all places of the references the surface around each point is: the distance of its descriptor to the
    nearest of theirs, averaged over neighbours; about 0 to 300.

    As in Simple3D, which does no more than that.
    """
    points, ours = query.descriptors
    theirs = np.concatenate([r.descriptors[1] for r in references])
    from sklearn.neighbors import NearestNeighbors  # a device, which compares photos, has no scikit-learn

    apart = NearestNeighbors(n_neighbors=1).fit(theirs).kneighbors(ours)[0][:, 0]
    tree = cKDTree(points)
    around = tree.query(points, k=min(6, len(points)))[1]
    return np.asarray(apart[around].mean(1)[tree.query(query.points)[1]], np.float32)


# ---- places ----


@dataclass(frozen=True)
class CloudPlace:
    """A place whose surface lies outside or inside of the golden sample's. Uncertainties are expanded (about 95 %).

    volume_mm3: between the surfaces; None where they do not lie above each other: of a hole, or a piece that is broken off,
    the walls and the fracture say nothing of it. at: (x, y, z) mm of its extreme, in the product's frame.
    """

    extra: bool
    deviation_mm: float
    deviation_uncertainty_mm: float
    highest_mm: float
    lowest_mm: float
    mean_mm: float
    volume_mm3: float | None
    area_mm2: float
    at: tuple[float, float, float]
    descriptor: float | None  # the largest there; None where nobody asked


def measure_place(
    query: Cloud, found: CloudDifference, mask: Mask, accuracy_mm: float, off_mm: float
) -> CloudPlace | None:
    """What is measured of the points whose deviation is drawn under a mask (`SIZE`); None where there is none.

    off_mm: how far the registration may be off. The uncertainty has the scanner's, how much good parts differ there, the
    noise, the registration, and what smoothing takes from a small place.
    """
    inside = mask.ravel()[found.at] & (found.outside > 0)
    if not inside.any():
        return None
    distances, points = found.distances[inside], query.points[inside]
    peak = int(np.argmax(found.outside[inside]))
    extreme = float(distances[peak])
    # what smoothing took: how far the points around it go beyond it, as they were measured
    around = cKDTree(points).query(points[peak], k=min(_SMOOTHED[0], len(points)))[1]
    lost = max(0.0, float(np.quantile(np.abs(found.raw[inside][np.atleast_1d(around)]), 0.9)) - abs(extreme))
    others = math.sqrt(2.0) * float(np.median(found.spread[inside]))
    sure = math.sqrt(sum(p * p for p in (accuracy_mm / _UNIFORM, max(found.noise_mm, others), off_mm, lost)))
    each = _area_each(query, points)
    same, facing = np.sign(distances) == np.sign(extreme), found.facing[inside]
    whole = float(found.torn_mm2[inside].max()) <= _TORN_PART * each * len(points)
    above = float(np.average(facing, weights=np.abs(distances) + 1e-9)) >= _ABOVE
    volume = each * abs(float((distances * np.clip(facing, 0, 1))[same].sum())) if whole and above else None
    return CloudPlace(
        extreme >= 0, extreme, _COVERAGE * sure, float(distances.max()), float(distances.min()), float(distances.mean()),
        volume, each * len(points), (float(points[peak][0]), float(points[peak][1]), float(points[peak][2])),
        None if found.descriptor is None else float(found.descriptor[inside].max()),
    )  # fmt: skip
