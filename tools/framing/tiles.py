"""Overlapping tiles of a grid, each compared as a whole photo is, and what they say blended so that no seam shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from refdiff.model.difference.features import work_size

T = TypeVar("T", bound=np.generic)

TILE_PX = 320  # side of a tile, work px
_OVERLAP_PX = 64
_STEP_PX = 8  # tiles begin at whole cells of every stride that is blended


@dataclass(frozen=True)
class Tile:
    """A part of a grid: its upper left corner and size, work px."""

    y: int
    x: int
    h: int
    w: int

    def of(self, plane: NDArray[T], stride: int) -> NDArray[T]:
        """Its part of a plane of the whole grid, (..., h, w) at a stride."""
        y, x = self.y // stride, self.x // stride
        return plane[..., y : y + self.h // stride, x : x + self.w // stride]


def grid_tiles(frame: tuple[int, int], working_px: int, least: int) -> list[Tile]:
    """Tiles of the grid of a frame of `frame` (H, W) whose long side is `working_px`.

    None is smaller than the frame at `least` px, at which retrieval sees it.
    """
    return tiles_of(work_size(frame, working_px), max(TILE_PX, *work_size(frame, least)))


def tiles_of(size: tuple[int, int], side: int = TILE_PX) -> list[Tile]:
    """Tiles of one size that cover a grid of `size` (H, W), both multiples of 32; one where the grid is little larger."""
    (ys, h), (xs, w) = (_along(n, side) for n in size)
    return [Tile(y, x, h, w) for y in ys for x in xs]


def _along(length: int, side: int) -> tuple[list[int], int]:
    """Where the tiles of one side begin, and how long they are."""
    if length <= side + _OVERLAP_PX:
        return [0], length
    count = -(-(length - _OVERLAP_PX) // (side - _OVERLAP_PX))
    last = length - side
    return [round(i * last / (count - 1) / _STEP_PX) * _STEP_PX for i in range(count - 1)] + [last], side


@dataclass
class Blend:
    """The weighted mean of planes given tile by tile. stride: of their cells, work px."""

    size: tuple[int, int]  # (H, W) of the grid, work px
    stride: int
    _total: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _weight: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def add(self, name: str, tile: Tile, planes: NDArray[np.float32]) -> None:
        """planes: (..., h, w) of a tile; a tile counts less towards those of its edges that are inside the grid."""
        h, w = self.size[0] // self.stride, self.size[1] // self.stride
        if name not in self._total:
            self._total[name] = np.zeros((*planes.shape[:-2], h, w), np.float32)
            self._weight[name] = np.zeros((h, w), np.float32)
        y, x = tile.y // self.stride, tile.x // self.stride
        at = np.s_[..., y : y + planes.shape[-2], x : x + planes.shape[-1]]
        rows = _feather(planes.shape[-2], tile.y > 0, tile.y + tile.h < self.size[0], _OVERLAP_PX // self.stride)
        columns = _feather(planes.shape[-1], tile.x > 0, tile.x + tile.w < self.size[1], _OVERLAP_PX // self.stride)
        weight = rows[:, None] * columns
        self._total[name][at] += planes * weight
        self._weight[name][at] += weight

    def mean(self, name: str) -> NDArray[np.float32]:
        """(..., H / stride, W / stride) float32."""
        return self._total[name] / self._weight[name]


def _feather(n: int, before: bool, after: bool, ramp: int) -> NDArray[np.float32]:
    """(n,) weights: 1, falling to almost 0 over `ramp` cells where another tile follows."""
    rise = np.minimum((np.arange(n) + 0.5) / ramp, 1.0).astype(np.float32)
    one = np.ones(n, np.float32)
    return (rise if before else one) * (rise[::-1] if after else one)
