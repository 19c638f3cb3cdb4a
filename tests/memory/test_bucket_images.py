"""Photos in a bucket: kept by sha256, removed only where nobody relies on them, and moved there with all else in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from own_http import serving
from own_s3 import OwnS3
from pydantic import ValidationError

from refdiff.memory.photos.bucket_images import BucketImages
from refdiff.memory.photos.image_store import FolderImages, ImageStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import PHOTOS, PHOTOS_MOVED, PHOTOS_URL, Stores
from refdiff.memory.upkeep import move
from refdiff.memory.upkeep.backup import back_up, restore
from refdiff.memory.upkeep.doctor import BankContents, examine
from refdiff.memory.upkeep.move import MovedPhotos, move_photos
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


class Killed(BaseException):
    pass


Step = Callable[[BucketImages], Any]


def at_delete(bucket: BucketImages, monkeypatch: pytest.MonkeyPatch, before: Step, after: Step = bool) -> None:
    """Let others do something before and after the photo itself is deleted."""
    delete = bucket._delete

    def deleting(key: str) -> None:
        if key != bucket._key(SHA256):
            delete(key)
            return
        before(BucketImages(bucket.url))
        delete(key)
        after(BucketImages(bucket.url))

    monkeypatch.setattr(bucket, "_delete", deleting)


def old_photo(bucket: BucketImages, s3: OwnS3) -> float:
    """Put it; a point in time after that, and before what follows. The store tells times in seconds."""
    bucket.put(DATA)
    s3.age(bucket.url, 60)
    return time.time() - 30


def keys(bucket: BucketImages, below: str) -> list[str]:
    return [one["Key"] for one in bucket._listed(below)]


USES: dict[str, Step] = {"marked": lambda other: other.mark_used(SHA256), "sent again": lambda other: other.put(DATA)}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_photo_that_is_used_while_it_is_removed_stays(
    bucket: BucketImages, s3: OwnS3, monkeypatch: pytest.MonkeyPatch, use: str, when: str
) -> None:
    since = old_photo(bucket, s3)
    steps: dict[str, Step] = {"before": bool, "after": bool} | {when: USES[use]}
    at_delete(bucket, monkeypatch, steps["before"], steps["after"])
    assert bucket.remove_unused(SHA256, since) is None
    assert bucket.get(SHA256) == DATA
    assert keys(bucket, "removing/") == []


def test_photo_that_is_used_just_before_it_would_be_deleted_is_never_away(
    bucket: BucketImages, s3: OwnS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    since, copy = old_photo(bucket, s3), bucket._copy

    def used_before(source: str, target: str) -> None:
        copy(source, target)
        BucketImages(bucket.url).mark_used(SHA256)

    monkeypatch.setattr(bucket, "_copy", used_before)
    at_delete(bucket, monkeypatch, lambda other: pytest.fail("deleted"))
    assert bucket.remove_unused(SHA256, since) is None
    assert (bucket.get(SHA256), keys(bucket, "removing/")) == (DATA, [])


def test_photo_that_is_sent_again_between_two_who_remove_it_stays(
    bucket: BucketImages, s3: OwnS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is done, so it is written anew; what is deleted then is that."""
    since = old_photo(bucket, s3)

    def gone_and_sent_again(other: BucketImages) -> None:
        assert other.remove_unused(SHA256, since) == len(DATA)
        other.put(DATA)

    at_delete(bucket, monkeypatch, gone_and_sent_again)
    assert bucket.remove_unused(SHA256, since) is None
    assert bucket.get(SHA256) == DATA


@pytest.mark.parametrize("error", [Killed(), UnavailableError("the store is away")])
def test_photo_is_put_back_where_its_removal_broke_off(
    bucket: BucketImages, s3: OwnS3, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    since = old_photo(bucket, s3)

    def use_and_break_off(other: BucketImages) -> None:
        other.mark_used(SHA256)
        raise error

    at_delete(bucket, monkeypatch, bool, use_and_break_off)
    with pytest.raises(type(error)):
        bucket.remove_unused(SHA256, since)
    other = BucketImages(bucket.url)
    assert (list(other.ids()), len(keys(other, "removing/"))) == ([], 1)
    assert [other.put_back(since), other.put_back(since)] == [1, 0]
    assert other.get(SHA256) == DATA
    assert len(keys(other, "removing/")) == 1  # its process may still need it
    assert other.put_back(time.time() + 60) == 0
    assert (list(other.ids()), keys(other, "removing/")) == ([SHA256], [])
    assert other.remove_unused(SHA256, time.time() + 60) == len(DATA)
    assert [one for below in ("images/", "removing/", "used/") for one in keys(other, below)] == []


def test_marks_do_not_pile_up_and_the_newest_stays(bucket: BucketImages, s3: OwnS3) -> None:
    bucket.put(DATA)
    absent = hashlib.sha256(b"never sent").hexdigest()
    assert not bucket.mark_used(absent)
    begun = old_photo(bucket, s3)  # another mark; those that follow are newer than this, the two before are older
    for _ in range(2):
        bucket.mark_used(SHA256)
    used_at = bucket.used_at(SHA256)
    bucket.put_back(begun - 3600)
    assert len(keys(bucket, "used/")) == 5
    bucket.put_back(begun)
    assert len(keys(bucket, f"used/{SHA256}-")) == 2
    assert keys(bucket, f"used/{absent}") == []
    bucket.put_back(time.time() + 60)
    assert len(keys(bucket, "used/")) == 1
    assert (bucket.used_at(SHA256), bucket.remove_unused(SHA256, begun)) == (used_at, None)


def test_marked_file_is_put_back_where_its_removal_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = FolderImages(tmp_path / PHOTOS)
    images.put(DATA)
    os.utime(images.path(SHA256), (0, 0))
    rename = Path.rename

    def used_before(path: Path, target: Path) -> None:
        images.mark_used(SHA256)
        rename(path, target)
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", used_before)
        with pytest.raises(Killed):
            images.remove_unused(SHA256, 1.0)
    assert list(images.ids()) == []
    assert [images.put_back(1.0), images.put_back(1.0)] == [1, 0]
    assert images.get(SHA256) == DATA


def test_photo_that_two_remove_at_once_is_counted_once(bucket: BucketImages, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(DATA)
    copy, since = bucket._copy, time.time() + 60

    def removed_before(source: str, target: str) -> None:
        assert BucketImages(bucket.url).remove_unused(SHA256, since) == len(DATA)
        copy(source, target)

    monkeypatch.setattr(bucket, "_copy", removed_before)
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


def test_photo_whose_bytes_rotted_under_its_checksum_is_damaged_and_no_outage(bucket: BucketImages, s3: OwnS3) -> None:
    bucket.put(DATA)
    s3.rot(bucket.where(SHA256), b"a phot0")
    for call in (bucket.get, bucket.check):
        with pytest.raises(DamagedError, match="send the photo again"):
            call(SHA256)
    with bucket.opened(SHA256) as file:
        assert file.read() == b"a phot0"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "fails .500.*try again later"),
        (503, "fails .503.*try again later"),
        (429, "fails .429.*try again later"),
        (403, "refuses .*403.*credentials"),
        (404, "no such object .*404.*does the bucket exist"),
        (400, "does not take a request .*400.*AWS_ENDPOINT_URL"),
    ],
)
def test_refusal_is_told_by_what_the_store_answers(
    monkeypatch: pytest.MonkeyPatch, status: int, said: str, s3: OwnS3
) -> None:
    monkeypatch.setattr("refdiff.memory.photos.bucket_images._TRIES", 1)
    with answering(status) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        bucket = BucketImages("s3://parts")
        calls: list[Callable[[], Any]] = [lambda: bucket.put(DATA), lambda: list(bucket.ids())]
        for call in calls:
            with pytest.raises(UnavailableError, match=said):
                call()
        if status == 404:  # as some stores answer where there is nothing to delete
            bucket._delete(bucket._key(SHA256))
            assert bucket.remove_unused(SHA256, time.time()) == 0
        else:
            with pytest.raises(UnavailableError, match=said.partition(" ")[0]):
                bucket._delete(bucket._key(SHA256))


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """The URL of a server that answers everything with that status, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


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
    assert move_photos(there) == MovedPhotos(3)
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


def test_mistyped_bucket_is_not_kept_and_a_wrong_one_can_be_corrected(settings: MemorySettings, s3: OwnS3) -> None:
    def opened(url: str) -> None:
        Stores.open(settings.model_copy(update={"objects_url": url})).close()

    wrong, right = s3.new_bucket("wrong"), s3.new_bucket("right")
    with pytest.raises(UnavailableError, match="does the bucket exist"):
        opened(f"{right.partition('/right')[0]}x/right")
    assert not (settings.home / PHOTOS_URL).exists()
    (settings.home / PHOTOS).mkdir()
    with pytest.raises(UnavailableError, match="does the bucket exist"):
        move_photos(settings.model_copy(update={"objects_url": "s3://no-such-bucket-of-ours"}))
    opened(wrong)
    with pytest.raises(StorageError, match=f"its photos are in {wrong}.*delete {settings.home / PHOTOS_URL}"):
        opened(right)
    (settings.home / PHOTOS_URL).unlink()
    opened(right)


@pytest.fixture
def full(settings: MemorySettings, s3: OwnS3) -> MemorySettings:
    """Of a home with three photos in its folder, which are to be moved into a bucket."""
    with Stores.open(settings) as stores:
        for i in range(3):
            stores.captures.add(str(i), "board", stores.images.put(b"photo %d" % i))
    return settings.model_copy(update={"objects_url": s3.new_bucket("home")})


@pytest.mark.parametrize("late", ["before", "after"])
def test_photo_that_arrives_while_photos_are_moved_is_moved_too(
    full: MemorySettings, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Of a process that opened the home before; afterwards, it makes the folder anew."""
    watching, rename = FolderImages(full.home / PHOTOS), move._rename

    def arriving(old: Path, new: Path) -> None:
        if late == "before" and old.name == PHOTOS:
            watching.put(DATA)
        rename(old, new)
        if late == "after" and new.name == PHOTOS_MOVED:
            watching.put(DATA)

    monkeypatch.setattr(move, "_rename", arriving)
    assert move_photos(full) == MovedPhotos(4)
    with Stores.open(full) as stores:
        assert stores.images.get(SHA256) == DATA
        assert len(list(stores.images.ids())) == 4
    assert not (full.home / PHOTOS).exists()
    assert len(list(FolderImages(full.home / PHOTOS_MOVED).ids())) == 4


def test_photo_that_arrives_long_after_the_move_is_told_and_moved(full: MemorySettings) -> None:
    assert move_photos(full) == MovedPhotos(3)
    FolderImages(full.home / PHOTOS).put(DATA)
    with pytest.raises(StorageError, match="refdiff move-photos"):
        Stores.open(full)
    assert move_photos(full) == MovedPhotos(1)
    with Stores.open(full) as stores:
        assert stores.images.get(SHA256) == DATA
    assert len(list(FolderImages(full.home / PHOTOS_MOVED).ids())) == 4


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_move_that_was_killed_is_refused_and_repeated(
    full: MemorySettings, settings: MemorySettings, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    rename, done = move._rename, list[Path]()

    def killed(old: Path, new: Path) -> None:
        if len(done) == renamed:
            raise Killed
        rename(old, new)
        done.append(new)

    with monkeypatch.context() as killing:
        killing.setattr(move, "_rename", killed)
        if renamed < 2:
            with pytest.raises(Killed):
                move_photos(full)
        else:  # nothing is left to be done
            assert move_photos(full) == MovedPhotos(3)
    with pytest.raises(StorageError, match="set REFDIFF_OBJECTS_URL"):
        Stores.open(settings)
    if renamed < 2:
        with pytest.raises(StorageError, match="refdiff move-photos"):
            Stores.open(full)
        with pytest.raises(StorageError, match="its photos are in"):
            move_photos(full.model_copy(update={"objects_url": "s3://elsewhere"}))
        assert move_photos(full) == MovedPhotos(3)
    with Stores.open(full) as stores:
        assert len(list(stores.images.ids())) == 3


def test_damaged_photo_keeps_no_other_from_being_moved(full: MemorySettings) -> None:
    here = FolderImages(full.home / PHOTOS)
    broken = sorted(here.ids())[0]
    here.path(broken).write_bytes(b"another")
    assert move_photos(full) == MovedPhotos(2, [broken])
    with Stores.open(full) as stores:
        assert broken not in stores.images.ids()
    assert FolderImages(full.home / PHOTOS_MOVED).path(broken).read_bytes() == b"another"


def test_photos_that_are_mended_or_removed_while_photos_are_moved(
    full: MemorySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, rename, check = FolderImages(full.home / PHOTOS), move._rename, FolderImages.check
    broken, gone, _ = sorted(here.ids(), key=here.get)
    here.path(broken).write_bytes(b"another")

    def mended(old: Path, new: Path) -> None:
        if old.name == PHOTOS:
            here.put(b"photo 0")
        rename(old, new)

    def pruned(images: FolderImages, sha256: str) -> None:
        images.remove_unused(gone, time.time() + 60)
        check(images, sha256)

    monkeypatch.setattr(move, "_rename", mended)
    monkeypatch.setattr(FolderImages, "check", pruned)
    assert len({*here.ids()}) == 3
    found = move_photos(full)
    assert found.damaged == []
    with Stores.open(full) as stores:
        kept = {*stores.images.ids()}
    assert broken in kept
    assert len(kept) == found.photos == 2


def test_backup_beside_a_prune_names_the_photo_that_went(moved: Stores, tmp_path: Path) -> None:
    last = sorted(moved.images.ids())[-1]

    def prune(step: str, done: int, of: int, note: str = "") -> None:
        moved.images.remove_unused(last, time.time() + 60)

    with pytest.raises(StorageError, match=rf"{last}: removed meanwhile .*back up again"):
        back_up(moved.settings.home, tmp_path / "b.tar", prune, images=moved.images)
    assert not (tmp_path / "b.tar").exists()


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
