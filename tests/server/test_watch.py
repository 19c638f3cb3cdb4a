"""`refdiff watch`: the watched folder, file lines, messages, and a process that dies after any step."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from own_http import serving

from refdiff.agent import request as request_module
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import LlmReading
from refdiff.agent.service import InspectionService
from refdiff.agent.settings import AgentSettings
from refdiff.agent.work.watch import Watch
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.watch import WatchJournal
from refdiff.memory.locks import hold_lock
from refdiff.memory.records.inspections import InspectionStore
from refdiff.model.errors import BankBusyError, InputError, StorageError
from refdiff.model.images import RgbImage
from refdiff.server.cli import invocation, main
from refdiff.server.cli import watch as cli_watch
from refdiff.server.watch import folder as folder_module
from refdiff.server.watch import names as names_module
from refdiff.server.watch import watcher as line_module
from refdiff.server.watch.folder import GROWING_S, WatchedFolder
from refdiff.server.watch.jsonl import JsonLinesFile
from refdiff.server.watch.names import NamePattern
from refdiff.server.watch.watcher import FolderWatcher, WatchOptions
from refdiff.server.watch.webhook import Webhook, sign, signing_key
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.workspace import Workspace

from .conftest import SIZE, bad_photo, good_photo

PATTERN = r"(?P<product>[a-z]+)_(?P<part>\d+)"
SECRET = "a secret that is long enough"


@pytest.fixture
def camera(ready: Path) -> Path:
    folder = ready / "camera"
    folder.mkdir()
    return folder


def drop(camera: Path, name: str, data: bytes, age_s: float = 10.0) -> None:
    """A file that has been complete for a while."""
    path = camera / name
    path.write_bytes(data)
    then = time.time() - age_s
    os.utime(path, (then, then))


def told(ready: Path) -> list[dict[str, Any]]:
    text = (ready / "lines.jsonl").read_text(encoding="utf-8") if (ready / "lines.jsonl").exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def watch(camera: Path, *extra: str) -> int:
    lines = str(camera.parent / "lines.jsonl")
    return main.run(
        ["watch", str(camera), "--pattern", PATTERN, "--judge", "never", "--once", "--lines", lines, *extra]
    )


def filed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main.run(["inspections", "list", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["inspections"]


# ---- the whole way ----


def test_watched_photos_are_inspected_in_order_and_other_files_quarantined(
    camera: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        drop(camera, f"board_{i}.png", bad_photo(i) if i == 3 else good_photo(50 + i), age_s=60 - i)
    drop(camera, "board_90.png", good_photo(1)[:900], age_s=30)
    drop(camera, "notes.png", b"hello", age_s=29)
    drop(camera, "screw_1.png", good_photo(1), age_s=28)
    drop(camera, ".hidden.png", b"x")
    drop(camera, "board_6.png.tmp", b"x")
    capsys.readouterr()
    assert watch(camera, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    lines = told(camera.parent)
    assert [t["part_id"] for t in lines[:5]] == ["0", "1", "2", "3", "4"]
    assert [t["seq"] for t in lines] == sorted(t["seq"] for t in lines)
    assert lines[3]["verdict"] != "PASS"
    assert lines[3]["findings"]
    reasons = {t["file"]: t["reason"] for t in lines if t["event"] == "quarantined"}
    assert set(reasons) == {"board_90.png", "notes.png", "screw_1.png"}
    assert "damaged" in reasons["board_90.png"]
    assert "pattern" in reasons["notes.png"]
    assert "refdiff enroll --product screw " in reasons["screw_1.png"]
    assert (camera / "quarantine" / "notes.png.reason.txt").read_text().strip() == reasons["notes.png"]
    assert sorted(p.name for p in camera.iterdir() if p.is_file()) == [".hidden.png", "board_6.png.tmp"]
    assert len(list((camera / "done").iterdir())) == 5
    assert (summary["filed"], summary["quarantined"], summary["waiting"]) == (5, 3, 0)
    assert len(filed(capsys)) == 5
    assert list((camera.parent / "home" / "inspections").glob("*/*")) == []  # drawn when somebody asks
    assert main.run(["inspections", "show", lines[3]["inspection_id"], "--json", "--html", "page.html"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert all(Path(p).is_file() for p in shown["artefacts"].values())
    assert Path("page.html").read_bytes() == Path(shown["artefacts"]["html"]).read_bytes()


def test_quarantined_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    folder = WatchedFolder(tmp_path, settle_s=0)
    for _ in range(3):
        drop(tmp_path, "a.b.png", b"x")
        folder.quarantine(folder.complete()[0], "no photo")
    expected = {f"{n}{s}" for n in ("a.b.png", "a.b-2.png", "a.b-3.png") for s in ("", ".reason.txt")}
    assert {p.name for p in (tmp_path / "quarantine").iterdir()} == expected


@pytest.mark.parametrize("name", ["done", "quarantine"])
@pytest.mark.parametrize("kind", ["folder elsewhere", "folder inside", "dangling", "file"])
def test_sub_folder_that_is_a_link_or_a_file_is_refused_at_the_start(tmp_path: Path, name: str, kind: str) -> None:
    """Else whoever may write to the camera's folder could have files of any name and content moved anywhere."""
    camera, victim = tmp_path / "camera", tmp_path / "victim"
    victim.mkdir()
    camera.mkdir()
    target = {"folder elsewhere": victim, "folder inside": camera / "other", "dangling": tmp_path / "nowhere"}.get(kind)
    (camera / "other").mkdir()
    if target is None:
        (camera / name).write_bytes(b"")
    else:
        (camera / name).symlink_to(target, target_is_directory=True)
    with pytest.raises(InputError, match=f"{name}: a link or a file"):
        WatchedFolder(camera)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["done", "quarantine"])
def test_sub_folder_that_becomes_a_link_while_watching_receives_nothing(tmp_path: Path, name: str) -> None:
    camera, victim = tmp_path / "camera", tmp_path / "victim"
    for made in (camera, victim):
        made.mkdir()
    folder = WatchedFolder(camera, settle_s=0)
    drop(camera, "authorized_keys.png", b"ssh-ed25519 ...")
    (identity,) = folder.complete()
    (camera / name).rmdir()
    (camera / name).symlink_to(victim, target_is_directory=True)
    with pytest.raises(InputError, match="a link or a file"):
        folder.finish(identity) if name == "done" else folder.quarantine(identity, "no photo")
    assert list(victim.iterdir()) == []
    assert folder.is_there(identity)


@pytest.mark.parametrize("link", ["authorized_keys.png", "authorized_keys.png.reason.txt"])
def test_links_inside_quarantine_are_not_followed(tmp_path: Path, link: str) -> None:
    camera, victim = tmp_path / "camera", tmp_path / "victim"
    camera.mkdir()
    victim.write_text("mine")
    folder = WatchedFolder(camera, settle_s=0)
    drop(camera, "authorized_keys.png", b"ssh-ed25519 ...")
    (identity,) = folder.complete()
    (camera / "quarantine" / link).symlink_to(victim)
    folder.quarantine(identity, "no photo")
    assert victim.read_text() == "mine"
    assert not folder.is_there(identity)


def test_sub_folder_removed_while_watching_is_made_again(tmp_path: Path) -> None:
    folder = WatchedFolder(tmp_path, settle_s=0)
    drop(tmp_path, "a.png", b"x")
    (tmp_path / "done").rmdir()
    folder.finish(folder.complete()[0])
    assert (tmp_path / "done" / "a.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    "pattern", [r"(?P<part>(?:\w+\d*)+)-x", r"(?P<part>(a|aa)+)b", r"(?P<part>(?:a*)*(?:a*)*c)", r"(?P<part>(.*,)*.*;)"]
)
def test_pattern_that_backtracks_is_given_up_after_its_time(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MATCH_S", 0.05)
    names = NamePattern.parse(pattern, "board")
    for name in ("a" * 200, "a," * 100):
        began = time.perf_counter()
        with pytest.raises(InputError, match="pattern"):
            names.read(f"{name}.png")
        assert time.perf_counter() - began < 5


def test_files_of_the_camera_that_are_no_photos_are_left_alone_and_counted(
    camera: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ("board_1.xml", "board_2.xml", "camera.log", "Thumbs.db", "board_3.png.tmp", "2026-11-28/board_4.png")
    for name in others:
        (camera / name).parent.mkdir(exist_ok=True)
        drop(camera, name, good_photo(4) if name.startswith("2026") else b"<x/>")
    drop(camera, "board_5.raw", good_photo(5))  # a photo with another suffix is a photo
    capsys.readouterr()
    assert watch(camera, "--json") == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["filed"], summary["quarantined"]) == (1, 0)
    assert summary["left_alone"] == {".db": 1, ".log": 1, ".xml": 2, "sub-folders": 1, "unfinished": 1}
    assert "1 sub-folders are not watched (2026-11-28); to inspect the photos in them too: --recursive" in err
    assert err.count(".xml are only counted") == 1
    assert all((camera / name).is_file() for name in others)
    assert [t["file"] for t in told(camera.parent)] == ["board_5.raw"]


def test_recursive_watch_inspects_date_folders_and_keeps_their_names(
    camera: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in (("2026-11-27/board_1.png", good_photo(1)), ("2026-11-28/a/board_2.png", good_photo(2)),
                       ("2026-11-28/board_3.png", good_photo(3)[:900]), ("board_4.png", good_photo(4))):  # fmt: skip
        (camera / name).parent.mkdir(exist_ok=True, parents=True)
        drop(camera, name, data, age_s=60)
    (camera / "linked").symlink_to(camera.parent / "photos")
    capsys.readouterr()
    assert watch(camera, "--recursive", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["filed"], summary["quarantined"], summary["left_alone"]) == (3, 1, {"links": 1})
    assert {t["part_id"] for t in told(camera.parent) if t["event"] == "filed"} == {"1", "2", "4"}
    inside = sorted(p.relative_to(camera).as_posix() for p in camera.rglob("*") if p.is_file())
    assert inside == [
        "done/2026-11-27/board_1.png", "done/2026-11-28/a/board_2.png", "done/board_4.png",
        "quarantine/2026-11-28/board_3.png", "quarantine/2026-11-28/board_3.png.reason.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("restarted", [False, True])
def test_upload_that_completes_in_quarantine_is_taken_back_and_inspected(
    camera: Path, capsys: pytest.CaptureFixture[str], restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = good_photo(7)
    upload = open(camera / "board_7.png", "wb")  # noqa: SIM115  the writer holds the file all along
    upload.write(data[:900])
    upload.flush()
    monkeypatch.setattr(folder_module, "PATIENCE_S", 0.6)
    if restarted:
        assert watch(camera) == 0
        assert (camera / "quarantine" / "board_7.png").exists()
    real = WatchedFolder.take_back

    def write_on_and_take_back(folder: WatchedFolder) -> list[str]:
        if (camera / "quarantine" / "board_7.png").exists() and upload.tell() == 900:
            upload.write(data[900:])
            upload.flush()
        return real(folder)

    monkeypatch.setattr(WatchedFolder, "take_back", write_on_and_take_back)
    assert watch(camera) == 0
    upload.close()
    assert [(t["event"], t["part_id"]) for t in told(camera.parent)] == [("quarantined", "7"), ("filed", "7")]
    assert (camera / "done" / "board_7.png").read_bytes() == data
    assert list((camera / "quarantine").iterdir()) == []
    assert "taken back" in capsys.readouterr().err


def test_file_that_was_seen_growing_gets_more_patience(tmp_path: Path) -> None:
    clock = [100.0]
    folder = WatchedFolder(tmp_path, settle_s=0.5, now=lambda: clock[0])
    (tmp_path / "1.png").write_bytes(b"a third")
    folder.complete()
    (tmp_path / "1.png").write_bytes(b"two thirds, and a pause of 9 seconds")
    for wait_s, grows in ((9.0, True), (40.0, True), (30.0, False)):
        folder.complete()
        clock[0] += wait_s
        assert folder.may_still_grow(folder.complete()[0]) is grows, wait_s


def test_part_photographed_again_is_inspected_again(camera: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop(camera, "board_1.png", good_photo(60), age_s=9)
    assert watch(camera) == 0
    drop(camera, "board_1.png", good_photo(60), age_s=8)  # the same picture, taken again
    drop(camera, "board_2.png", good_photo(61))
    assert watch(camera, "--delete") == 0
    assert [t["part_id"] for t in told(camera.parent)] == ["1", "2", "1"]
    assert [p.name for p in (camera / "done").iterdir()] == ["board_1.png"]
    assert len({r["inspection_id"] for r in filed(capsys)}) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "--product", "board"], 65, "no such folder"),
        (["camera", "--pattern", "("], 65, "invalid regular expression"),
        (["camera", "--pattern", r"\d+", "--product", "board"], 65, "a group named part"),
        (["camera"], 65, "the product is unknown"),
        (["camera", "--product", "screw"], 65, "product 'screw' has no golden samples"),
        (["camera", "--product", "board", "--webhook", "http://host/"], 64, "REFDIFF_WEBHOOK_SECRET"),
        (["camera", "--product", "board", "--webhook", "http://[::1"], 65, "give one like https://"),
        (["camera", "--product", "board", "--webhook", "http://host:99999/"], 65, "give one like https://"),
        (["camera", "--product", "board", "--webhook", "ftp://host/"], 65, "give one like https://"),
    ],
)
def test_watch_with_wrong_arguments_is_refused_before_watching(
    camera: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    if code != 64:
        monkeypatch.setenv("REFDIFF_WEBHOOK_SECRET", SECRET)
    assert main.run(["watch", *arguments, "--once"]) == code
    assert words in capsys.readouterr().err


def test_watched_folder_resolves_links_and_refuses_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camera").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "camera")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    names = ("camera", "link", "camera/../link", "./camera/")
    assert {WatchedFolder(Path(n)).root for n in names} == {(tmp_path / "camera").resolve()}
    with pytest.raises(InputError, match="no such folder"):
        WatchedFolder(tmp_path / "loop")


def test_folder_watched_by_another_process_is_refused(camera: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with invocation.begin(as_json=False):
        lock = cli_watch._journal_base(camera).with_suffix(".lock")
    with hold_lock(lock, BankBusyError("held")):
        assert watch(camera) == 69
    assert "watched by another process" in capsys.readouterr().err


def test_folder_is_watched_beside_a_server_that_inspects(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    drop(camera, "board_7.png", good_photo(57))
    with InspectionService.open() as service:
        job = service.submit(part_id="8", product="board", photo=Upload("p.png", good_photo(58)), by="ann")
        assert watch(camera) == 0
        assert service.wait(job.inspection_id, 120).state == "done"
        filed = service.stores.inspections.list()
        assert sorted(r.part_id for r in filed) == ["7", "8"]
        assert service.stores.audit.verify_store(photos=True).problem is None


# ---- the pieces ----


@pytest.mark.parametrize(
    ("pattern", "product", "name", "wanted"),
    [
        (r"(?P<part>.+)", "board", "4412.png", ("4412", "board")),
        (r"(?P<part>.+)", "board", "#4412.tiff", ("4412", "board")),
        (PATTERN, None, "board_0042.png", ("0042", "board")),
        (PATTERN, "other", "board_0042.png", ("0042", "board")),
        (r"(?:(?P<product>[a-z]+)_)?(?P<part>\d+)", "other", "0042.png", ("0042", "other")),
        (r"cam\d-(?P<part>[^-]+)-.*", "board", "cam1-A7-20260131.jpg", ("A7", "board")),
    ],
)
def test_part_and_product_are_read_from_the_file_name(
    pattern: str, product: str | None, name: str, wanted: tuple[str, str]
) -> None:
    assert NamePattern.parse(pattern, product).read(name) == wanted


@pytest.mark.parametrize("name", ["board_x.png", "board_1_2.png", "_1.png", ".png"])
def test_file_name_that_does_not_match_the_pattern_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="pattern"):
        NamePattern.parse(PATTERN, None).read(name)


def test_file_is_complete_once_unchanged_for_the_settle_time(tmp_path: Path) -> None:
    clock = [100.0]
    folder = WatchedFolder(tmp_path, settle_s=0.5, now=lambda: clock[0])
    path = tmp_path / "1.png"
    path.write_bytes(b"half")
    assert folder.complete() == []
    assert folder.unsettled == 1
    clock[0] += 0.4
    path.write_bytes(b"half and the rest")  # still being written: the half second begins again
    assert folder.complete() == []
    clock[0] += 0.4
    assert folder.complete() == []
    clock[0] += 0.2
    assert [i.name for i in folder.complete()] == ["1.png"]
    assert folder.may_still_grow(folder.complete()[0])
    clock[0] += 10
    assert folder.may_still_grow(folder.complete()[0])  # it was seen growing: its writer may pause
    clock[0] += GROWING_S
    assert not folder.may_still_grow(folder.complete()[0])


def test_files_come_in_order_of_modification_time(tmp_path: Path) -> None:
    for name, age in (("b.png", 30), ("a-10.png", 20), ("a-9.png", 20), ("c.png", 40)):
        drop(tmp_path, name, b"x", age)
    now = time.time() - 20
    for name in ("a-10.png", "a-9.png"):
        os.utime(tmp_path / name, (now, now))
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    assert [i.name for i in WatchedFolder(tmp_path).complete()] == ["c.png", "b.png", "a-9.png", "a-10.png"]


def test_torn_last_line_is_removed_and_no_line_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    one, two = {"inspection_id": "one"}, {"inspection_id": "two", "text": "Prüfung"}
    with JsonLinesFile(path) as lines:
        lines.write([one])
    with open(path, "ab") as file:
        file.write(b'{"inspection_id": "tw')
    with JsonLinesFile(path) as lines:
        lines.write([one, two])
    assert [json.loads(t) for t in path.read_text(encoding="utf-8").splitlines()] == [one, two]


def test_webhook_signature_matches_the_standard_webhooks_example() -> None:
    """The example of the Standard Webhooks specification."""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# ---- a process that dies ----


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is done."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool, nth: int = 2) -> Iterator[list[int]]:
    """The nth call of a method is the last thing that happens, before or after it does its work."""
    original, calls = getattr(owner, name), [0]

    def die(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] >= nth and not after:
            raise Killed
        result = original(*args, **kwargs)
        if calls[0] >= nth:
            raise Killed
        return result

    with monkeypatch.context() as m:
        m.setattr(owner, name, die)
        yield calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (WatchJournal, "claim"), (request_module, "record_capture"), (InspectionStore, "file"), (WatchJournal, "end"),
        (JsonLinesFile, "write"), (WatchJournal, "done"), (WatchedFolder, "finish"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)  # fmt: skip
def test_watch_killed_at_any_step_loses_and_repeats_no_photo(
    camera: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    for i in range(2):
        drop(camera, f"board_{i}.png", good_photo(70 + i), age_s=60 - i)
    with dying(monkeypatch, owner, name, after=after) as calls, pytest.raises(Killed):
        watch(camera, "--workers", "1")
    assert calls[0] >= 2
    assert watch(camera, "--workers", "1") == 0
    assert [t["part_id"] for t in told(camera.parent)] == ["0", "1"]
    records = filed(capsys)
    assert sorted(r["part_id"] for r in records) == ["0", "1"]
    assert {r["inspection_id"] for r in records} == {t["inspection_id"] for t in told(camera.parent)}
    assert sorted(p.name for p in (camera / "done").iterdir()) == ["board_0.png", "board_1.png"]


def test_photo_that_kills_the_process_repeatedly_is_quarantined(
    camera: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_module, "MAX_STARTS", 2)
    drop(camera, "board_0.png", good_photo(70), age_s=60)
    drop(camera, "board_1.png", good_photo(71), age_s=59)
    for _ in range(2):
        with dying(monkeypatch, request_module, "record_capture", after=False, nth=1), pytest.raises(Killed):
            watch(camera, "--workers", "1")
    assert watch(camera, "--workers", "1") == 0
    assert [(t["event"], t["part_id"]) for t in told(camera.parent)] == [("quarantined", "0"), ("filed", "1")]
    assert "interrupted 2 times" in told(camera.parent)[0]["reason"]


def test_photo_whose_inspection_cannot_be_resumed_is_quarantined(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(camera, "board_0.png", good_photo(70), age_s=60)
    drop(camera, "board_1.png", good_photo(71), age_s=59)
    with dying(monkeypatch, InspectionStore, "file", after=False, nth=1), pytest.raises(Killed):
        watch(camera, "--workers", "1")

    def gone(_: Inspector, inspection_id: str) -> None:
        raise InputError(f"{inspection_id}: its golden sample is retired")

    monkeypatch.setattr(Inspector, "resume", gone)
    assert watch(camera, "--workers", "1") == 0
    assert [(t["event"], t["part_id"]) for t in told(camera.parent)] == [("quarantined", "0"), ("filed", "1")]
    assert "is retired" in told(camera.parent)[0]["reason"]


def test_full_disk_pauses_the_watch_and_loses_no_photo(
    camera: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_module, "BACKOFF", Backoff(0.01, 0.01))
    drop(camera, "board_0.png", good_photo(70))
    original, fails = request_module.record_capture, [2]

    def full(*args: Any, **kwargs: Any) -> Any:
        if fails[0]:
            fails[0] -= 1
            raise StorageError("the disk is full")
        return original(*args, **kwargs)

    monkeypatch.setattr(request_module, "record_capture", full)
    assert watch(camera) == 0  # retried until it had room
    assert "retrying" in capsys.readouterr().err
    drop(camera, "board_1.png", good_photo(71))
    fails[0] = 99
    assert watch(camera) == 69
    assert (camera / "board_1.png").is_file()
    fails[0] = 0
    assert watch(camera) == 0
    assert [t["part_id"] for t in told(camera.parent)] == ["0", "1"]


# ---- messages ----


class Receiver(BaseHTTPRequestHandler):
    """Answers with the statuses given, 204 after the last; keeps what it was sent."""

    statuses: ClassVar[list[int]] = []
    got: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.statuses.pop(0) if self.statuses else 204
        self.got.append((status, dict(self.headers), body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Receiver.got, Receiver.statuses = [], []
    monkeypatch.setattr("refdiff.server.watch.webhook.BACKOFF", Backoff(0.02, 60.0))
    monkeypatch.setenv("REFDIFF_WEBHOOK_SECRET", SECRET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"


def test_webhook_messages_are_signed_retried_and_in_order(
    camera: Path, capsys: pytest.CaptureFixture[str], receiver: str
) -> None:
    Receiver.statuses = [500, 404, 401, 429, 204, 400]  # down, being deployed anew, busy; the second message is bad
    for i in range(3):
        drop(camera, f"board_{i}.png", good_photo(80 + i), age_s=60 - i)
    assert watch(camera, "--webhook", receiver, "--json") == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["webhook"] == {"pending": 0, "sent": 2, "refused": 1}
    assert "is unavailable (HTTP 500)" in output.err
    assert "refused" in output.err
    ids = [t["inspection_id"] for t in told(camera.parent)]
    got = [(status, headers["webhook-id"]) for status, headers, _ in Receiver.got]
    wanted_got = [(s, ids[0]) for s in (500, 404, 401, 429, 204)] + [(400, ids[1]), (204, ids[2])]
    assert got == wanted_got
    for _, headers, body in Receiver.got:
        wanted = sign(SECRET.encode(), headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == wanted
    assert [json.loads(b) for s, _, b in Receiver.got if s == 204] == [told(camera.parent)[i] for i in (0, 2)]


def test_webhook_messages_wait_while_the_receiver_is_down(tmp_path: Path, receiver: str) -> None:
    notes: list[str] = []
    with WatchJournal(tmp_path / "j.sqlite") as journal:
        (tmp_path / "1.png").write_bytes(b"x")
        identity = WatchedFolder(tmp_path, settle_s=0).complete()[0]
        photo = journal.claim(identity, "insp-1", "1", "board")
        journal.end(photo.seq, "filed", {"inspection_id": "insp-1"}, send=True)
        with Webhook(journal, "http://127.0.0.1:9/", SECRET, notes.append) as closed_port:
            closed_port.drain(0.2)
        assert "is unavailable (ConnectError)" in notes[0]
        assert journal.count_messages() == {"pending": 1}
    with WatchJournal(tmp_path / "j.sqlite") as journal:  # another process, later
        with Webhook(journal, receiver, SECRET, notes.append) as webhook:
            webhook.drain(10)
        assert journal.count_messages() == {"sent": 1}


def test_webhook_sender_survives_an_unexpected_error(
    tmp_path: Path, receiver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refdiff.server.watch.webhook._PAUSE_S", 0.05)
    original, fails, notes = WatchJournal.next_message, [1], list[str]()

    def broken(journal: WatchJournal) -> Any:
        if threading.current_thread().name == "webhook" and fails[0]:
            fails[0] -= 1
            raise RuntimeError("odd")
        return original(journal)

    monkeypatch.setattr(WatchJournal, "next_message", broken)
    with WatchJournal(tmp_path / "j.sqlite") as journal:
        (tmp_path / "1.png").write_bytes(b"x")
        photo = journal.claim(WatchedFolder(tmp_path, settle_s=0).complete()[0], "insp-1", "1", "board")
        journal.end(photo.seq, "filed", {"inspection_id": "insp-1"}, send=True)
        with Webhook(journal, receiver, SECRET, notes.append) as webhook:
            webhook.drain(10)
        assert journal.count_messages() == {"sent": 1}
    assert notes == ["webhook: internal error (RuntimeError: odd); retrying"]


# ---- the language model ----


class Reader:
    """A model that reads a defect everywhere; it must not be asked to drive."""

    via, model, url = "embedded", "reader", None
    weights: ClassVar[dict[str, str]] = {"language": "0" * 64}

    def __init__(self, picture: Callable[[str], RgbImage]) -> None:
        self.read: list[tuple[int, ...]] = []
        self._picture = picture

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        self.read += [self._picture(reference).shape, self._picture(query).shape]
        return LlmReading(defect=True, type="stain", confidence=0.9)


def test_judge_on_anomaly_reads_only_parts_that_would_not_pass(camera: Path) -> None:
    drop(camera, "board_0.png", good_photo(100), age_s=60)
    drop(camera, "board_1.png", bad_photo(100), age_s=50)
    with (
        WatchJournal(camera.parent / "j.sqlite") as journal,
        Workspace.open() as workspace,
        Inspector(workspace, AgentSettings(llm="off"), unattended=True) as inspector,
        JsonLinesFile(camera.parent / "lines.jsonl") as lines,
    ):
        reader, stored = Reader(workspace.picture), len(list(workspace.stores.images.ids()))
        inspector._driver, inspector.no_model = reader, ""  # type: ignore[assignment]
        options = WatchOptions(NamePattern.parse(PATTERN, None), judge="on-anomaly")
        FolderWatcher(WatchedFolder(camera), journal, inspector, options, lines=lines).run(once=True)
        good, bad = told(camera.parent)
        assert (good["verdict"], good["read"], good["judge"]) == ("PASS", False, "fallback")
        assert (bad["read"], bad["judge"]) == (True, "embedded")
        assert bad["verdict"] != "PASS"
        assert reader.read == [(*SIZE, 3)] * 2
        assert len(list(workspace.stores.images.ids())) == stored + 2  # the photos, not what the model was shown
        report = workspace.stores.inspections.get(bad["inspection_id"]).report
        assert report["judge"]["model"] == "reader"
        assert report["llm_reading"]["type"] == "stain"
        assert "only parts that would not pass" in report["judge"]["reason"]


def test_stopped_watch_finishes_the_photos_in_progress(camera: Path) -> None:
    for i in range(6):
        drop(camera, f"board_{i}.png", good_photo(90 + i), age_s=60 - i)
    stop: list[Callable[[], None]] = []
    with (
        WatchJournal(camera.parent / "j.sqlite") as journal,
        Workspace.open() as workspace,
        Inspector(workspace, AgentSettings(llm="off")) as inspector,
    ):
        options = WatchOptions(NamePattern.parse(PATTERN, None), judge="never", workers=1)

        def show(state: line_module.WatchState) -> None:
            if state.filed == 2:
                stop[0]()

        line = FolderWatcher(WatchedFolder(camera), journal, inspector, options, show=show)
        stop.append(line.stop)
        state = line.run()
        assert 2 <= state.filed <= 3
        assert journal.unfinished() == []
    assert len([p for p in camera.iterdir() if p.is_file()]) == 6 - state.filed


def test_folder_full_of_photos_to_refuse_hangs_in_nothing(camera: Path) -> None:
    for i in range(60):
        drop(camera, f"nameless-{i}.png", b"photo", age_s=60)
    refused = list[str]()

    def note(said: str) -> None:
        refused.append(said)
        time.sleep(0.15)

    with (
        WatchJournal(camera.parent / "j.sqlite") as journal,
        Workspace.open() as workspace,
        Inspector(workspace, AgentSettings(llm="off")) as inspector,
        Watch(6.0) as watch,
    ):
        options = WatchOptions(NamePattern.parse(PATTERN, None), judge="never")
        state = FolderWatcher(WatchedFolder(camera), journal, inspector, options, note=note, watch=watch).run(once=True)
    assert (state.quarantined, len(refused), watch.hung) == (60, 60, None)
