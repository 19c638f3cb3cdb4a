"""What a finding looks like to the networks: a vector, whose distance to that of another finding says how alike they are.

The surroundings of the finding in photo and golden sample are drawn as one pair of small squares and compared as every pair
is. Three things are kept of it, each of about the same weight: what the encoder sees there, what types of defect the
difference network takes it for, and its size and shape. The choice is measured (tests/bench/defect_names.py).
"""

from __future__ import annotations

import hashlib
import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.records.defect_names import Sight
from refdiff.model.arrays import like
from refdiff.model.difference.comparing import MAP_STRIDE
from refdiff.model.difference.feature_maps import GRID_STRIDE
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.images import Box, RgbImage
from refdiff.tools.vision.measurement import Measurement
from refdiff.tools.vision.registration import Alignment, Matrix, on_grid
from refdiff.tools.workspace import Workspace

VERSION = 2  # raise when the same finding gets another vector
_SIDE_PX = 160  # of the squares that are compared
_MARGIN = 0.5  # of the longer side of the box, on each side of it
_SMALLEST_PX = 64  # side of the square in the photo: a speck is seen with what is around it
_SEEN = (8, 16, 32)  # strides of the encoder whose features are kept
_SEEN_WEIGHT, _SHAPE_WEIGHT = 0.6, 0.2
_LEAST = 0.02  # of the weight of a place in the box where the network sees nothing


def weights_digest(workspace: Workspace) -> str:
    """Names what vectors depend on: only those with the same digest can be compared. Hex."""
    key = f"{workspace.encoder.digest}:{workspace.difference.sha256}:{VERSION}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def sight(photo: str, golden: Golden, alignment: Alignment, box: Box, measured: Measurement) -> Sight:
    """What it takes to look at a region of an inspection. photo: sha256. box: of its extent, as reports have it."""
    return Sight(
        photo, golden.sha256, alignment.ok, tuple(alignment.matrix.flatten().tolist()), box,
        measured.length_px, measured.width_px, measured.area_px,
    )  # fmt: skip


def look(workspace: Workspace, seen: Sight, product: str) -> NDArray[np.float32]:
    """The vector of a finding, (D,) float32. Raises UnknownRecordError, DamagedError where a photo is not there."""
    photo = workspace.image(seen.photo, product, "photo of a named defect")
    golden = workspace.image(seen.golden, product, "golden sample of a named defect")
    return vector(workspace, photo, golden, seen)


def vector(workspace: Workspace, photo: RgbImage, golden: RgbImage, seen: Sight) -> NDArray[np.float32]:
    """The same of photos (H, W, 3) that are at hand."""
    window = _window(seen.box)
    size = (_SIDE_PX, _SIDE_PX)
    here, _ = on_grid(photo, window, size)
    there, covered = on_grid(golden, window @ np.array(seen.matrix).reshape(3, 3), size)
    mine, other = workspace.encoder.embed_batch([here, there], size)
    cells = cv2.resize(covered.astype(np.float32), (_SIDE_PX // GRID_STRIDE,) * 2, interpolation=cv2.INTER_AREA)
    view = ReferenceView(other.maps, torch.from_numpy(cells) > 0.5, registered=False)
    if seen.registered:
        view = ReferenceView(other.maps, view.valid, True, _planes(there), torch.from_numpy(covered), other.maps)
    found = workspace.difference.compare(_planes(here), mine.maps, [view])
    weight = torch.from_numpy(_inside(seen.box, window))
    logits, types = like(found.logits, weight), like(found.types, weight)  # plain arrays where no network compares
    weight = weight * (torch.sigmoid(logits) + _LEAST)
    parts = [_SEEN_WEIGHT * _unit(_pooled(mine.maps[s], weight)) for s in _SEEN]
    parts += [np.sqrt(_pooled(types, weight)), _SHAPE_WEIGHT * _shape(seen, photo.shape)]
    return np.concatenate(parts).astype(np.float32)


def _window(box: Box) -> Matrix:
    """(3, 3): photo px -> px of the square round a box."""
    x0, y0, x1, y1 = box
    side = max((1 + 2 * _MARGIN) * max(x1 - x0, y1 - y0), _SMALLEST_PX)
    f = _SIDE_PX / side
    return np.array([[f, 0, (side / 2 - (x0 + x1) / 2) * f], [0, f, (side / 2 - (y0 + y1) / 2) * f], [0, 0, 1.0]])


def _inside(box: Box, window: Matrix) -> NDArray[np.float32]:
    """(h, w) of the map: what part 0..1 of each cell lies in the box."""
    borders = np.arange(_SIDE_PX // MAP_STRIDE + 1) * MAP_STRIDE  # of the cells, px of the square

    def along(lo: int, hi: int, offset: float) -> NDArray[np.float64]:
        f = window[0, 0]
        edges: NDArray[np.float64] = np.clip(borders.astype(np.float64), lo * f + offset, hi * f + offset)
        return (edges[1:] - edges[:-1]) / MAP_STRIDE

    rows, columns = along(box[1], box[3], window[1, 2]), along(box[0], box[2], window[0, 2])
    return np.asarray(rows[:, None] * columns, np.float32)


def _pooled(maps: Tensor, weight: Tensor) -> NDArray[np.float32]:
    """(C,): the mean of maps (C, h, w), weighted by (h4, w4)."""
    fitting = torch.nn.functional.adaptive_avg_pool2d(weight[None], (maps.shape[-2], maps.shape[-1]))[0]
    return np.asarray(((maps * fitting).sum((1, 2)) / fitting.sum().clamp_min(1e-9)).numpy(), np.float32)


def _shape(seen: Sight, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Logarithms of length and width as parts of the photo's diagonal, of how much of its box it fills, and of the box's
    sides."""
    x0, y0, x1, y1 = seen.box
    diagonal = math.hypot(size[0], size[1])
    filled = max(seen.area_px, 1) / max((x1 - x0) * (y1 - y0), 1)
    sides = (x1 - x0) / max(y1 - y0, 1)
    parts = [max(seen.length_px, 1.0) / diagonal, max(seen.width_px, 0.5) / diagonal, filled, max(sides, 1e-3)]
    return np.array([math.log(part) for part in parts])


def _unit(v: NDArray[np.float32]) -> NDArray[np.float32]:
    return v / max(float(np.linalg.norm(v)), 1e-9)


def _planes(picture: RgbImage) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
