"""A point cloud, its normals and its spacing. All lengths in mm."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from propcache.api import cached_property
from scipy.spatial import cKDTree

from refdiff.model.cloud.features import fpfh
from refdiff.model.errors import UnavailableError
from refdiff.model.images import F32

F64 = NDArray[np.float64]

_NORMAL_NEIGHBOURS = 16
_DIRECTIONS = 48  # from which a cloud is looked at, to tell its outside
_COARSE_POINTS = 12_000  # on which that is told
_SCALES = (4.0, 8.0)  # radii of the descriptors, in their voxels
_DESCRIPTOR_PART = 1 / 60  # of the size: that voxel
_BEHIND = 3.0  # spacings by which a point may lie behind the foremost and still be seen


EXTRA_NEEDED = (
    "point clouds need the packages small-gicp, trimesh and pypcd4, which are not all installed: pip install "
    "'refdiff[cloud]'"
)


def small_gicp() -> ModuleType:
    """The library that estimates normals and registers. Raises UnavailableError where it is not installed."""
    try:
        import small_gicp as module
    except ImportError as e:
        raise UnavailableError(EXTRA_NEEDED) from e
    return module


@dataclass(frozen=True)
class Cloud:
    """points: (N, 3) float32 mm. normals: (N, 3) float32, of length 1, outward. spacing_mm: median distance of neighbours.

    colours: (N, 3) uint8 RGB, where the file has them. origin: (3,) float64 mm, where 0 of the points lies in the file's
    coordinates; None once it has been moved.
    """

    points: F32
    normals: F32
    spacing_mm: float
    colours: NDArray[np.uint8] | None = None
    origin: F64 | None = None

    @cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self.points)

    @property
    def size_mm(self) -> float:
        """The diagonal of its box."""
        return float(np.linalg.norm(self.points.max(0) - self.points.min(0)))

    @property
    def nbytes(self) -> int:
        return 3 * self.points.nbytes  # with its tree

    @cached_property
    def descriptors(self) -> tuple[F32, F32]:
        """(n, 3) points, one a voxel, and (n, 66) what the surface around each is like: FPFH at two scales. The same however
        the cloud is turned."""
        voxel = max(self.size_mm * _DESCRIPTOR_PART, self.spacing_mm)
        thin = self.thinned(voxel)
        made = [fpfh(thin.points, thin.normals, scale * voxel) for scale in _SCALES]
        return thin.points, np.concatenate(made, 1)

    def moved(self, matrix: F64) -> Cloud:
        """The same cloud moved by a rigid (4, 4)."""
        turn, shift = matrix[:3, :3], matrix[:3, 3]
        points = (self.points.astype(np.float64) @ turn.T + shift).astype(np.float32)
        normals = (self.normals.astype(np.float64) @ turn.T).astype(np.float32)
        return Cloud(points, normals, self.spacing_mm, self.colours)

    def thinned(self, voxel_mm: float) -> Cloud:
        """One point a voxel: the one that comes first. Colours are left out."""
        kept = first_in_voxel(self.points, voxel_mm)
        return Cloud(self.points[kept], self.normals[kept], max(voxel_mm, self.spacing_mm))


def first_in_voxel(points: NDArray[np.floating], voxel_mm: float) -> NDArray[np.intp]:
    """Indices of the first point in each voxel, ascending."""
    cells = np.floor((points - points.min(0)) / voxel_mm).astype(np.int64)
    spans = cells.max(0) + 1
    if float(np.prod(spans, dtype=np.float64)) >= 2**62:  # a stray point kilometres away
        return np.sort(np.unique(cells, axis=0, return_index=True)[1])
    flat = (cells[:, 0] * spans[1] + cells[:, 1]) * spans[2] + cells[:, 2]
    return np.sort(np.unique(flat, return_index=True)[1])


def make_cloud(points: F64, colours: NDArray[np.uint8] | None = None, origin: F64 | None = None) -> Cloud:
    """A cloud of points (N, 3) mm: its spacing, and normals that point outward. origin: see `Cloud`."""
    tree = cKDTree(points)
    sample = points[:: max(1, len(points) // 5000)]
    spacing = float(np.median(tree.query(sample, k=2)[0][:, 1])) or 1e-6
    return Cloud(points.astype(np.float32), _outward(points, _normals(points), spacing), spacing, colours, origin)


def _normals(points: F64) -> F64:
    gicp = small_gicp()
    cloud = gicp.PointCloud(points)
    gicp.estimate_normals(cloud, num_neighbors=_NORMAL_NEIGHBOURS, num_threads=1)
    normals = np.asarray(cloud.normals())[:, :3]
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.asarray(np.where(length > 0, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0]), np.float64)


def _outward(points: F64, normals: F64, spacing: float) -> F32:
    """Normals (N, 3) turned to where their point is seen from; where nothing says that, away from the middle."""
    kept = first_in_voxel(points, max(spacing, _voxel_for(points, _COARSE_POINTS)))
    coarse, theirs = points[kept], normals[kept]
    if len(kept) < 2:
        return np.asarray(normals, np.float32)
    each = float(np.median(cKDTree(coarse).query(coarse, k=2)[0][:, 1]))
    votes = np.zeros(len(coarse))
    for direction in _sphere(_DIRECTIONS):
        right = np.cross(direction, [0.0, 0.0, 1.0] if abs(direction[2]) < 0.9 else [1.0, 0.0, 0.0])
        right /= np.linalg.norm(right)
        up = np.cross(direction, right)
        at = np.column_stack([coarse @ right, coarse @ up])
        cells = np.floor((at - at.min(0)) / (2 * each)).astype(np.int64)
        flat = cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]
        depth = coarse @ direction
        foremost = np.full(int(flat.max()) + 1, -np.inf)
        np.maximum.at(foremost, flat, depth)
        votes += (depth >= foremost[flat] - _BEHIND * each) * (theirs @ direction)
    from_middle = ((coarse - coarse.mean(0)) * theirs).sum(1)
    unsure = np.abs(votes) < 0.02 * _DIRECTIONS
    sign = np.where(np.where(unsure, from_middle, votes) >= 0, 1.0, -1.0)
    # of the coarse points, to those around each: as they point themselves, not as they were numbered
    near = cKDTree(coarse).query(points)[1]
    outward = theirs[near] * sign[near, None]
    turned = np.where((normals * outward).sum(1) >= 0, 1.0, -1.0)
    return np.asarray(normals * turned[:, None], np.float32)


def _voxel_for(points: F64, most: int) -> float:
    """A voxel size at which about `most` points of a surface are left."""
    size = np.sort(points.max(0) - points.min(0))
    return float(np.sqrt(2 * (size[2] * size[1] + size[0] * (size[1] + size[2])) / most))


def _sphere(n: int) -> F64:
    """(n, 3) directions, evenly on a sphere (Fibonacci)."""
    i = np.arange(n) + 0.5
    polar, azimuth = np.arccos(1 - 2 * i / n), np.pi * (1 + 5**0.5) * i
    return np.column_stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)])
