"""Encoder maps of one image, and what the search for counterparts needs of them, computed once and kept with them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from propcache.api import cached_property

from refdiff.model.arrays import Array, library_of, offsets, on_cells, packed, unit

GRID_STRIDE = 8
Sketch = tuple[Array, Array]  # see `FeatureMaps.sketch`
_STRIDES = (8, 16, 32)
_SEARCHED = 128  # directions of a sketch: with as many, image scores stay within a thousandth of the full search


class FeatureMaps(dict[int, Array]):
    """stride -> (C, h, w) float32. Must not be changed afterwards."""

    @classmethod
    def of(cls, maps: Mapping[int, Array]) -> FeatureMaps:
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
    def descriptors(self) -> Array:
        """(h*w, C) float32 rows of unit norm, one for each cell of the stride-8 grid; C = 40 + 112 + 320."""
        maps = [on_cells(self[s], self.grid) for s in _STRIDES]
        return unit(library_of(maps[0]).concat(maps, 1), 1)

    def take_directions(self, known: Array) -> None:
        """Take `directions` of the same maps that were computed before."""
        self.__dict__["directions"] = known

    @cached_property
    def directions(self) -> Array:
        """(C, d) float32 orthonormal columns: the d directions that hold most of the descriptors; d <= C."""
        library = library_of(self[GRID_STRIDE])
        # a coarse map has few cells and so spans few directions: the eigenvectors are looked for among those
        spans = [library.linalg.qr(self._cells(s)).Q for s in _STRIDES]  # (C_s, k_s) each
        parts = [on_cells(self._times(s, span), self.grid) for s, span in zip(_STRIDES, spans, strict=True)]
        within = unit(library.concat(parts, 1), 1)  # descriptors, in these directions
        most = packed(library.linalg.eigh(within.T @ within).eigenvectors[:, -_SEARCHED:])
        begins = offsets([span.shape[1] for span in spans])
        by_span = [most[begin:end] for begin, end in pairwise(begins)]
        return library.concat([span @ part for span, part in zip(spans, by_span, strict=True)])

    @cached_property
    def sketch(self) -> Sketch:
        """(d, h*w) descriptors in the d `directions`, and these."""
        return packed((self.descriptors @ self.directions).T), self.directions

    @cached_property
    def directed(self) -> dict[int, Array]:
        """stride -> (C, h*w), the cells of a map with unit norm."""
        return {s: unit(self._cells(s), 0) for s in _STRIDES}

    def _cells(self, stride: int) -> Array:
        """(C, h*w)"""
        return self[stride].reshape(self[stride].shape[0], -1)

    def _times(self, stride: int, directions: Array) -> Array:
        """(d, h, w): a map (C, h, w) times directions (C, d)."""
        product = (self._cells(stride).T @ directions).T  # channels last in memory
        return product.reshape(-1, *self[stride].shape[1:])
