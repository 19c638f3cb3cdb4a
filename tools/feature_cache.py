"""Features of golden samples, encoded once: kept in memory and, as half-precision safetensors, in `REFDIFF_CACHE`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import safetensors
import torch
from cachetools import LRUCache, cachedmethod
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from refdiff.model.difference.encoder import Features
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.errors import StorageError
from refdiff.model.files import write_atomic

_KEPT = 96  # features in memory


class FeatureCache:
    """Features by key, of one encoder; threads may share it."""

    def __init__(self, folder: Path) -> None:
        """folder: where files are kept, made when the first one is written."""
        self._folder = folder
        self._memory: LRUCache[str, Features] = LRUCache(_KEPT)
        self._lock = threading.Lock()

    @cachedmethod(attrgetter("_memory"), key=lambda self, key, *_: key, lock=attrgetter("_lock"))
    def get(self, key: str, encode: Callable[[], Features], on_disk: bool) -> Features:
        """The features of that key, encoded now if they are not there. on_disk: keep them in a file as well.

        Maps are rounded to float16, as a file holds them, so a first and a later inspection agree exactly.
        """
        path = self._folder / f"{key}.safetensors"
        features = _read(path) if on_disk else None
        if features is None:
            encoded = encode()
            features = replace(encoded, maps=FeatureMaps({s: m.half().float() for s, m in encoded.maps.items()}))
            if on_disk:
                _write(path, features)
        return features


def _read(path: Path) -> Features | None:
    """Cached features, or None if there are none or they cannot be read: a cache is rebuilt, never trusted."""
    try:
        tensors = load_safetensors(path.read_bytes())
        size, work = (tuple(int(v) for v in tensors[n]) for n in ("size", "work_size"))
        return Features(
            maps=FeatureMaps({int(n[4:]): t.float() for n, t in tensors.items() if n.startswith("map_")}),
            global_vec=tensors["global_vec"].numpy(),
            patches=tensors["patches"].numpy(),
            size=(size[0], size[1]),
            work_size=(work[0], work[1]),
        )
    except (OSError, KeyError, ValueError, IndexError, safetensors.SafetensorError):
        return None


def _write(path: Path, features: Features) -> None:
    tensors = {f"map_{s}": m.half().contiguous() for s, m in features.maps.items()}
    tensors["global_vec"] = torch.from_numpy(np.array(features.global_vec))
    tensors["patches"] = torch.from_numpy(np.array(features.patches))
    tensors["size"], tensors["work_size"] = torch.tensor(features.size), torch.tensor(features.work_size)
    with contextlib.suppress(OSError, StorageError):  # a full or read-only cache only slows the next inspection down
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save_safetensors(tensors), private=False)
