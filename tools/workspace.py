"""Everything a tool needs, opened once: stores, golden bank, encoder and the cache of golden features."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from refdiff.memory.golden_bank.bank import Golden, GoldenBank
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.boards.network import PACKAGED as PACKAGED_BOARDS
from refdiff.model.boards.network import BoardModel, load_boards
from refdiff.model.difference.encoder import Encoder, Features
from refdiff.model.difference.scorer import PACKAGED, DifferenceScorer, shared_difference
from refdiff.model.errors import InputError, StorageError
from refdiff.model.files import write_atomic
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.settings import ModelSettings
from refdiff.tools.settings import ToolsSettings

if TYPE_CHECKING:
    from refdiff.tools.vision.registration import Alignment

K = TypeVar("K")
V = TypeVar("V")

_IMAGES_KEPT = 32
_FEATURES_KEPT = 96
_ALIGNMENTS_KEPT = 512


class _Lru(OrderedDict[K, V], Generic[K, V]):
    """A small most-recently-used map, safe to share between threads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._mutex = size, threading.Lock()

    def recall(self, key: K) -> V | None:
        with self._mutex:
            value = self.get(key)
            if value is not None:
                self.move_to_end(key)
            return value

    def keep(self, key: K, value: V) -> None:
        with self._mutex:
            self[key] = value
            while len(self) > self._size:
                self.popitem(last=False)


@dataclass
class Workspace(contextlib.AbstractContextManager["Workspace"]):
    """Use as a context manager. The bank opens on first use, so that commands that need none never wait for it."""

    stores: Stores
    model_settings: ModelSettings
    settings: ToolsSettings

    def __post_init__(self) -> None:
        self._images: _Lru[tuple[str, tuple[float, float] | None], RgbImage] = _Lru(_IMAGES_KEPT)
        self._features: _Lru[str, Features] = _Lru(_FEATURES_KEPT)
        self.alignments: _Lru[str, Alignment] = _Lru(_ALIGNMENTS_KEPT)
        self._bank: GoldenBank | None = None
        self._mutex = threading.Lock()

    @classmethod
    def open(
        cls,
        memory: MemorySettings | None = None,
        model: ModelSettings | None = None,
        tools: ToolsSettings | None = None,
    ) -> Self:
        """Raises StorageError if the home folder is not writable."""
        return cls(Stores.open(memory), model or ModelSettings(), tools or ToolsSettings())

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.model_settings)

    @property
    def difference(self) -> DifferenceScorer:
        """The trained difference. Raises StorageError where its weights are not what they should be, InputError where they
        are of another encoder."""
        model = shared_difference(self.model_settings.difference_weights or PACKAGED)
        if model.encoder != self.encoder.digest:
            raise InputError(
                "the difference weights were trained on another encoder than the one in use; "
                "train with `refdiff train difference --encoder DIR` and set REFDIFF_DIFFERENCE_WEIGHTS"
            )
        return model

    @property
    def boards(self) -> BoardModel:
        """The network for bare boards. Raises StorageError where its weights are not what they should be."""
        return load_boards(self.model_settings.board_weights or PACKAGED_BOARDS)

    @property
    def bank(self) -> GoldenBank:
        """The golden bank, opened now if need be. Raises BankBusyError, UnavailableError, StorageError."""
        with self._mutex:
            if self._bank is None:
                e = self.encoder
                self._bank = GoldenBank.open(self.stores.settings, e.fingerprint, e.global_dim, e.patch_dim)
            return self._bank

    def image(self, sha256: str, product: str, name: str = "image") -> RgbImage:
        """The stored image, decoded with the product's intensity window: (H, W, 3) uint8 RGB, read-only."""
        known = self.stores.products.get(product)
        window = known.intensity_window if known else None
        key = (sha256, window)
        image = self._images.recall(key)
        if image is None:
            image = decode_image(self.stores.images.get(sha256), name=name, window=window, settings=self.model_settings)
            image.flags.writeable = False
            self._images.keep(key, image)
        return image

    def golden_image(self, golden: Golden) -> RgbImage:
        return self.image(golden.sha256, golden.product, f"golden {golden.golden_id}")

    def golden_features(self, golden: Golden) -> Features:
        """Features of a golden at its own working size: computed once, kept in memory and under `REFDIFF_CACHE`."""
        known = self.stores.products.get(golden.product)
        window = known.intensity_window if known else None
        key = f"{golden.sha256}-{window}" if window else golden.sha256
        features = self._features.recall(key)
        if features is None:
            # deep images depend on the window, which is the product's: they stay in memory only
            path = None if window else self._cache_path(golden.sha256)
            features = _read_features(path) if path else None
            if features is None:
                features = _halved(self.encoder.embed(self.golden_image(golden)))
                if path:
                    _write_features(path, features)
            self._features.keep(key, features)
        return features

    def _cache_path(self, sha256: str) -> Path:
        return self.model_settings.cache / "features" / self.encoder.fingerprint / f"{sha256}.safetensors"

    def close(self) -> None:
        with self._mutex:
            if self._bank is not None:
                self._bank.close()
                self._bank = None
        self.stores.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def _read_features(path: Path) -> Features | None:
    """Cached features, or None if there are none or they do not read: a cache is rebuilt, never trusted."""
    try:
        tensors = load_safetensors(path.read_bytes())
        size, work = (tuple(int(v) for v in tensors[n]) for n in ("size", "work_size"))
        return Features(
            maps={int(n[4:]): t.float() for n, t in tensors.items() if n.startswith("map_")},
            global_vec=tensors["global_vec"].numpy(),
            patches=tensors["patches"].numpy(),
            size=(size[0], size[1]),
            work_size=(work[0], work[1]),
        )
    except (OSError, KeyError, ValueError, IndexError, safetensors.SafetensorError):
        return None


def _halved(features: Features) -> Features:
    """Features as the cache holds them (float16), so that a first and a later inspection agree exactly."""
    return replace(features, maps={s: m.half().float() for s, m in features.maps.items()})


def _write_features(path: Path, features: Features) -> None:
    tensors = {f"map_{s}": m.half().contiguous() for s, m in features.maps.items()}
    tensors["global_vec"] = torch.from_numpy(np.array(features.global_vec))
    tensors["patches"] = torch.from_numpy(np.array(features.patches))
    tensors["size"], tensors["work_size"] = torch.tensor(features.size), torch.tensor(features.work_size)
    # a full or read-only cache slows the next inspection down, nothing else
    with contextlib.suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save_safetensors(tensors), private=False)
