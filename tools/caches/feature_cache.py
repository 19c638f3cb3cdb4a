"""What is computed once of golden samples: kept in memory and as safetensors in `REFDIFF_CACHE`, both limited by bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray

from refdiff.model.arrays import Array, rounded_to_half
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.features import Features
from refdiff.model.errors import StorageError
from refdiff.model.files import make_room, mark_used, write_atomic
from refdiff.model.free_memory import free_bytes
from refdiff.model.images import RgbImage

_KEPT_BYTES = (384 << 20, 1 << 30)  # in memory, of features: at least and at most
_OF_FREE = (
    8  # between these, this fraction of the memory that is free: 1 GiB holds 35 golden samples of five tiles each
)


def kept_bytes(free: int | None) -> int:
    """Bytes of features to keep in memory, of which `free` are left (None: unknown); of pictures a quarter of that."""
    least, most = _KEPT_BYTES
    return min(max(least, (free or 0) // _OF_FREE), most)


@dataclass(frozen=True)
class Picture:
    """An image on another pixel grid."""

    pixels: NDArray[np.uint8]  # (3, H, W) RGB
    covered: NDArray[np.bool_]  # (H, W): pixels that the image really reaches

    @classmethod
    def of(cls, image: RgbImage, covered: NDArray[np.bool_] | None = None) -> Self:
        """From (H, W, 3) and (H, W); covered: None for all of it."""
        return cls(image.copy().transpose(2, 0, 1), np.ones(image.shape[:2], bool) if covered is None else covered)

    @property
    def image(self) -> RgbImage:
        """(H, W, 3) uint8."""
        return self.pixels.transpose(1, 2, 0)

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.covered.nbytes


T = TypeVar("T", Features, Picture)
Arrays = dict[str, NDArray[Any]]


class _ArrayCache(Generic[T]):
    """Items by key; threads and processes may share it."""

    def __init__(
        self,
        root: Path,
        name: str,
        most_bytes: int,
        kept_bytes: int,
        pack: Callable[[T], Arrays],
        unpack: Callable[[Arrays], T],
    ) -> None:
        """root / name: where files are kept, made when the first one is written. most_bytes: on disk, of all below root;
        those used longest ago go first. kept_bytes: in memory."""
        self._root, self._folder, self._most_bytes = root, root / name, most_bytes
        self._room = 0  # bytes that may be written before the files on disk are looked at again
        self._pack: Callable[[T], Arrays] = pack
        self._unpack: Callable[[Arrays], T] = unpack
        self._memory: LRUCache[str, T] = LRUCache(kept_bytes, _nbytes)
        self._lock = threading.Lock()

    @cachedmethod(attrgetter("_memory"), key=lambda self, key, *_: key, lock=attrgetter("_lock"))
    def get(self, key: str, make: Callable[[], T], on_disk: bool) -> T:
        """The item of that key, made now if it is not there. on_disk: keep it in a file as well."""
        if not on_disk:
            return make()
        from safetensors import SafetensorError  # a device keeps no files, and has no such package
        from safetensors.numpy import load, save

        path = self._folder / f"{key}.safetensors"
        # a cache is rebuilt, never trusted
        with contextlib.suppress(OSError, KeyError, ValueError, IndexError, SafetensorError):
            item = self._unpack(load(path.read_bytes()))
            mark_used(path)
            return item
        item = make()
        arrays = {name: np.ascontiguousarray(a) for name, a in self._pack(item).items()}
        with contextlib.suppress(OSError, StorageError):  # a full or read-only cache only slows the next one down
            path.parent.mkdir(parents=True, exist_ok=True)
            data = save(arrays)
            write_atomic(path, data, private=False)
            self._count(len(data))
        return item

    def _count(self, written: int) -> None:
        """Make room now and then: looking at all files takes longer than writing one."""
        self._room -= written
        if self._room <= 0:
            left = self._most_bytes - make_room(self._root, self._most_bytes)
            self._room = min(left, self._most_bytes // 10)  # other processes write too


class FeatureCache:
    """Features by key, of one encoder; threads and processes may share it."""

    def __init__(self, root: Path, encoder: str, most_bytes: int, as_array: Callable[[NDArray[Any]], Array]) -> None:
        """root: folder of the files, of all encoders; made when the first one is written. most_bytes: of all these.
        as_array: makes the encoder's kind of array of a numpy one."""
        unpack = partial(unpack_features, as_array)
        self._items = _ArrayCache(root, encoder, most_bytes, kept_bytes(free_bytes()), pack_features, unpack)

    def get(self, key: str, encode: Callable[[], Features], on_disk: bool) -> Features:
        """The features of that key, encoded now if they are not there. on_disk: keep them in a file as well.

        Maps are rounded to float16, as a file holds them, so a first and a later inspection agree exactly.
        """
        return self._items.get(key, lambda: rounded(encode()), on_disk)


class PictureCache:
    """Pictures by key; threads and processes may share it."""

    def __init__(self, root: Path, version: str, most_bytes: int, kept: int | None = None) -> None:
        """root: folder of the files, of all versions; made when the first one is written. most_bytes: of all these.
        kept: bytes in memory; default: by what is free."""
        self._items = _ArrayCache(
            root, version, most_bytes, kept or kept_bytes(free_bytes()) // 4, _pack_picture, _unpack_picture
        )

    def get(self, key: str, draw: Callable[[], Picture], on_disk: bool) -> Picture:
        """The picture of that key, drawn now if it is not there. on_disk: keep it in a file as well."""
        return self._items.get(key, draw, on_disk)


def _nbytes(item: Features | Picture) -> int:
    if isinstance(item, Picture):
        return item.nbytes
    return item.maps.nbytes + item.patches.nbytes + item.global_vec.nbytes


def rounded(features: Features) -> Features:
    """Features whose maps are no finer than float16 holds."""
    return replace(features, maps=FeatureMaps({s: rounded_to_half(m) for s, m in features.maps.items()}))


def unpack_features(as_array: Callable[[NDArray[Any]], Array], arrays: Arrays) -> Features:
    """What `pack_features` made. Raises KeyError, ValueError, IndexError for anything else."""
    size, work = (tuple(int(v) for v in arrays[n]) for n in ("size", "work_size"))
    return Features(
        maps=FeatureMaps(
            {int(n[4:]): as_array(a.astype(np.float32)) for n, a in arrays.items() if n.startswith("map_")}
        ),
        global_vec=np.array(arrays["global_vec"]),
        patches=np.array(arrays["patches"]),
        size=(size[0], size[1]),
        work_size=(work[0], work[1]),
    )


def pack_features(features: Features) -> Arrays:
    """Features whose maps are `rounded`, as plain arrays by name."""
    arrays: Arrays = {f"map_{s}": np.asarray(m).astype(np.float16) for s, m in features.maps.items()}
    arrays |= {"global_vec": np.array(features.global_vec), "patches": np.array(features.patches)}
    return arrays | {"size": np.array(features.size), "work_size": np.array(features.work_size)}


def _unpack_picture(arrays: Arrays) -> Picture:
    return Picture(np.array(arrays["pixels"]), np.array(arrays["covered"]))


def _pack_picture(picture: Picture) -> Arrays:
    return {"pixels": picture.pixels, "covered": picture.covered}
