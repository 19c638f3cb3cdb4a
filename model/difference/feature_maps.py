"""Encoder maps of one image, and what the search for counterparts needs of them, computed once and kept with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from propcache.api import cached_property
from torch import Tensor

GRID_STRIDE = 8
_STRIDES = (8, 16, 32)
_SEARCHED = 128  # directions of a sketch: with as many, image scores stay within a thousandth of the full search


class FeatureMaps(dict[int, Tensor]):
    """stride -> (C, h, w) float32. Must not be changed afterwards."""

    @classmethod
    def of(cls, maps: Mapping[int, Tensor]) -> FeatureMaps:
        """The same maps; those that are FeatureMaps keep what they know."""
        return maps if isinstance(maps, cls) else cls(maps)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the stride-8 grid."""
        h, w = self[GRID_STRIDE].shape[-2:]
        return h, w

    @property
    def nbytes(self) -> int:
        """Memory that it takes, with all that is derived from it."""
        (h, w), channels = self.grid, sum(m.shape[0] for s, m in self.items() if s in _STRIDES)
        derived = 4 * (h * w * (channels + _SEARCHED) + channels * _SEARCHED)
        return sum(m.nbytes * (2 if s in _STRIDES else 1) for s, m in self.items()) + derived

    @cached_property
    def descriptors(self) -> Tensor:
        """(h*w, C) float32 rows of unit norm, one for each cell of the stride-8 grid; C = 40 + 112 + 320."""
        return F.normalize(torch.cat([self._on_grid(self[s]) for s in _STRIDES], 1), dim=1)

    @cached_property
    def sketch(self) -> tuple[Tensor, Tensor]:
        """(d, h*w) descriptors in the d directions that hold most of them, and (C, d) those directions; d <= C."""
        # a coarse map has few cells and so spans few directions: the eigenvectors are looked for among those
        spans = [torch.linalg.qr(self[s].flatten(1)).Q for s in _STRIDES]  # (C_s, k_s) each
        parts = [self._on_grid(self._times(s, span)) for s, span in zip(_STRIDES, spans, strict=True)]
        within = F.normalize(torch.cat(parts, 1), dim=1)  # descriptors, in these directions
        most = torch.linalg.eigh(within.T @ within).eigenvectors[:, -_SEARCHED:].contiguous()
        by_span = zip(spans, most.split([span.shape[1] for span in spans]), strict=True)
        return (within @ most).T.contiguous(), torch.cat([span @ part for span, part in by_span])

    @cached_property
    def directed(self) -> dict[int, Tensor]:
        """stride -> (C, h*w), the cells of a map with unit norm."""
        return {s: F.normalize(self[s].flatten(1), dim=0) for s in _STRIDES}

    def _times(self, stride: int, directions: Tensor) -> Tensor:
        """(d, h, w): a map (C, h, w) times directions (C, d)."""
        product = (self[stride].flatten(1).T @ directions).T  # channels last in memory
        return product.view(-1, *self[stride].shape[1:])

    def _on_grid(self, x: Tensor) -> Tensor:
        """(C, any, any) -> (h*w, C), interpolated."""
        x = x[None].contiguous(memory_format=torch.channels_last)
        if x.shape[-2:] != self.grid:
            x = F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)
        return x[0].permute(1, 2, 0).flatten(0, 1)
