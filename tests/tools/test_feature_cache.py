"""The cache of golden features: encoded once, kept on disk, rebuilt when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from refdiff.model.difference.encoder import Features
from refdiff.model.errors import ImageError
from refdiff.tools.feature_cache import FeatureCache


class Encoding:
    """Counts how often it encodes."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Features:
        self.calls += 1
        rng = np.random.default_rng(0)
        maps = {8: torch.from_numpy(rng.random((1, 4, 6, 8), np.float32))}
        vectors = rng.random(5, np.float32), rng.random((3, 4), np.float32)
        return Features(maps=maps, global_vec=vectors[0], patches=vectors[1], size=(96, 128), work_size=(48, 64))


@pytest.fixture
def encode() -> Encoding:
    return Encoding()


def assert_same(a: Features, b: Features) -> None:
    assert torch.equal(a.maps[8], b.maps[8])
    assert np.array_equal(a.global_vec, b.global_vec)
    assert np.array_equal(a.patches, b.patches)
    assert (a.size, a.work_size) == (b.size, b.work_size)


def test_features_are_encoded_once_and_agree_after_a_restart(tmp_path: Path, encode: Encoding) -> None:
    cache = FeatureCache(tmp_path / "features")
    first = cache.get("a", encode, True)
    assert cache.get("a", encode, True) is first
    assert_same(FeatureCache(tmp_path / "features").get("a", encode, True), first)
    assert encode.calls == 1


def test_features_off_disk_are_encoded_again_after_a_restart(tmp_path: Path, encode: Encoding) -> None:
    first = FeatureCache(tmp_path).get("a", encode, False)
    assert list(tmp_path.iterdir()) == []
    assert_same(FeatureCache(tmp_path).get("a", encode, False), first)
    assert encode.calls == 2


def test_damaged_file_is_encoded_again(tmp_path: Path, encode: Encoding) -> None:
    first = FeatureCache(tmp_path).get("a", encode, True)
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert_same(FeatureCache(tmp_path).get("a", encode, True), first)
    assert encode.calls == 2


def test_unwritable_cache_folder_does_not_stop_encoding(tmp_path: Path, encode: Encoding) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert FeatureCache(tmp_path / "file").get("a", encode, True).size == (96, 128)


def test_failed_encoding_is_not_kept(tmp_path: Path, encode: Encoding) -> None:
    def fail() -> Features:
        raise ImageError("broken")

    cache = FeatureCache(tmp_path)
    with pytest.raises(ImageError):
        cache.get("a", fail, True)
    assert cache.get("a", encode, True).size == (96, 128)
