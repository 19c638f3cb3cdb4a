"""The cache of golden features: encoded once, kept on disk, rebuilt when damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from refdiff.model.difference.features import Features
from refdiff.model.errors import ImageError
from refdiff.model.files import make_room
from refdiff.tools.caches import feature_cache
from refdiff.tools.caches.feature_cache import FeatureCache, kept_bytes


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


def features_in(root: Path, most_bytes: int = 1 << 30) -> FeatureCache:
    return FeatureCache(root, "", most_bytes, torch.from_numpy)


def assert_same(a: Features, b: Features) -> None:
    assert torch.equal(a.maps[8], b.maps[8])
    assert np.array_equal(a.global_vec, b.global_vec)
    assert np.array_equal(a.patches, b.patches)
    assert (a.size, a.work_size) == (b.size, b.work_size)


def test_features_are_encoded_once_and_agree_after_a_restart(tmp_path: Path, encode: Encoding) -> None:
    cache = features_in(tmp_path / "features")
    first = cache.get("a", encode, True)
    assert cache.get("a", encode, True) is first
    assert_same(features_in(tmp_path / "features").get("a", encode, True), first)
    assert encode.calls == 1


def test_features_off_disk_are_encoded_again_after_a_restart(tmp_path: Path, encode: Encoding) -> None:
    first = features_in(tmp_path).get("a", encode, False)
    assert list(tmp_path.iterdir()) == []
    assert_same(features_in(tmp_path).get("a", encode, False), first)
    assert encode.calls == 2


def test_damaged_file_is_encoded_again(tmp_path: Path, encode: Encoding) -> None:
    first = features_in(tmp_path).get("a", encode, True)
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert_same(features_in(tmp_path).get("a", encode, True), first)
    assert encode.calls == 2


def test_unwritable_cache_folder_does_not_stop_encoding(tmp_path: Path, encode: Encoding) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert features_in(tmp_path / "file").get("a", encode, True).size == (96, 128)


def test_failed_encoding_is_not_kept(tmp_path: Path, encode: Encoding) -> None:
    def fail() -> Features:
        raise ImageError("broken")

    cache = features_in(tmp_path)
    with pytest.raises(ImageError):
        cache.get("a", fail, True)
    assert cache.get("a", encode, True).size == (96, 128)


def test_files_used_longest_ago_make_room(tmp_path: Path, encode: Encoding) -> None:
    names = [f"{n}" for n in range(12)]
    features_in(tmp_path).get("0", encode, True)
    one = (tmp_path / "0.safetensors").stat().st_size
    old = tmp_path / "encoder of an earlier version"
    FeatureCache(tmp_path, old.name, 1 << 30, torch.from_numpy).get("x", encode, True)
    for n, path in enumerate([old / "x.safetensors", tmp_path / "0.safetensors"]):
        os.utime(path, (n, n))
    for n, name in enumerate(names[1:], start=2):
        features_in(tmp_path, 8 * one).get(name, encode, True)  # another process
        os.utime(tmp_path / f"{name}.safetensors", (n, n)) if name != "1" else None
        if name == "4":
            features_in(tmp_path).get("0", encode, True)  # used again
    left = {path.stem for path in tmp_path.rglob("*.safetensors")}
    assert {"0", "1", "11"} <= left, "written or used last"
    assert not {"x", "2", "3"} & left
    assert not old.exists()
    assert 5 <= len(left) <= 8


def test_long_run_stays_within_its_bytes(tmp_path: Path, encode: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    features_in(tmp_path).get("first", encode, True)
    most = 40 * (tmp_path / "first.safetensors").stat().st_size
    looked: list[Path] = []
    monkeypatch.setattr(feature_cache, "make_room", lambda *a: (looked.append(a[0]), make_room(*a))[1])
    cache, largest = features_in(tmp_path, most), 0
    for n in range(120):
        cache.get(f"{n}", encode, True)
        largest = max(largest, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert largest <= 1.1 * most
    assert len(looked) < 60, "all files are looked at now and then only"


def test_more_is_kept_in_memory_where_more_is_free() -> None:
    least, most = 384 << 20, 1 << 30
    free = [None, 0, 1 << 30, 4 << 30, 64 << 30]
    assert [kept_bytes(bytes_) for bytes_ in free] == [least, least, least, 512 << 20, most]
