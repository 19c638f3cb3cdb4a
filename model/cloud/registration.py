"""Where a cloud lies on another one, whichever way it is turned: FPFH and RANSAC, then ICP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.cloud.features import fpfh
from refdiff.model.cloud.points import F64, Cloud, small_gicp

_COARSE_PART = 1 / 36  # of the size: side of the voxels in which it is searched
_FINE_PART = 1 / 150
_FEATURE_VOXELS = 5.0  # radius of the features
_NEAREST = 3  # matches of each point
_TRIES = 30_000
_JUDGED_BY = 1000  # matches that say how good a try is
_BATCH = 400
_EDGE_RATIO = 0.9  # of the sides of two triangles that may be one
_REFINED = 16  # best of what was tried
_ALIKE = 1.1  # of the least mismatch: poses so good are looked at on finer clouds
_SETTLED = 2  # of those, the best that are settled
_APART_DEG = 12.0  # poses nearer than that are one
_ICP_ROUNDS = 40
_SLIDE_VOXELS = 4.0  # how far a pose is slid either way
_SLIDE_STEPS = 16  # either way
_SLIDE_POINTS = 6000
_MIN_FITTED = 0.6  # of a cloud that lies on the other one, to be accepted
_SEED = 33


@dataclass(frozen=True)
class Placed:
    """matrix: (4, 4) rigid, source mm -> target mm. fitted: part 0..1 of the source that lies on the target. off_mm: median
    distance to it there. ok: whether that is good enough to compare the two."""

    matrix: F64
    fitted: float
    off_mm: float
    ok: bool


def canonical(cloud: Cloud) -> F64:
    """(4, 4): into the cloud's own axes, its middle at 0: the longest along x, the shortest along z."""
    points = cloud.thinned(cloud.size_mm * _COARSE_PART).points.astype(np.float64)
    middle = points.mean(0)
    spread = points - middle
    axes = np.linalg.eigh(spread.T @ spread)[1][:, ::-1]
    along = spread @ axes
    axes = axes * np.where((along**3).sum(0) >= 0, 1.0, -1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes.T, -axes.T @ middle
    return matrix


def register(source: Cloud, target: Cloud) -> Placed:
    """How the source lies on the target. Deterministic."""
    voxel = target.size_mm * _COARSE_PART
    ours, theirs = source.thinned(voxel), target.thinned(voxel)
    candidates = _candidates(ours, theirs, voxel)
    scored, coarse = [], Icp(ours, theirs)
    for matrix in candidates:
        refined = coarse.refined(matrix, 2 * voxel)
        scored.append((_mismatch(ours, theirs, refined, voxel), refined))
    # of a round part many poses are about as good on a coarse cloud; its few details say which is right on a finer one
    least = min(s for s, _ in scored)
    likely = [matrix for s, matrix in scored if s <= _ALIKE * least]
    misfit = partial(_misfit, _fine(source), source, _fine(target), target, voxel)
    likely = sorted(likely, key=misfit)[:_SETTLED] if len(likely) > 1 else likely
    settled = [unslid(source, target, _settled(source, target, m, voxel), voxel) for m in likely]
    return judged(ours, target, min(settled, key=misfit), voxel)


def _fine(cloud: Cloud) -> Cloud:
    return cloud.thinned(_voxel_of(cloud, _SLIDE_POINTS))


def _misfit(fine: Cloud, source: Cloud, fine_target: Cloud, target: Cloud, reach_mm: float, matrix: F64) -> float:
    """Mean square distance to the other's planes, both ways, no more than `reach_mm` each: a square, so that a few details
    that lie elsewhere count beside the noise of all the rest."""
    back = np.asarray(np.linalg.inv(matrix), np.float64)
    return sum(
        float((_above(one.moved(pose), other, reach_mm) ** 2).mean())
        for one, other, pose in ((fine, target, matrix), (fine_target, source, back))
    )


def _above(cloud: Cloud, target: Cloud, reach_mm: float) -> NDArray[np.float64]:
    """(N,) mm of a cloud's points to the planes of the target's nearest; `reach_mm` where none is so near."""
    distance, near = target.tree.query(cloud.points, distance_upper_bound=reach_mm)
    near = np.minimum(near, len(target.points) - 1)
    above = np.abs(((cloud.points - target.points[near]) * target.normals[near]).sum(1))
    return np.where(np.isfinite(distance), above, reach_mm).astype(np.float64)


def refined(source: Cloud, target: Cloud, reach_mm: float) -> F64:
    """(4, 4) that brings a source, which lies nearly right, onto the target; the identity where that fails."""
    return _settled(source, target, np.eye(4), reach_mm)


def _settled(source: Cloud, target: Cloud, matrix: F64, reach_mm: float) -> F64:
    """`matrix` refined on finer clouds, within less and less reach: what deviates must not pull."""
    fine = max(target.size_mm * _FINE_PART, source.spacing_mm, target.spacing_mm)
    icp = Icp(source.thinned(fine), target.thinned(fine))
    for reach in (max(reach_mm, 3 * fine), 1.5 * fine):
        matrix = icp.refined(matrix, reach)
    return matrix


def unslid(source: Cloud, target: Cloud, matrix: F64, voxel: float) -> F64:
    """A settled pose, or a better one along the motion by which surfaces slide most freely over each other.

    A round part can be turned by some degrees before its few details say so, and they are small and then too far apart for
    ICP. That motion is the one that point-to-plane ICP knows least of: the weakest eigenvector of its normal equations.
    """
    ours = _fine(source)
    moved = ours.moved(matrix)
    points, middle = moved.points.astype(np.float64), moved.points.mean(0, dtype=np.float64)
    arms = (points - middle) / (target.size_mm / 2)
    rows = np.concatenate([np.cross(arms, moved.normals), moved.normals], 1)
    slide = np.linalg.eigh(rows.T @ rows)[1][:, 0]
    slide /= np.quantile(np.linalg.norm(np.cross(slide[:3], arms) + slide[3:], axis=1), 0.95)  # mm
    turn, shift = slide[:3], slide[3:]

    def slid(mm: float) -> F64:
        made = np.eye(4)
        made[:3, :3] = cv2.Rodrigues(turn * mm / (target.size_mm / 2))[0]
        made[:3, 3] = middle + shift * mm - made[:3, :3] @ middle
        return made @ matrix

    def off(pose: F64) -> float:
        """Mean distance of ours to the target's planes, no more than a voxel each."""
        return float(_above(ours.moved(pose), target, voxel).mean())

    by = np.linspace(-1, 1, 2 * _SLIDE_STEPS + 1) * _SLIDE_VOXELS * voxel
    best = min((slid(mm) for mm in by), key=off)
    best = _settled(source, target, best, voxel)
    return best if off(best) < off(matrix) else matrix


def _voxel_of(cloud: Cloud, points: int) -> float:
    """A voxel that leaves about so many points."""
    return cloud.spacing_mm * max(1.0, float(np.sqrt(len(cloud.points) / points)))


def judged(ours: Cloud, target: Cloud, matrix: F64, voxel: float) -> Placed:
    """What a pose is worth, by a thinned source: a point lies on the target's surface if it is no farther from it than
    half a `voxel`."""
    moved = ours.moved(matrix)
    distance, near = target.tree.query(moved.points)
    above = np.abs(((moved.points - target.points[near]) * target.normals[near]).sum(1))
    on = (distance <= 1.5 * max(voxel / 2, target.spacing_mm)) & (above <= voxel / 2)
    off = float(np.median(above[on])) if on.any() else float("inf")
    fitted = float(on.mean())
    return Placed(matrix, fitted, off, fitted >= _MIN_FITTED)


class Icp:
    """Point-to-plane ICP of one cloud on another."""

    def __init__(self, source: Cloud, target: Cloud) -> None:
        self._gicp = small_gicp()
        self._ours, self._theirs = (self._gicp.PointCloud(c.points.astype(np.float64)) for c in (source, target))
        self._tree = self._gicp.KdTree(self._theirs)
        self._gicp.estimate_normals_covariances(self._theirs, self._tree, num_neighbors=12, num_threads=1)
        self._gicp.estimate_normals_covariances(self._ours, num_neighbors=12, num_threads=1)

    def refined(self, matrix: F64, reach_mm: float) -> F64:
        """(4, 4) refined from `matrix`; `matrix` where it does not converge to a pose."""
        found = self._gicp.align(
            self._theirs, self._ours, self._tree, matrix, registration_type="PLANE_ICP",
            max_correspondence_distance=reach_mm, num_threads=1, max_iterations=_ICP_ROUNDS,
            rotation_epsilon=1e-5, translation_epsilon=1e-4,
        )  # fmt: skip
        made = np.asarray(found.T_target_source, np.float64)
        return made if np.isfinite(made).all() and found.num_inliers >= 20 else matrix


def _candidates(ours: Cloud, theirs: Cloud, voxel: float) -> list[F64]:
    """Poses (4, 4) worth refining: by RANSAC on matched features, and by the axes of both."""
    radius = _FEATURE_VOXELS * voxel
    from sklearn.neighbors import NearestNeighbors  # a device, which compares photos, has no scikit-learn

    matched = NearestNeighbors(n_neighbors=min(_NEAREST, len(theirs.points))).fit(
        fpfh(theirs.points, theirs.normals, radius)
    )
    near = matched.kneighbors(fpfh(ours.points, ours.normals, radius), return_distance=False)
    a = np.repeat(ours.points.astype(np.float64), near.shape[1], axis=0)
    b = theirs.points.astype(np.float64)[near.ravel()]
    poses, counts = _ransac(a, b, 1.5 * voxel)
    order = np.argsort(-counts, kind="stable")
    chosen: list[F64] = []
    for i in order[:2000]:
        if all(_turned_deg(poses[i], other) > _APART_DEG for other in chosen):
            chosen.append(poses[i])
        if len(chosen) == _REFINED:
            break
    # axes of both, all four ways round: for clouds whose features are all alike
    to, back = canonical(ours), np.linalg.inv(canonical(theirs))
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        chosen.append(back @ np.diag([x, y, x * y, 1.0]) @ to)
    return chosen


def _ransac(a: F64, b: F64, reach_mm: float) -> tuple[F64, NDArray[np.intp]]:
    """Poses (P, 4, 4) of triples of matches (M, 3), and how many matches each brings together."""
    rng = np.random.default_rng(_SEED)
    triples = rng.integers(0, len(a), (_TRIES, 3))
    ours, theirs = a[triples], b[triples]  # (T, 3, 3)
    sides = [np.linalg.norm(t - np.roll(t, 1, axis=1), axis=2) for t in (ours, theirs)]
    alike = np.minimum(*sides) >= _EDGE_RATIO * np.maximum(*sides)
    keep = alike.all(1) & (np.minimum(*sides).min(1) > 2 * reach_mm)
    ours, theirs = ours[keep], theirs[keep]
    if not len(ours):
        return np.zeros((0, 4, 4)), np.zeros(0, np.intp)
    poses = _kabsch(ours, theirs)
    step = -(-len(a) // _JUDGED_BY)
    a, b, counts = a[::step], b[::step], []
    for start in range(0, len(poses), _BATCH):
        some = poses[start : start + _BATCH]
        there = np.einsum("pij,mj->pmi", some[:, :3, :3], a) + some[:, None, :3, 3]
        counts.append((np.linalg.norm(there - b, axis=2) <= reach_mm).sum(1))
    return poses, np.concatenate(counts)


def _kabsch(a: F64, b: F64) -> F64:
    """(P, 4, 4) rigid, that bring points a (P, m, 3) nearest to b."""
    middle_a, middle_b = a.mean(1), b.mean(1)
    h = np.einsum("pmi,pmj->pij", a - middle_a[:, None], b - middle_b[:, None])
    u, _, vt = np.linalg.svd(h)
    sign = np.sign(np.linalg.det(np.einsum("pij,pjk->pik", u, vt)))
    vt[:, 2] *= sign[:, None]
    turn = np.einsum("pji,pkj->pik", vt, u)
    made = np.tile(np.eye(4), (len(a), 1, 1))
    made[:, :3, :3] = turn
    made[:, :3, 3] = middle_b - np.einsum("pij,pj->pi", turn, middle_a)
    return made


def _turned_deg(one: F64, other: F64) -> float:
    cosine = (np.trace(one[:3, :3].T @ other[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _mismatch(ours: Cloud, theirs: Cloud, matrix: F64, voxel: float) -> float:
    """Mean distance, no more than two voxels each: of ours to theirs, and half of that of theirs to ours, which may lack a
    part."""
    moved = ours.moved(matrix)
    there, back = theirs.tree.query(moved.points)[0], moved.tree.query(theirs.points)[0]
    return float(np.minimum(there, 2 * voxel).mean() + 0.5 * np.minimum(back, 2 * voxel).mean())
