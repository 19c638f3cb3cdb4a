"""A home folder as a whole: lost databases, private files, backup and restore while it is written, and the doctor."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pydantic import SecretStr

from refdiff.memory.audit_head import NAME as AUDIT_HEAD
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.journals.chat_messages import ChatStore
from refdiff.memory.journals.watch import WatchJournal
from refdiff.memory.kinds import OPERATOR_FILE
from refdiff.memory.schema import MAIN
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.upkeep.backup import MANIFEST, back_up, restore, restore_to_server
from refdiff.memory.upkeep.doctor import BankContents, Examination, _Doctor, examine
from refdiff.model.errors import InputError, StorageError
from refdiff.model.files import scratch_folder

from .conftest import all_rows

FILES = ("overlay.png", "report.html")


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_inspection(stores: Stores, name: str) -> None:
    """A photo, the files of its inspection, and then the record: in the order of a real one."""
    home, photo = stores.settings.home, f"photo of {name}".encode()
    sha256 = stores.images.put(photo)
    stores.captures.add(part_id=f"part-{name}", product="board", sha256=sha256)
    folder = home / "inspections" / name
    folder.mkdir(parents=True, mode=0o700)
    for file in FILES:
        (folder / file).write_text(f"{file} of {name}")
        (folder / file).chmod(0o600)
    artefacts = {file.partition(".")[0]: f"inspections/{name}/{file}" for file in FILES}
    report = {
        "part_id": f"part-{name}",
        "product": "board",
        "verdict": "PASS",
        "query_sha256": sha256,
        "artefacts": artefacts,
    }
    stores.inspections.file(name, f"part-{name}", "board", "PASS", "2026-01-01", report)


@pytest.fixture
def home(settings: MemorySettings) -> Path:
    """Two filed inspections, one job done and one waiting, a key, a chat message and a watched folder."""
    with Stores.open(settings) as stores:
        jobs = stores.jobs
        for name in ("i1", "i2"):
            file_inspection(stores, name)
        jobs.add("i1", {}, None, 10)
        jobs.finish("i1")
        jobs.add("waiting", {}, None, 10)
        stores.keys.add("ana", "admin", "test")
        with WatchJournal(settings.home / "lines" / "0.sqlite"):
            ChatStore(stores.db, "slack").receive("m1", {"text": "hello"})
    (settings.home / "inspections").chmod(0o700)
    return settings.home


def examined(settings: MemorySettings, repair: bool = False, goldens: list[Golden] | None = None) -> Examination:
    return examine(settings, BankContents(goldens or [], []), repair)


def kinds(found: Examination) -> list[tuple[str, list[str]]]:
    return [(f.kind, f.names) for f in found.findings]


# ---- a lost main database ----


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _new(path: Path) -> None:
    path.unlink()
    conn = sqlite3.connect(path)
    conn.executescript("PRAGMA journal_mode=WAL; VACUUM")
    conn.close()


@pytest.mark.parametrize("lose", [_remove, _empty, _new], ids=["missing", "empty", "without tables"])
@pytest.mark.parametrize(
    "left",
    ["images", "inspections", "jobs.sqlite", AUDIT_HEAD],
    ids=lambda n: f"beside {n}",
)
def test_lost_main_database_is_not_made_anew_beside_other_stores(
    home: Path, settings: MemorySettings, lose: Callable[[Path], None], left: str
) -> None:
    lose(home / MAIN)
    (home / "jobs.sqlite").touch()  # of an earlier version
    for path in home.iterdir():
        if path.name not in (MAIN, left):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = (home / MAIN).exists()
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"refdiff.sqlite: .*missing or empty.*{left}.*restore"):
            Stores.open(settings)
    assert (home / MAIN).exists() == before
    assert not examined(settings).sound


def test_new_and_empty_homes_are_opened(settings: MemorySettings) -> None:
    for _ in range(2):
        with Stores.open(settings) as stores:
            assert stores.audit.verify_store().problem is None


def test_many_processes_may_make_a_home_at_once(settings: MemorySettings) -> None:
    failed: list[Exception] = []

    def make() -> None:
        try:
            Stores.open(settings).close()
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("swap", ["older copy", "another home's", "records cut off"])
def test_replaced_main_database_is_told_for_good(
    home: Path, settings: MemorySettings, tmp_path: Path, swap: str
) -> None:
    """A chain inside one file cannot show that the whole file was replaced."""
    old = tmp_path / "old.sqlite"
    with contextlib.closing(sqlite3.connect(home / MAIN)) as conn:
        conn.execute("VACUUM INTO ?", (str(old),))
    with Stores.open(settings) as stores:
        file_inspection(stores, "i3")
    if swap == "another home's":
        with Stores.open(MemorySettings(home=tmp_path / "other", qdrant_url=None)) as other:
            for i in range(4):
                file_inspection(other, f"o{i}")
        shutil.copy(tmp_path / "other" / MAIN, old)
    if swap == "records cut off":
        with contextlib.closing(sqlite3.connect(home / MAIN, isolation_level=None)) as conn:
            (first,) = conn.execute("SELECT seq FROM audit WHERE inspection_id = 'i3'").fetchone()
            conn.execute("DELETE FROM audit WHERE seq >= ?", (first,))
            conn.execute("DELETE FROM inspections WHERE inspection_id = 'i3'")
            conn.execute("UPDATE audit_end SET seq = ?", (first - 1,))
    else:
        for name in (f"{MAIN}-wal", f"{MAIN}-shm"):
            (home / name).unlink(missing_ok=True)
        shutil.copy(old, home / MAIN)
    with Stores.open(settings) as stores:
        assert "database is" in str(stores.audit.verify_store().problem)
        file_inspection(stores, "later")  # must not cover it up
        assert stores.audit.verify_store().problem is not None


# ---- private files ----


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes")
def test_files_are_private_whatever_the_umask_and_the_folder_allow(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = tmp_path / "open"
        home.mkdir(mode=0o777)
        (home / MAIN).touch(mode=0o666)  # of an earlier version
        settings = MemorySettings(home=home, qdrant_url=None)
        with Stores.open(settings) as stores:
            stores.captures.add(part_id="1", product="board", sha256=stores.images.put(b"x"))
            with stores.db.transaction() as conn:
                conn.exec_driver_sql("UPDATE captures SET filename = 'x'")
            exposed = [p for p in home.rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o077]
    finally:
        os.umask(before)
    assert exposed == []


# ---- backup and restore ----


@pytest.fixture(params=["backup.tar", "backup"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "to" / str(request.param)


def contents(home: Path) -> dict[str, bytes]:
    """The files of a home, except databases."""
    found = {p.relative_to(home).as_posix(): p for p in home.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in found.items() if ".sqlite" not in n and not n.endswith(".lock")}


def rows(home: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all databases."""
    found = {}
    for path in sorted(home.rglob("*.sqlite")):
        conn = sqlite3.connect(path)
        for (table,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            found[f"{path.relative_to(home)}/{table}"] = conn.execute(f'SELECT * FROM "{table}"').fetchall()
        conn.close()
    return found


def test_restored_backup_holds_what_the_home_held(home: Path, target: Path, tmp_path: Path) -> None:
    (home / "images" / ".tmp-1").write_bytes(b"half")
    (home / "inspections" / "half").mkdir()
    (home / "inspections" / "half" / "overlay.png").write_bytes(b"not filed yet")
    moved: list[tuple[int, int]] = []
    made = back_up(home, target, lambda what, done, total, note="": moved.append((done, total)))
    assert moved[-1] == (len(made.files), len(made.files))
    again = tmp_path / "again"
    assert restore(target, again).files == made.files
    kept = contents(home)
    del kept["images/.tmp-1"], kept["inspections/half/overlay.png"]
    assert contents(again) == kept
    assert rows(again) == rows(home)
    assert [p for p in again.rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o077] == []
    assert examined(MemorySettings(home=again, qdrant_url=None)).findings == []
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("to_server", [False, True])
def test_backup_of_records_on_a_server_is_restored_record_by_record(
    home: Path, settings: MemorySettings, target: Path, tmp_path: Path, postgres_server: Any, to_server: bool
) -> None:
    with Stores.open(settings) as stores:
        held, head = all_rows(stores), stores.audit.head()
        made = back_up(home, target, server=stores.db)
    assert MAIN in {f.path for f in made.files}
    assert list(target.parent.iterdir()) == [target]
    again = MemorySettings(home=tmp_path / "again", database_url=None, qdrant_url=None)
    if to_server:
        with pytest.raises(InputError, match="already has records"):
            restore_to_server(target, again.model_copy(update={"database_url": settings.database_url}))
        assert not again.home.exists()
        again = again.model_copy(update={"database_url": SecretStr(postgres_server.new_database())})
        assert restore_to_server(target, again).files == made.files
        assert not list(again.home.glob("refdiff.sqlite*"))
    else:
        restore(target, again.home)
    with Stores.open(again) as stores:
        assert (all_rows(stores), stores.audit.head()) == (held, head)
        file_inspection(stores, "i3")
        assert stores.jobs.add("i3", {}, None, 9)[0].seq > max(j.seq for j in stores.jobs.list(("queued", "done"))[:-1])
        assert stores.audit.verify_store(photos=True, artefacts=True).problem is None
    assert examined(again).findings == []


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_backup_of_a_home_that_is_written_meanwhile_fits_together(
    home: Path, settings: MemorySettings, tmp_path: Path
) -> None:
    """Every inspection that it holds is whole; jobs that it calls done are filed; the audit is intact."""
    stop = threading.Event()

    def write() -> None:
        with Stores.open(settings) as stores:
            jobs = stores.jobs
            for i in range(10_000):
                jobs.add(f"w{i}", {}, None, 1_000_000)
                file_inspection(stores, f"w{i}")
                jobs.finish(f"w{i}")
                if stop.is_set():
                    return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        held = []
        for number in range(4):
            time.sleep(0.1)
            with Stores.open(settings) as stores:
                back_up(home, tmp_path / f"{number}.tar", server=stores.db if settings.database_url else None)
            again = tmp_path / f"again-{number}"
            restore(tmp_path / f"{number}.tar", again)
            found = examined(MemorySettings(home=again, qdrant_url=None))
            assert [f for f in found.findings if f.kind != "orphaned"] == []  # a photo may be newer than the database
            held.append(found.inspections)
    finally:
        stop.set()
        writer.join()
    assert held[0] < held[-1]


def test_operators_key_is_not_in_a_backup(home: Path, tmp_path: Path) -> None:
    with Stores.open(MemorySettings(home=home)) as stores:
        assert stores.keys.operator("ann", make=True)
    assert (home / OPERATOR_FILE).is_file()
    back_up(home, tmp_path / "copy")
    assert not (tmp_path / "copy" / OPERATOR_FILE).exists()


def test_backup_refuses_what_would_destroy_or_mislead(home: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for target, words in ((tmp_path / "there", "already there"), (home / "b.tar", "inside the home"),
                          (home / "images" / "b", "inside the home")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            back_up(home, target)
    with pytest.raises(InputError, match="no home"):
        back_up(tmp_path / "there", tmp_path / "b.tar")


@pytest.mark.parametrize("name", ["b.tar.gz", "b.TGZ", "b.zip"])
def test_backup_by_the_name_of_an_archive_that_is_not_written_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.tar, or a folder"):
        back_up(home, tmp_path / "to" / name)
    assert not (tmp_path / "to").exists()
    back_up(home, tmp_path / "B.TAR")
    assert tarfile.is_tarfile(tmp_path / "B.TAR")


def test_backup_tells_of_photos_that_are_not_there(home: Path, tmp_path: Path) -> None:
    assert back_up(home, tmp_path / "whole").missing == []
    lost = sha256_of(b"photo of i2")
    (home / "images" / lost[:2] / lost).unlink()
    assert back_up(home, tmp_path / "without").missing == [lost]


def test_backup_beside_a_prune_names_the_file_that_went(home: Path, tmp_path: Path) -> None:
    photo = sha256_of(b"photo of i2")
    path = home / "images" / photo[:2] / photo

    def prune(step: str, done: int, of: int) -> None:
        path.unlink(missing_ok=True)

    with pytest.raises(StorageError, match=rf"{photo}: removed meanwhile .*back up again"):
        back_up(home, tmp_path / "b.tar", prune)
    assert not (tmp_path / "b.tar").exists()


def test_backup_of_a_damaged_database_is_refused_and_leaves_nothing(home: Path, target: Path) -> None:
    (home / "lines" / "0.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(StorageError, match=r"0\.sqlite: the file is damaged"):
        back_up(home, target)
    assert list(target.parent.iterdir()) == []


def _repack(source: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Write a tar backup anew with other contents."""
    with tarfile.open(source) as tar:
        held = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    change(held)
    with tarfile.open(source, "w") as tar:
        for name, data in held.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))


def _damage(held: dict[str, bytes]) -> None:
    name = next(n for n in held if n.startswith("images/"))
    held[name] = held[name][:-1] + b"!"


def _omit(held: dict[str, bytes]) -> None:
    del held[next(n for n in held if n.startswith("images/"))]


def _omit_main(held: dict[str, bytes]) -> None:
    del held[MAIN]
    manifest = json.loads(held[MANIFEST])
    manifest["files"] = [f for f in manifest["files"] if f["path"] != MAIN]
    held[MANIFEST] = json.dumps(manifest).encode()


def _newer(held: dict[str, bytes]) -> None:
    held[MANIFEST] = json.dumps(json.loads(held[MANIFEST]) | {"refdiff_backup": 99}).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_damage, "1 files are changed .images/"),
        (_omit, "1 files are missing .images/"),
        (_omit_main, f"no {MAIN} in it"),
        (lambda held: held.pop(MANIFEST), "no manifest.json"),
        (lambda held: held.update({"more.txt": b"x"}), "1 files are not in the manifest .more.txt"),
        (lambda held: held.update({"../outside.txt": b"x"}), "would leave the home"),
        (lambda held: held.update({"/tmp/outside.txt": b"x"}), "would leave the home"),
        (lambda held: held.update({MANIFEST: b"{"}), "cannot be read"),
        (_newer, "another version"),
    ],
)
def test_changed_backup_is_refused_before_anything_is_restored(
    home: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], words: str
) -> None:
    backup, again = tmp_path / "b.tar", tmp_path / "again"
    back_up(home, backup)
    _repack(backup, change)
    with pytest.raises(InputError, match=words):
        restore(backup, again)
    assert list(again.iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


def test_cut_off_or_foreign_file_is_no_backup(home: Path, tmp_path: Path) -> None:
    backup = tmp_path / "b.tar"
    back_up(home, backup)
    data = backup.read_bytes()
    for cut in (b"", b"no tar file" * 100, data[: len(data) // 2], data[:-20_000]):
        backup.write_bytes(cut)
        with pytest.raises(InputError, match=r"use another backup|cut off"):
            restore(backup, tmp_path / "again")
        assert list((tmp_path / "again").iterdir()) == []
    backup.write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match="unpack it first"):
        restore(backup, tmp_path / "again")


def test_restore_into_a_file_is_refused(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="a file; restore into a new folder"):
        restore(tmp_path / "b", tmp_path / "file")


def test_restore_refuses_a_home_that_is_not_empty_and_finishes_one_that_was_killed(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b.tar")
    with pytest.raises(InputError, match=r"not empty \(.*restore into a new folder"):
        restore(tmp_path / "b.tar", home)
    killed = tmp_path / "killed"
    (killed / ".restoring" / "images").mkdir(parents=True)
    (killed / ".restoring" / "images" / "half").write_bytes(b"x")
    restore(tmp_path / "b.tar", killed)
    assert contents(killed) == contents(home)

    staging = killed / ".restoring"  # just before its end: all but the main database is in its place
    staging.mkdir()
    (killed / MAIN).rename(staging / MAIN)
    shutil.rmtree(killed / "images")
    for place in staging, *staging.iterdir():
        os.utime(place, (0, 0))
    half = MemorySettings(home=killed, qdrant_url=None)
    [missing] = [f for f in examined(half, repair=True).findings if f.kind == "missing"]
    assert (missing.names, missing.remedy[:18]) == ([MAIN], "repeat the restore")
    assert staging.exists()
    (killed / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty"):
        restore(tmp_path / "b.tar", killed)
    (killed / "notes.txt").unlink()
    restore(tmp_path / "b.tar", killed)
    assert contents(killed) == contents(home)


def test_backup_removes_what_a_killed_one_left(home: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as stopped:
        raise KeyboardInterrupt
    assert not stopped.exists()
    left, held, young = (tmp_path / f".tmp-refdiff-{name}" for name in ("left", "held", "young"))
    for folder in (left, held, young):
        (folder / "backup").mkdir(parents=True)
        (folder / "backup" / MAIN).touch()
    for place in (*left.rglob("*"), left, *held.rglob("*"), held):
        os.utime(place, (0, 0))
    with FileLock(held / "held.lock"):
        for place in (held / "held.lock", held):
            os.utime(place, (0, 0))
        back_up(home, tmp_path / "b.tar")
        back_up(home, tmp_path / "b")
    assert not left.exists()
    assert held.exists()
    assert young.exists()
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == {held.name, young.name}


def test_doctor_removes_what_a_killed_restore_left_in_a_home(home: Path, settings: MemorySettings) -> None:
    half = home / ".restoring" / "images" / "ab" / "half"
    half.parent.mkdir(parents=True)
    half.touch()
    os.utime(half, (0, 0))
    [found] = [f for f in examined(settings, repair=True).findings if f.kind == "leftover"]
    assert found.names == [".restoring/images/ab/half"]
    assert not (home / ".restoring").exists()


# ---- doctor ----


def test_sound_home_has_no_findings(home: Path, settings: MemorySettings) -> None:
    found = examined(settings)
    assert (found.findings, found.sound, found.inspections) == ([], True, 2)
    assert found.bytes["inspections"] == sum(len(f"{f} of {i}") for f in FILES for i in ("i1", "i2"))


def test_doctor_names_what_is_missing_and_damaged(home: Path, settings: MemorySettings) -> None:
    photos = {name: sha256_of(f"photo of {name}".encode()) for name in ("i1", "i2")}
    (home / "images" / photos["i1"][:2] / photos["i1"]).unlink()
    (home / "images" / photos["i2"][:2] / photos["i2"]).write_bytes(b"photo")
    (home / "inspections" / "i1" / "overlay.png").unlink()
    (home / "inspections" / "i2" / "report.html").write_bytes(b"")
    golden = Golden(make_golden_id("board", "c" * 64), "board", "c" * 64, filename="good.png")
    found = kinds(examined(settings, repair=True, goldens=[golden]))
    with contextlib.closing(sqlite3.connect(home / MAIN)) as conn:
        captures = dict(conn.execute("SELECT part_id, capture_id FROM captures").fetchall())
    assert ("missing", ["i1/overlay.png"]) in found
    assert ("damaged", ["i2/report.html"]) in found
    missing = sorted([f"golden {golden.golden_id} of board (good.png) ({'c' * 64})",
                      f"photo {captures['part-i1']} of part part-i1 ({photos['i1']})"])  # fmt: skip
    assert ("missing", missing) in found
    assert ("damaged", [f"photo {captures['part-i2']} of part part-i2 ({photos['i2']})"]) in found
    assert len(found) == 4


def test_doctor_takes_nothing_for_lost_that_a_server_wrote_or_removed_meanwhile(
    home: Path, settings: MemorySettings
) -> None:
    passing, photo = home / "images" / ".tmp-0123", sha256_of(b"photo of i2")
    passing.write_bytes(b"half a photo")

    def prune(step: str, done: int, of: int) -> None:
        if step == "reading records":
            shutil.rmtree(home / "inspections" / "i2", ignore_errors=True)
            (home / "images" / photo[:2] / photo).unlink(missing_ok=True)

    doctor = _Doctor(settings, BankContents([], []), False, prune, True)
    passing.unlink()
    with Stores.open(settings) as stores:
        file_inspection(stores, "i3")
    assert kinds(doctor.examine()) == []


def test_doctor_misses_no_files_of_an_inspection_whose_pictures_are_drawn_when_asked_for(
    home: Path, settings: MemorySettings, tmp_path: Path
) -> None:
    with Stores.open(settings) as stores:
        report = stores.inspections.get("i1").report | {
            "part_id": "part-i3",
            "artefacts": {"overlay": "inspections/i3/o.png"},
        }
        stores.inspections.file(
            "i3", "part-i3", "board", "PASS", "2026-01-02", report, facts={"artefacts": {}}, difference=b"a map"
        )
    assert kinds(examined(settings)) == []
    back_up(settings.home, tmp_path / "backup.tar")
    restored = MemorySettings(home=tmp_path / "restored", qdrant_url=None)
    restore(tmp_path / "backup.tar", restored.home)
    with Stores.open(restored) as stores:
        assert stores.inspections.difference("i3") == b"a map"
        assert stores.audit.verify_store(photos=True, artefacts=True).problems == []


def test_doctor_names_what_belongs_to_nothing(home: Path, settings: MemorySettings) -> None:
    for name in ("stray", "waiting"):  # one waits in the queue
        (home / "inspections" / name).mkdir(mode=0o700)
        (home / "inspections" / name / "overlay.png").touch(mode=0o600)
    with Stores.open(settings) as stores:
        sha256 = stores.images.put(b"nothing names it")
    found = examined(settings, repair=True)
    assert kinds(found) == [("orphaned", ["stray"]), ("orphaned", [sha256])]
    assert found.sound
    assert stores.images.path(sha256).exists(), "nothing that a person made is deleted"


def test_doctor_finds_inspections_that_were_removed(home: Path, settings: MemorySettings) -> None:
    with Stores.open(settings) as stores:
        stores.jobs.add("gone", {}, None, 10)
        stores.jobs.finish("gone")
    assert ("missing", ["gone"]) in kinds(examined(settings))


def test_doctor_mends_leftovers_permissions_and_checkpoints(home: Path, settings: MemorySettings) -> None:
    (home / "locks").mkdir(mode=0o700)
    old = [home / "images" / ".tmp-1", home / "locks" / "insp-1.lock"]
    young = [home / "images" / ".tmp-2", home / "locks" / "insp-2.lock"]
    for path in (*old, *young):
        path.touch(mode=0o600)
    for path in old:
        os.utime(path, (0, 0))
    (home / "inspections" / "i1" / "overlay.png").chmod(0o644)
    (home / "inspections").chmod(0o755)
    (home / "checkpoints.sqlite").write_bytes(b"garbage" * 1000)
    (home / "checkpoints.sqlite").chmod(0o600)
    named = {
        "leftover": ["images/.tmp-1", "locks/insp-1.lock"],
        "exposed": ["inspections", "inspections/i1/overlay.png"],
    }
    for repair in (False, True):
        found = examined(settings, repair)
        assert {f.kind: f.names for f in found.findings if f.kind != "damaged"} == named
        assert [f.mended for f in found.findings] == [repair] * 3
        assert found.sound == repair
    assert examined(settings).findings == []
    assert all(p.exists() for p in young)
    assert len(list(home.glob("checkpoints.sqlite.damaged-*"))) == 1


@pytest.mark.parametrize("name", [MAIN, "goldens.sqlite", "lines/0.sqlite"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
def test_doctor_names_a_damaged_database_and_checks_the_rest(
    home: Path, settings: MemorySettings, name: str, data: bytes
) -> None:
    for path in home.glob(f"{name}-*"):
        path.unlink()
    (home / name).write_bytes(data)
    found = examined(settings, repair=True)
    damaged = next(f for f in found.findings if f.kind == "damaged")
    assert damaged.names[0].startswith(f"{name}: ")
    assert not found.sound


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)
