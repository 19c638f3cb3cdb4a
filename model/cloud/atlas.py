"""A cloud drawn from six sides, in one picture of 2 x 3 square views, as a technical drawing does it.

The views look along the axes of the product's frame, from parallel to them: top (+z), front (-y), right (+x); below them
bottom (-z), back (+y), left (-x). Each shows a cube of `side_mm` around the frame's middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.model.cloud.points import Cloud
from refdiff.model.images import F32, RgbImage

VIEW_PX = 192
ROWS, COLUMNS = 2, 3
SIZE = (ROWS * VIEW_PX, COLUMNS * VIEW_PX)
NAMES = ("top", "front", "right", "bottom", "back", "left")
# of each view: towards the viewer, to the right, up
_AXES = np.array(
    [
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, -1], [1, 0, 0], [0, -1, 0]],
        [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    ],
    np.float64,
)
_SPLAT = 2.4  # of the spacing, which is wider here and there: half the side of what a point covers
_MOST_SPLAT_PX = 5


@dataclass(frozen=True)
class Atlas:
    """What is drawn where. index: `SIZE` int32, the point that each px shows, -1 for none."""

    index: NDArray[np.int32]
    side_mm: float

    def of(self, values: F32) -> F32:
        """(H, W) float32 of values (N,) of the points; NaN where there are none."""
        return np.where(self.index >= 0, values[self.index], np.nan).astype(np.float32)

    @property
    def mm_per_px(self) -> float:
        return self.side_mm / VIEW_PX


def view_of(x: float, y: float) -> str:
    """The name of the view in which a px of the atlas lies."""
    return NAMES[min(ROWS - 1, int(y) // VIEW_PX) * COLUMNS + min(COLUMNS - 1, int(x) // VIEW_PX)]


def best_view(normals: F32) -> NDArray[np.intp]:
    """(N,) the view that each direction (N, 3) points to."""
    return np.asarray((normals @ _AXES[:, 0].T).argmax(1))


def pixels(points: F32, views: NDArray[np.intp], side_mm: float) -> NDArray[np.intp]:
    """(N,) flat px of the atlas at which points lie, each in its own view; beyond its end, at its end."""
    right = (points * _AXES[views, 1]).sum(1)
    up = (points * _AXES[views, 2]).sum(1)
    x = np.clip(np.floor((right / side_mm + 0.5) * VIEW_PX), 0, VIEW_PX - 1).astype(np.intp)
    y = np.clip(np.floor((0.5 - up / side_mm) * VIEW_PX), 0, VIEW_PX - 1).astype(np.intp)
    return (views // COLUMNS * VIEW_PX + y) * SIZE[1] + views % COLUMNS * VIEW_PX + x


def draw(cloud: Cloud, side_mm: float) -> Atlas:
    """Every view of a cloud: the foremost point at each px."""
    index = np.full(SIZE, -1, np.int32)
    reach = min(_MOST_SPLAT_PX, max(0, round(_SPLAT * cloud.spacing_mm / side_mm * VIEW_PX)))
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    offsets.sort(key=lambda o: -(o[0] ** 2 + o[1] ** 2))  # a point's own px last: it counts most
    depth = cloud.points.astype(np.float64) @ _AXES[:, 0].T
    for view in range(len(NAMES)):
        _, right, up = _AXES[view]
        x = np.floor((cloud.points @ right / side_mm + 0.5) * VIEW_PX).astype(np.int64)
        y = np.floor((0.5 - cloud.points @ up / side_mm) * VIEW_PX).astype(np.int64)
        # what looks away is hidden by what looks here; of an open surface it is all there is
        order = np.argsort(depth[:, view], kind="stable")
        panel = np.full((VIEW_PX, VIEW_PX), -1, np.int32)
        front = np.full((VIEW_PX, VIEW_PX), -np.inf)
        for dy, dx in offsets:
            ys, xs = y[order] + dy, x[order] + dx
            inside = (ys >= 0) & (ys < VIEW_PX) & (xs >= 0) & (xs < VIEW_PX)
            ys, xs, points = ys[inside], xs[inside], order[inside]
            mine = np.full((VIEW_PX, VIEW_PX), -1, np.int64)
            mine[ys, xs] = points  # in the order of depth: the foremost stays
            there = mine >= 0
            nearer = np.zeros_like(there)
            nearer[there] = depth[mine[there], view] >= front[there] - cloud.spacing_mm
            panel[nearer] = mine[nearer]
            front[nearer] = np.maximum(front[nearer], depth[mine[nearer], view])
        r, c = divmod(view, COLUMNS)
        index[r * VIEW_PX : (r + 1) * VIEW_PX, c * VIEW_PX : (c + 1) * VIEW_PX] = panel
    return Atlas(index, side_mm)


def shaded(cloud: Cloud, atlas: Atlas) -> RgbImage:
    """(H, W, 3) the cloud each view lit from its upper left, in its colours if it has any; white where nothing is."""
    picture = np.full((*SIZE, 3), 255, np.uint8)
    for view in range(len(NAMES)):
        r, c = divmod(view, COLUMNS)
        at = np.s_[r * VIEW_PX : (r + 1) * VIEW_PX, c * VIEW_PX : (c + 1) * VIEW_PX]
        index = atlas.index[at]
        towards, right, up = _AXES[view]
        light = towards + 0.5 * up - 0.5 * right
        lit = np.clip(cloud.normals[index] @ (light / np.linalg.norm(light)), 0, 1)
        colour = np.full((*index.shape, 3), 225.0) if cloud.colours is None else cloud.colours[index].astype(np.float64)
        shown = colour * (0.25 + 0.75 * lit[..., None])
        picture[at] = np.where((index >= 0)[..., None], shown, 255).astype(np.uint8)
    return picture


def depths(cloud: Cloud, atlas: Atlas) -> F32:
    """(H, W) mm towards the viewer from the middle of the frame; NaN where nothing is."""
    made = np.full(SIZE, np.nan, np.float32)
    for view in range(len(NAMES)):
        r, c = divmod(view, COLUMNS)
        at = np.s_[r * VIEW_PX : (r + 1) * VIEW_PX, c * VIEW_PX : (c + 1) * VIEW_PX]
        index = atlas.index[at]
        made[at] = np.where(index >= 0, (cloud.points @ _AXES[view, 0].astype(np.float32))[index], np.nan)
    return made
