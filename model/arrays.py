"""The few array operations that torch and numpy spell differently: what compares features runs on either.

Encoder maps are torch tensors where torch runs the networks, and numpy arrays on a device that has none; each function
returns the kind it was given, on the CPU, and loads no torch by itself. Everything else is written for both: operators,
`reshape`, and what both libraries call alike (`stack`, `concat`, `where`, ...), taken from `library_of` an array.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Array = Any  # a numpy array, or a torch tensor on the CPU
P = ParamSpec("P")
R = TypeVar("R")
_LEAST = 1e-12  # of a norm that is divided by


def is_plain(x: Array) -> bool:
    """Whether it is a numpy array."""
    return isinstance(x, np.ndarray)


def library_of(x: Array) -> Any:
    """The module that `x` is an array of: numpy or torch."""
    return np if is_plain(x) else import_module("torch")


def like(x: Array, example: Array) -> Array:
    """`x` as an array of the kind of `example`; its values are shared where they can be."""
    if is_plain(example) is is_plain(x):
        return x
    return np.asarray(x) if is_plain(example) else library_of(example).from_numpy(x)


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with torch's record of gradients off while it runs, where torch is loaded."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        torch = sys.modules.get("torch")
        if torch is None:
            return function(*args, **kwargs)
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


# ---- of one array ----


def copied(x: Array) -> Array:
    """A copy."""
    return x.copy() if is_plain(x) else x.clone()


def packed(x: Array) -> Array:
    """The same, its values in order in memory."""
    return np.ascontiguousarray(x) if is_plain(x) else x.contiguous()


def permuted(x: Array, *axes: int) -> Array:
    """With its axes in another order."""
    return x.transpose(axes) if is_plain(x) else x.permute(axes)


def strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view of packed `x`, strides counted in elements."""
    if is_plain(x):
        return np.lib.stride_tricks.as_strided(x, shape, [s * x.itemsize for s in strides])
    return x.as_strided(shape, strides)


def float32(x: Array) -> Array:
    """As float32."""
    return x.astype(np.float32) if is_plain(x) else x.float()


def rounded_to_half(x: Array) -> Array:
    """float32, no finer than float16 holds."""
    return x.astype(np.float16).astype(np.float32) if is_plain(x) else x.half().float()


def largest(x: Array, axis: int) -> tuple[Array, Array]:
    """The largest values along an axis, and where they are."""
    if not is_plain(x):
        values, places = x.max(axis)
        return values, places
    places = x.argmax(axis)
    return np.take_along_axis(x, np.expand_dims(places, axis), axis).squeeze(axis), places


def where_true(mask: Array) -> Array:
    """(n,) int64: where (N,) bool is True."""
    return np.flatnonzero(mask) if is_plain(mask) else mask.nonzero()[:, 0]


def norm(x: Array, axis: int, keepdims: bool = False) -> Array:
    """The Euclidean norm along an axis, 1e-12 or more."""
    if is_plain(x):
        return np.maximum(np.linalg.norm(x, axis=axis, keepdims=keepdims), np.float32(_LEAST))
    return x.norm(dim=axis, keepdim=keepdims).clamp_min(_LEAST)


def unit(x: Array, axis: int) -> Array:
    """With unit norm along an axis."""
    return x / norm(x, axis, keepdims=True)


def softmax(x: Array, axis: int) -> Array:
    """Exponentials that add up to 1 along an axis."""
    if not is_plain(x):
        return library_of(x).softmax(x, axis)
    raised = np.exp(x - x.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


# ---- taken from one array by another ----


def taken(x: Array, at: Array) -> Array:
    """(N, n): of each row of (N, M) the elements `at` (N, n) int64."""
    return np.take_along_axis(x, at, 1) if is_plain(x) else x.gather(1, at)


def rows(x: Array, at: Array) -> Array:
    """(n, ...): the rows `at` (n,) int64 of (N, ...)."""
    return np.take(x, at, 0) if is_plain(x) else x.index_select(0, at)


# ---- of planes ----


def padded(x: Array, by: int, *, repeat: bool = False) -> Array:
    """(C, h + 2 by, w + 2 by): (C, h, w) with zeros, or its edge repeated, all round."""
    if is_plain(x):
        return np.pad(x, ((0, 0), (by, by), (by, by)), mode="edge" if repeat else "constant")
    pad = import_module("torch.nn.functional").pad
    return pad(x[None], (by,) * 4, mode="replicate")[0] if repeat else pad(x, (by,) * 4)


def doubled(x: Array) -> Array:
    """(C, 2 h, 2 w): each cell of (C, h, w) as four."""
    if is_plain(x):
        return x.repeat(2, 1).repeat(2, 2)
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def on_cells(x: Array, size: tuple[int, int]) -> Array:
    """(h * w, C): (C, any, any) interpolated linearly to `size` (h, w), a row for each cell."""
    if is_plain(x):
        _, h, w = x.shape
        if (h, w) != size:
            x = _linear(h, size[0]) @ (x @ _linear(w, size[1]).T)
        return np.ascontiguousarray(x.reshape(x.shape[0], -1).T)
    torch = library_of(x)
    x = x[None].contiguous(memory_format=torch.channels_last)
    if x.shape[-2:] != size:
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0).flatten(0, 1)


@lru_cache(maxsize=64)
def _linear(n: int, m: int) -> NDArray[np.float32]:
    """(m, n): what makes m values of n, interpolated linearly between the middles of cells."""
    at = ((np.arange(m) + 0.5) * (n / m) - 0.5).clip(0, n - 1)
    first = np.minimum(at.astype(np.int64), n - 1)
    found = np.zeros((m, n), np.float32)
    np.add.at(found, (np.arange(m), first), 1 - (at - first))
    np.add.at(found, (np.arange(m), np.minimum(first + 1, n - 1)), at - first)
    return found


def mean_cells(x: Array, side: int) -> Array:
    """(side * side, C): means of (C, h, w) over a grid of overlapping cells that cover it."""
    if not is_plain(x):
        return library_of(x).nn.functional.adaptive_avg_pool2d(x, side).flatten(1).T
    _, h, w = x.shape
    spans = [[(i * n // side, -(-(i + 1) * n // side)) for i in range(side)] for n in (h, w)]
    return np.stack([x[:, y0:y1, x0:x1].mean((1, 2)) for y0, y1 in spans[0] for x0, x1 in spans[1]])


def grown(cells: Array, by: int) -> Array:
    """(h, w) bool grown by some cells to all sides."""
    kernel = np.ones((2 * by + 1,) * 2, np.uint8)
    return like(cv2.dilate(np.asarray(cells).astype(np.uint8), kernel) > 0, cells)


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each of some pieces begins when they are put in a row, and where the last ends."""
    found = [0]
    for size in sizes:
        found.append(found[-1] + size)
    return found
