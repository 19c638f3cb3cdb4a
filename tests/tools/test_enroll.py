"""Enrolment: accepted and refused photos, part groups and outlier flags."""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.bank_file import BankFile
from refdiff.memory.photos.image_store import FolderImages
from refdiff.memory.records.frames import FrameStore
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import ImageError, InputError, StorageError, UnavailableError
from refdiff.model.images import RgbImage, encode_png, is_image
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import PartKind, render
from refdiff.tools.golden_samples import photos
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import left_out, read_photo
from refdiff.tools.workspace import Workspace

SIZE = (96, 128)


def photo(instance: int, kind: PartKind = "circuit") -> RgbImage:
    return render(kind, 1, instance, size=SIZE, noise_seed=instance).image


def save(folder: Path, name: str, image: RgbImage) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=tmp_path / "cache", working_px=96, max_pixels=1_000_000, max_bytes=1_000_000)
    with Workspace.open(memory=memory, model=model) as workspace:
        yield workspace


def test_enrolling_a_folder_twice_adds_its_photos_once_in_order(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    for name, instance in (("b/2.png", 2), ("a/1.PNG", 1), ("0.png", 0)):
        save(folder, name, photo(instance))
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "readme.txt").write_text("no image")
    seen: list[tuple[int, int]] = []
    first = enroll(workspace, "board", [folder], progress=lambda _, done, total, note="": seen.append((done, total)))
    assert [g.filename for g in first.added] == ["0.png", "1.PNG", "2.png"]
    assert (first.refused, first.n_in_bank, seen[-1]) == ([], 3, (3, 3))
    again = enroll(workspace, "board", [folder])
    assert (again.added, again.refused, again.n_in_bank) == ([], [], 3)
    assert [first.added[0].golden_id in r.reason for r in again.already_there] == [True, False, False]


def test_duplicate_file_in_one_call_is_reported_as_already_enrolled(workspace: Workspace, tmp_path: Path) -> None:
    one, two = save(tmp_path, "one.png", photo(0)), save(tmp_path, "two.png", photo(0))
    result = enroll(workspace, "board", [one, two])
    assert [g.filename for g in result.added] == ["one.png"]
    assert result.already_there[0].path == two
    assert "already enrolled as g-" in result.already_there[0].reason


def _tiff16(level: int) -> bytes:
    ramp = np.linspace(level, level + 8000, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"not an image at all"), "not an image that can be read"),
        (lambda p: p.write_bytes(encode_png(photo(0))[:2000]), "damaged"),
        (lambda p: p.write_bytes(encode_png(np.zeros((8, 200, 3), np.uint8))), "too small"),
        (lambda p: p.write_bytes(encode_png(np.zeros((1001, 1000, 3), np.uint8))), "over the limit"),
        (lambda p: p.write_bytes(b"\0" * 1_000_001), "over the limit of 1,000,000"),
        (lambda p: p.mkdir(), "no images in this folder"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: None, "no such file or folder"),
    ],
)
def test_invalid_photo_is_refused_with_the_reason_and_others_enrolled(
    workspace: Workspace, tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    bad = tmp_path / "bad.png"
    make(bad)
    good = save(tmp_path, "good.png", photo(0))
    result = enroll(workspace, "board", [bad, good])
    assert [r.path for r in result.refused] == [bad]
    assert reason in result.refused[0].reason
    assert result.n_in_bank == 1  # the others go on


def test_files_in_a_folder_that_are_no_images_are_counted_and_named(workspace: Workspace, tmp_path: Path) -> None:
    folder = save(tmp_path, "good/1.png", photo(0)).parent
    for i, name in enumerate(("2.jfif", "3.JPE", "4.jpg")):
        Image.fromarray(photo(1 + i)).save(folder / name, "JPEG")
    for i, name in enumerate(("bare", "x.dat")):  # images by their content
        Image.fromarray(photo(4 + i)).save(folder / name, "PNG")
    os.mkfifo(folder / "pipe")
    for name in ("5.heic", "6.HEIC", "7.avif", "sub/8.cr2", "readme.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    result = enroll(workspace, "board", [folder])
    assert [g.filename for g in result.added] == ["1.png", "2.jfif", "3.JPE", "4.jpg", "bare", "x.dat"]
    assert result.refused == []
    assert len(result.others) == 6
    said = left_out(result.others)
    assert said.startswith("6 files are not in an image format that can be read (2 .heic, ")
    assert said.endswith("; save photos as PNG or JPEG")
    (folder / "only").mkdir()
    (folder / "only" / "x.heic").write_bytes(b"x")
    assert "(1 .heic: x.heic); save" in enroll(workspace, "board", [folder / "only"]).refused[0].reason


def test_links_out_of_the_folder_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    outside = save(tmp_path, "outside/secret.png", photo(0))
    folder = save(tmp_path, "good/1.png", photo(1)).parent
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    (folder / "inside.png").symlink_to(folder / "1.png")
    result = enroll(workspace, "board", [folder])
    assert [len(result.added), len(result.already_there)] == [1, 1]
    assert sorted(r.path.name for r in result.refused) == ["link.png", "linked"]


def test_odd_file_name_is_sanitised(workspace: Workspace, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"))
    path.write_bytes(encode_png(photo(0)))
    result = enroll(workspace, "board", [path])
    assert result.added[0].filename == "� [31m.png"
    assert workspace.bank.list("board") == result.added


def test_photos_with_nearly_the_same_pixels_get_one_part_group(workspace: Workspace, tmp_path: Path) -> None:
    image = photo(0)
    brighter_pixel = image.copy()
    brighter_pixel[10:12, 10:12] ^= 3
    paths = [save(tmp_path, "1.png", image), save(tmp_path, "2.png", brighter_pixel), save(tmp_path, "3.png", photo(1))]
    first = enroll(workspace, "board", paths[:1]).added[0]
    result = enroll(workspace, "board", paths)  # a later call finds the earlier photo
    assert [g.part_group for g in result.added] == [first.golden_id, None]
    assert "one part" in result.notes[0]
    other = enroll(workspace, "other", paths[1:2])  # another product's photos do not count
    assert other.added[0].part_group is None


def test_given_part_group_overrides_the_detected_one_with_a_note(workspace: Workspace, tmp_path: Path) -> None:
    image = photo(0)
    almost = image.copy()
    almost[0, 0] ^= 1
    enroll(workspace, "board", [save(tmp_path, "1.png", image)])
    result = enroll(workspace, "board", [save(tmp_path, "2.png", almost)], part_group="unit 7")
    assert result.added[0].part_group == "unit 7"
    assert "is it the same part?" in result.notes[0]


def test_outlier_among_the_goldens_is_flagged_and_stays_enrolled(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    for i in range(9):
        save(folder, f"{i}.png", photo(i))
    save(folder, "wrong.png", photo(0, "bottle"))
    result = enroll(workspace, "board", [folder])
    assert [(g.filename, g.status) for g in result.flagged] == [("wrong.png", "flagged")]
    assert "outlier: similarity" in result.flagged[0].note
    assert result.n_in_bank == 10
    # a person looked at it: the next enrolment leaves it alone
    workspace.bank.set_status(result.flagged[0].golden_id, "active", "looked at")
    assert enroll(workspace, "board", [save(tmp_path, "10.png", photo(10))]).flagged == []


def test_first_16_bit_golden_fixes_the_intensity_window(workspace: Workspace, tmp_path: Path) -> None:
    for name, level in (("1.tif", 1000), ("2.tif", 9000)):
        (tmp_path / name).write_bytes(_tiff16(level))
    with pytest.raises(ImageError, match="intensity window"):
        record_capture(workspace.stores, "7", "ir", tmp_path / "1.tif", settings=workspace.model_settings)
    enroll(workspace, "ir", [tmp_path / "1.tif"])
    product = workspace.stores.products.get("ir")
    assert product is not None
    window = product.intensity_window
    assert window is not None
    assert window[0] < 1000 < 9000 < window[1]
    enroll(workspace, "ir", [tmp_path / "2.tif"])
    assert workspace.stores.products.ensure("ir").intensity_window == window
    assert (
        record_capture(workspace.stores, "7", "ir", tmp_path / "1.tif", settings=workspace.model_settings).part_id
        == "7"
    )


@pytest.mark.parametrize(
    ("kind", "method", "works", "enrolled"),
    [(FolderImages, "put", 2, 2), (BankFile, "put", 2, 2), (FrameStore, "put", 2, 3), (GoldenBank, "notes", 0, 4)],
    ids=["photo", "golden", "place", "afterwards"],
)
def test_full_disk_while_enrolling_tells_how_many_goldens_are_in_the_bank(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    method: str,
    works: int,
    enrolled: int,
) -> None:
    paths = [save(tmp_path, f"{i}.png", photo(i)) for i in range(4)]
    write, calls = getattr(kind, method), itertools.count()

    def full(*arguments: Any) -> Any:
        if next(calls) >= works:
            raise StorageError("the disk is full")
        return write(*arguments)

    with monkeypatch.context() as m:
        m.setattr(kind, method, full)
        with pytest.raises(StorageError, match=rf"disk is full \({enrolled} photos were enrolled before"):
            enroll(workspace, "board", paths)
    assert [g.filename for g in workspace.bank.list("board")] == [p.name for p in paths[:enrolled]]
    rest = enroll(workspace, "board", paths)
    assert ([g.filename for g in rest.added], len(rest.already_there)) == ([p.name for p in paths[enrolled:]], enrolled)
    assert {g.golden_id for g in workspace.bank.list()} == workspace.stores.frames.of("board").keys()


def test_outlier_of_an_enrolment_that_failed_is_flagged_by_the_next_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(tmp_path, "wrong.png", photo(0, "bottle")), *(save(tmp_path, f"{i}.png", photo(i)) for i in range(9))]
    put, left = FolderImages.put, iter([True] * 5)

    def full(self: FolderImages, data: bytes) -> str:
        if not next(left, False):
            raise StorageError("images: the disk is full")
        return put(self, data)

    with monkeypatch.context() as m:
        m.setattr(FolderImages, "put", full)
        with pytest.raises(StorageError):
            enroll(workspace, "board", paths)
    assert [g.filename for g in enroll(workspace, "board", paths).flagged] == ["wrong.png"]
    assert enroll(workspace, "board", paths).flagged == []


def test_enrolment_stores_the_photo_before_the_golden(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, "1.png", photo(0))

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(type(workspace.bank), "add", killed)
        with pytest.raises(KeyboardInterrupt):
            enroll(workspace, "board", [path])
    # nothing was acknowledged, and nothing points at a photo that is not there
    assert workspace.bank.count("board") == 0
    golden = enroll(workspace, "board", [path]).added[0]
    assert workspace.stores.images.get(golden.sha256) == path.read_bytes()


def test_lost_photo_of_a_golden_is_restored_by_enrolling_again(workspace: Workspace, tmp_path: Path) -> None:
    path = save(tmp_path, "1.png", photo(0))
    golden = enroll(workspace, "board", [path]).added[0]
    workspace.stores.images.path(golden.sha256).unlink()
    enroll(workspace, "board", [path])
    assert workspace.stores.images.get(golden.sha256) == path.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [{"scale_mm_per_px": -1.0}, {"scale_mm_per_px": float("nan")}, {"part_group": " "}, {"station": "a\0b"}],
)
def test_invalid_enrolment_arguments_are_refused(
    workspace: Workspace, tmp_path: Path, arguments: dict[str, object]
) -> None:
    path = save(tmp_path, "1.png", photo(0))
    with pytest.raises(InputError):
        enroll(workspace, "board", [path], **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="product"):
        enroll(workspace, "../board", [path])


@pytest.mark.parametrize("name", [".", "missing.png", "/dev/null"])
def test_read_photo_refuses_paths_that_are_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError):
        read_photo(tmp_path / name, ModelSettings())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, UnavailableError), (errno.ENFILE, UnavailableError), (errno.ENOMEM, UnavailableError),
        (errno.EACCES, ImageError), (errno.EIO, ImageError),
    ],
)  # fmt: skip
def test_photo_that_the_machine_cannot_open_just_now_is_not_called_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    path = save(tmp_path, "good.png", photo(0))

    def refused(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(photos, "_open_at_once", refused)
    with pytest.raises(kind):
        read_photo(path, ModelSettings())
    monkeypatch.setattr("builtins.open", refused)
    if kind is UnavailableError:
        with pytest.raises(kind):
            is_image(path)
    else:
        assert not is_image(path)
