"""What is computed once of golden samples: kept in memory and as safetensors in `REFDIFF_CACHE`, both limited by bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
import safetensors
import torch
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from refdiff.model.difference.encoder import Features
from refdiff.model.difference.feature_maps import FeatureMaps
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

    pixels: Tensor  # (3, H, W) uint8 RGB
    covered: Tensor  # (H, W) bool: pixels that the image really reaches

    @classmethod
    def of(cls, image: RgbImage, covered: NDArray[np.bool_] | None = None) -> Self:
        """From (H, W, 3) and (H, W); covered: None for all of it."""
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        everywhere = torch.ones(image.shape[:2], dtype=torch.bool)
        return cls(pixels, everywhere if covered is None else torch.from_numpy(covered))

    @property
    def image(self) -> RgbImage:
        """(H, W, 3) uint8."""
        return np.asarray(self.pixels.permute(1, 2, 0).numpy(), np.uint8)

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.covered.nbytes


T = TypeVar("T", Features, Picture)


class _TensorCache(Generic[T]):
    """Items by key; threads and processes may share it."""

    def __init__(
        self,
        root: Path,
        name: str,
        most_bytes: int,
        kept_bytes: int,
        pack: Callable[[T], dict[str, Tensor]],
        unpack: Callable[[dict[str, Tensor]], T],
    ) -> None:
        """root / name: where files are kept, made when the first one is written. most_bytes: on disk, of all below root;
        those used longest ago go first. kept_bytes: in memory."""
        self._root, self._folder, self._most_bytes = root, root / name, most_bytes
        self._room = 0  # bytes that may be written before the files on disk are looked at again
        self._pack: Callable[[T], dict[str, Tensor]] = pack
        self._unpack: Callable[[dict[str, Tensor]], T] = unpack
        self._memory: LRUCache[str, T] = LRUCache(kept_bytes, _nbytes)
        self._lock = threading.Lock()

    @cachedmethod(attrgetter("_memory"), key=lambda self, key, *_: key, lock=attrgetter("_lock"))
    def get(self, key: str, make: Callable[[], T], on_disk: bool) -> T:
        """The item of that key, made now if it is not there. on_disk: keep it in a file as well."""
        path = self._folder / f"{key}.safetensors"
        # a cache is rebuilt, never trusted
        with contextlib.suppress(OSError, KeyError, ValueError, IndexError, safetensors.SafetensorError):
            if on_disk:
                item = self._unpack(load_safetensors(path.read_bytes()))
                mark_used(path)
                return item
        item = make()
        if on_disk:
            tensors = {name: t.contiguous() for name, t in self._pack(item).items()}
            with contextlib.suppress(OSError, StorageError):  # a full or read-only cache only slows the next one down
                path.parent.mkdir(parents=True, exist_ok=True)
                data = save_safetensors(tensors)
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

    def __init__(self, root: Path, encoder: str, most_bytes: int) -> None:
        """root: folder of the files, of all encoders; made when the first one is written. most_bytes: of all these."""
        self._items = _TensorCache(
            root, encoder, most_bytes, kept_bytes(free_bytes()), _pack_features, _unpack_features
        )

    def get(self, key: str, encode: Callable[[], Features], on_disk: bool) -> Features:
        """The features of that key, encoded now if they are not there. on_disk: keep them in a file as well.

        Maps are rounded to float16, as a file holds them, so a first and a later inspection agree exactly.
        """
        return self._items.get(key, lambda: rounded(encode()), on_disk)


class PictureCache:
    """Pictures by key; threads and processes may share it."""

    def __init__(self, root: Path, version: str, most_bytes: int) -> None:
        """root: folder of the files, of all versions; made when the first one is written. most_bytes: of all these."""
        self._items = _TensorCache(
            root, version, most_bytes, kept_bytes(free_bytes()) // 4, _pack_picture, _unpack_picture
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
    return replace(features, maps=FeatureMaps({s: m.half().float() for s, m in features.maps.items()}))


def _unpack_features(tensors: dict[str, Tensor]) -> Features:
    size, work = (tuple(int(v) for v in tensors[n]) for n in ("size", "work_size"))
    return Features(
        maps=FeatureMaps({int(n[4:]): t.float() for n, t in tensors.items() if n.startswith("map_")}),
        global_vec=tensors["global_vec"].numpy(),
        patches=tensors["patches"].numpy(),
        size=(size[0], size[1]),
        work_size=(work[0], work[1]),
    )


def _pack_features(features: Features) -> dict[str, Tensor]:
    tensors = {f"map_{s}": m.half() for s, m in features.maps.items()}
    tensors["global_vec"] = torch.from_numpy(np.array(features.global_vec))
    tensors["patches"] = torch.from_numpy(np.array(features.patches))
    tensors["size"], tensors["work_size"] = torch.tensor(features.size), torch.tensor(features.work_size)
    return tensors


def _unpack_picture(tensors: dict[str, Tensor]) -> Picture:
    return Picture(tensors["pixels"], tensors["covered"])


def _pack_picture(picture: Picture) -> dict[str, Tensor]:
    return {"pixels": picture.pixels, "covered": picture.covered}
