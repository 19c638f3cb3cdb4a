"""Photos in a bucket: kept by sha256, removed only where nobody relies on them, and moved there with all else in place."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_s3 import OwnS3
from pydantic import ValidationError

from refdiff.memory.photos.bucket_images import BucketImages
from refdiff.memory.photos.image_store import FolderImages, ImageStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import PHOTOS, PHOTOS_MOVED, Stores
from refdiff.memory.upkeep.backup import back_up, restore
from refdiff.memory.upkeep.doctor import BankContents, examine
from refdiff.memory.upkeep.move import move_photos
from refdiff.model.errors import DamagedError, InputError, StorageError, UnavailableError, UnknownRecordError

DATA = b"a photo"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "bucket"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    return FolderImages(tmp_path / PHOTOS) if request.param == "folder" else request.getfixturevalue("bucket")


@pytest.fixture
def bucket(s3: OwnS3) -> BucketImages:
    return BucketImages(s3.new_bucket("parts/line-1"))


def test_photo_is_found_by_its_sha256(images: ImageStore) -> None:
    assert (list(images.ids()), images.size(SHA256), images.used_at(SHA256)) == ([], None, None)
    assert not images.mark_used(SHA256)
    for call in (images.get, images.check):
        with pytest.raises(UnknownRecordError, match="send the photo again"):
            call(SHA256)
    before = time.time() - 2
    assert images.put(DATA) == images.put(DATA) == SHA256
    assert images.get(SHA256) == DATA
    images.check(SHA256)
    assert (list(images.ids()), images.size(SHA256)) == ([SHA256], len(DATA))
    used_at = images.used_at(SHA256)
    assert used_at
    assert before < used_at < time.time() + 2
    assert SHA256 in images.where(SHA256)
    for wrong in ("", "../" * 20, SHA256.upper()):
        with pytest.raises(InputError):
            images.get(wrong)


def test_only_a_photo_that_nobody_used_lately_is_removed(images: ImageStore) -> None:
    assert images.remove_unused(SHA256, time.time()) == 0
    images.put(DATA)
    assert images.remove_unused(SHA256, time.time() - 60) is None
    assert images.remove_unused(SHA256, time.time() + 60) == len(DATA)
    assert list(images.ids()) == []
    assert not images.mark_used(SHA256)
    images.put(DATA)
    assert images.mark_used(SHA256)
    assert images.get(SHA256) == DATA


def test_photo_that_is_marked_while_it_is_removed_stays(bucket: BucketImages, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(DATA)
    delete, told, since = bucket._delete, list[bool](), time.time() + 1.5
    time.sleep(2.5)  # the store tells times in seconds

    def marked_before(key: str) -> None:
        if not told:
            told.append(BucketImages(bucket.url).mark_used(SHA256))
        delete(key)

    monkeypatch.setattr(bucket, "_delete", marked_before)
    assert bucket.remove_unused(SHA256, since) is None
    assert told == [True]
    assert bucket.get(SHA256) == DATA


def test_photo_that_two_remove_at_once_is_counted_once(bucket: BucketImages, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(DATA)
    opened, since = bucket.opened, time.time() + 60

    def removed_before(sha256: str) -> Any:
        assert BucketImages(bucket.url).remove_unused(sha256, since) == len(DATA)
        return opened(sha256)

    monkeypatch.setattr(bucket, "opened", removed_before)
    assert bucket.remove_unused(SHA256, since) == 0
    assert list(bucket.ids()) == []


_PEAK = """
import sys, tracemalloc
from refdiff.memory.photos.bucket_images import BucketImages

tracemalloc.start()
bucket = BucketImages(sys.argv[1])
bucket.size("0" * 64)
tracemalloc.reset_peak()
before = tracemalloc.get_traced_memory()[0]
with open(sys.argv[2], "rb") as file:
    sha256 = bucket.put_file(file)
bucket.check(sha256)
print(sha256, tracemalloc.get_traced_memory()[1] - before)
"""


def test_photo_is_sent_and_checked_in_pieces(bucket: BucketImages, tmp_path: Path) -> None:
    """In a process of its own: the store of the tests runs in this one."""
    data = os.urandom(1 << 20) * 32
    (tmp_path / "photo").write_bytes(data)
    command = [sys.executable, "-c", _PEAK, bucket.url, str(tmp_path / "photo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    sha256, peak = done.stdout.split()
    assert bucket.get(sha256) == data
    assert int(peak) < len(data) / 8


def test_damaged_photo_is_told_and_mended_when_it_is_sent_again(bucket: BucketImages, s3: OwnS3) -> None:
    bucket.put(DATA)
    s3.overwrite(bucket.where(SHA256), b"another")
    with pytest.raises(DamagedError, match="send the photo again"):
        bucket.get(SHA256)
    with pytest.raises(DamagedError):
        bucket.check(SHA256)
    with bucket.opened(SHA256) as file:
        assert file.read() == b"another"
    assert bucket.put(DATA) == SHA256
    assert bucket.get(SHA256) == DATA


def test_store_that_is_away_or_refuses_is_an_outage(s3: OwnS3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="does the bucket exist"):
        BucketImages("s3://no-such-bucket-of-ours").put(DATA)
    bucket = BucketImages(s3.new_bucket())
    monkeypatch.setattr("refdiff.memory.photos.bucket_images._TRIES", 1)
    away = BucketImages(bucket.url)
    s3.stop()
    try:
        calls: list[Any] = [lambda: away.put(DATA), lambda: away.get(SHA256), lambda: list(away.ids())]
        for call in calls:
            with pytest.raises(UnavailableError, match="AWS_ENDPOINT_URL"):
                call()
    finally:
        s3.start()
    assert away.get(away.put(DATA)) == DATA


@pytest.mark.parametrize(
    "url", ["parts", "https://parts", "s3://", "s3://p", "s3://Parts", "s3://parts/a b", "s3:///x"]
)
def test_url_that_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="s3://bucket"):
        MemorySettings(objects_url=url)


@pytest.fixture
def moved(settings: MemorySettings, s3: OwnS3) -> Iterator[Stores]:
    """A home whose photos were moved into a bucket."""
    with Stores.open(settings) as stores:
        for i in range(3):
            stores.captures.add(str(i), "board", stores.images.put(b"photo %d" % i))
    there = settings.model_copy(update={"objects_url": s3.new_bucket("home")})
    with pytest.raises(StorageError, match="refdiff move-photos"):
        Stores.open(there)
    assert move_photos(there) == 3
    with Stores.open(there) as stores:
        yield stores


def test_moved_photos_are_in_the_bucket_alone(moved: Stores, settings: MemorySettings) -> None:
    home = settings.home
    assert not (home / PHOTOS).exists()
    assert len(list(FolderImages(home / PHOTOS_MOVED).ids())) == 3
    assert sorted(moved.images.ids()) == sorted(c.sha256 for c in moved.captures.list())
    with pytest.raises(StorageError, match="set REFDIFF_OBJECTS_URL"):
        Stores.open(settings)
    with pytest.raises(StorageError, match="its photos are in"):
        Stores.open(settings.model_copy(update={"objects_url": "s3://elsewhere"}))
    with pytest.raises(InputError, match="nothing is to be moved"):
        move_photos(moved.settings)
    with pytest.raises(InputError, match="set REFDIFF_OBJECTS_URL"):
        move_photos(settings)


def test_backup_of_photos_in_a_bucket_is_restored_into_a_folder(moved: Stores, tmp_path: Path) -> None:
    made = back_up(moved.settings.home, tmp_path / "b.tar", images=moved.images)
    assert (len([f for f in made.files if f.path.startswith("images/")]), made.damaged) == (3, [])
    again = MemorySettings(home=tmp_path / "again", qdrant_url=None)
    restore(tmp_path / "b.tar", again.home)
    with Stores.open(again) as restored:
        assert {restored.images.get(c.sha256) for c in restored.captures.list()} == {b"photo %d" % i for i in range(3)}


def test_doctor_names_photos_that_the_bucket_lacks_or_has_damaged(moved: Stores, s3: OwnS3) -> None:
    def found(deep: bool = True) -> dict[str, list[str]]:
        return {f.kind: f.names for f in examine(moved.settings, BankContents([], []), deep=deep).findings}

    assert found() == {}
    first, second, _ = moved.captures.list()
    s3.overwrite(moved.images.where(first.sha256), b"another")
    assert moved.images.remove_unused(second.sha256, time.time() + 60)
    orphan = moved.images.put(b"nobody's")
    told = found()
    assert {kind: len(names) for kind, names in told.items()} == {"missing": 1, "damaged": 1, "orphaned": 1}
    assert second.sha256 in told["missing"][0]
    assert first.sha256 in told["damaged"][0]
    assert told["orphaned"] == [orphan]
    s3.stop()
    try:
        assert list(found(deep=False)) == ["unreadable"]
    finally:
        s3.start()
