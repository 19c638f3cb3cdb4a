"""The difference of a photo and its registered golden samples: anomaly map, image score, types.

Golden features come from the cache where the golden lies as the photo does (a fixed camera); else the registered golden is
encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refdiff.memory.golden_bank.golden import Golden
from refdiff.model.difference.encoder import Features, resize_to
from refdiff.model.difference.feature_maps import GRID_STRIDE
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.patch_distance import anomaly_map as patch_distance
from refdiff.model.difference.patch_distance import image_score, reached_cells
from refdiff.model.difference.scorer import MAP_STRIDE, SCORED_PART, fuse
from refdiff.model.images import RgbImage
from refdiff.tools.vision.regions import map_size
from refdiff.tools.vision.registration import Alignment, Matrix, coverage, warp_reference
from refdiff.tools.workspace import Workspace

_MAX_MOVE_CELLS = 0.25  # displacement at which two images still count as lying alike


@dataclass(frozen=True)
class Difference:
    """How a photo differs from its references."""

    anomaly_map: NDArray[np.float32]  # `map_size` of the photo, >= 0; 0 where no reference reaches
    score: float  # image score, continuous
    peak: float  # largest value of the map
    covered: float  # part 0..1 of the photo that some reference reaches
    types: NDArray[np.float32]  # (T, H/4, W/4) probabilities of DIFFERENCE_TYPES, at working size


@dataclass(frozen=True)
class RegisteredGolden:
    """A golden as it lies on a photo of `size` (H, W)."""

    workspace: Workspace
    golden: Golden
    alignment: Alignment
    size: tuple[int, int]

    @cached_property
    def picture(self) -> RgbImage:
        """The golden on the photo's pixel grid, (H, W, 3) uint8; merely resized where it did not register."""
        return warp_reference(self.workspace.golden_image(self.golden), self.alignment.matrix, self.size)[0]

    @cached_property
    def reduced(self) -> RgbImage:
        """The same at the `map_size` of the photo, for all that needs no finer pixels."""
        size = map_size(self.size)
        if size == self.size:
            return self.picture
        golden = self.workspace.golden_image(self.golden)
        small = resize_to(golden, map_size(golden.shape))
        matrix = scaling(self.size, size) @ self.alignment.matrix @ scaling(small.shape, golden.shape)
        return warp_reference(small, matrix, size)[0]


def scaling(size: tuple[int, ...], target: tuple[int, ...]) -> Matrix:
    """(3, 3): px of an image of `size` (H, W, ...) -> px of the same image at `target`."""
    return np.diag([target[1] / size[1], target[0] / size[0], 1.0])


def as_tensor(image: RgbImage) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def reference_view(features: Features, registered: RegisteredGolden) -> ReferenceView:
    """A golden as the photo with these features sees it: on the photo's grid if it could be registered."""
    workspace, golden, alignment = registered.workspace, registered.golden, registered.alignment
    own = workspace.golden_features(golden)
    if not alignment.ok:
        anywhere = torch.ones(own.maps[GRID_STRIDE].shape[-2:], dtype=torch.bool)
        return ReferenceView(own.maps, anywhere, registered=False)
    work = in_work_px(alignment.matrix, features, own)
    covered = coverage(work, own.work_size, features.work_size)
    grid = features.maps[GRID_STRIDE].shape[-2:]
    valid = torch.from_numpy(cv2.resize(covered.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)) > 0.5
    moves = _moves(work, features, own)
    picture = resize_to(registered.reduced if moves else workspace.golden_image(golden), features.work_size)
    # interpolating features instead would be cheaper, but blurs them: a good part that lies 2 degrees off then scores high
    maps = workspace.encoder.embed(picture, features.work_size).maps if moves else own.maps
    return ReferenceView(maps, valid, True, as_tensor(picture), torch.from_numpy(covered), own.maps)


def in_work_px(matrix: Matrix, query: Features, reference: Features) -> Matrix:
    """The registration between the two images as they were encoded: reference px -> query px, (3, 3)."""
    q, r = scaling(query.size, query.work_size), scaling(reference.size, reference.work_size)
    return np.asarray(q @ matrix @ np.linalg.inv(r), np.float64)


def _moves(work: Matrix, query: Features, reference: Features) -> bool:
    """Does the registration move any place by more than a matching window forgives unnoticed?"""
    if query.work_size != reference.work_size:
        return True
    h, w = query.work_size
    corners = np.array([[[0, 0], [w, 0], [0, h], [w, h]]], np.float64)
    moved = float(np.abs(cv2.perspectiveTransform(corners, work) - corners).max())
    return moved > _MAX_MOVE_CELLS * GRID_STRIDE


def score_difference(
    workspace: Workspace,
    query: RgbImage,
    features: Features,
    references: Iterable[RegisteredGolden],
    ignore: NDArray[np.bool_] | None = None,
) -> Difference:
    """Compare a photo (H, W, 3) with its registered (or, where that failed, unregistered) goldens.

    features: of the photo. ignore: bool, at the photo's `map_size`, what does not count (the map is 0 there).
    """
    size = map_size(query.shape)
    views = [reference_view(features, r) for r in references]
    picture = as_tensor(resize_to(query, features.work_size))
    network = workspace.difference.compare(picture, features.maps, views)
    grid = (features.work_size[0] // MAP_STRIDE, features.work_size[1] // MAP_STRIDE)
    reached = reached_cells(views, (grid[0] * MAP_STRIDE // GRID_STRIDE, grid[1] * MAP_STRIDE // GRID_STRIDE))
    keep = cv2.resize(reached.numpy().astype(np.uint8), grid[::-1], interpolation=cv2.INTER_NEAREST) > 0
    if ignore is not None and ignore.any():
        keep &= cv2.resize(ignore.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA) <= 0.5
    cells = fuse(patch_distance(features.maps, views).numpy(), network.logits.numpy()) * keep
    full = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_LINEAR)
    # half a cell of smoothing: the map must not show the grid
    sigma = MAP_STRIDE / 2 * max(size) / max(features.work_size)
    smooth = cv2.GaussianBlur(full, (0, 0), sigma).astype(np.float32)
    if ignore is not None:
        smooth[ignore] = 0
    score = image_score(torch.from_numpy(cells), torch.from_numpy(keep), SCORED_PART)
    return Difference(smooth, score, float(smooth.max()), float(reached.float().mean()), network.types.numpy())
