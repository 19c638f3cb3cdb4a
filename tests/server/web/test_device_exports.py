"""Exports come down to devices: published at a real server, checked, swapped between two photos, with a way back."""

from __future__ import annotations

import errno
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from edge_parity import device_command, device_environment, on_device
from own_http import serving

from refdiff.agent.device.device import Device
from refdiff.agent.device.published import publish
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import DamagedError, InputError, RefDiffError, StorageError, TamperedError, UnavailableError
from refdiff.server.device.exports import ExportInUse, KeptExports
from refdiff.server.device.updates import Updates
from refdiff.tools.exported.archive import Export, write_export
from refdiff.tools.exported.signing import NO_KEYS, Keys

from .conftest import Running
from .test_devices import _photos

OCTETS = {"Content-Type": "application/octet-stream"}


def _unchecked(_: str) -> None:
    """A given file that is right."""


def _digest(path: Path) -> str:
    with Export(path, parts=False) as export:
        return export.digest


def _again(
    export: Path,
    name: str,
    change: Callable[[dict[str, Any]], Any] = lambda _: None,
    keys: Keys = NO_KEYS,
    days: int = 0,
) -> Path:
    """The same export written again by somebody else: another one, as devices see it. change: of what it
    says of the product. days: later than that one."""
    with Export(export) as read:
        about = read.manifest.model_dump(exclude={"parts", "format"}) | {"created_by": name}
        about["created_at"] = to_utc(datetime.fromisoformat(read.manifest.created_at) + timedelta(days))
        parts = {part: read.read(part) for part in read.manifest.parts}
    content = json.loads(parts["product.json"])
    change(content)
    parts["product.json"] = json.dumps(content).encode()
    path = export.with_name(f"{name}.refdiff")
    write_export(path, about, parts, keys)
    return path


def _publish(server: Running, file: Path) -> str:
    """Its digest."""
    answer = server.client.post("/v1/devices/exports/board", content=file.read_bytes(), headers=OCTETS)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["sha256"])


def test_server_publishes_what_it_has_and_what_is_sent(server: Running, export: Path) -> None:
    path, inspector = "/v1/devices/exports/board", server.key("inspector")
    missing = server.client.get(path, headers=inspector)
    assert (missing.status_code, "--publish" in missing.text) == (404, True)
    own = server.client.post("/v1/devices/exports/BOARD?format=onnx")
    assert own.status_code == 201, own.text
    assert (own.json()["product"], own.json()["graphs"], own.json()["created_by"]) == ("board", "onnx", "ann")
    sent = _publish(server, export)
    assert sent == _digest(export) != own.json()["sha256"]
    got = server.client.get(path, headers=inspector)
    assert (got.status_code, got.headers["etag"], got.content) == (200, f'"{sent}"', export.read_bytes())
    known = {"If-None-Match": f'"{"0" * 64}", W/"{sent}"'}
    assert server.client.get(path, headers=inspector | known).status_code == 304
    assert server.client.get(path, headers=server.key("viewer")).status_code == 403
    assert server.client.post(path, headers=inspector | OCTETS, content=b"x").status_code == 403
    records = server.service.stores.audit.changes("export", "board")
    first, second = (r.facts for r in records)
    assert own.json()["sha256"] in first["change"]
    assert f'sha256: "{own.json()["sha256"]}" -> "{sent}"' in second["change"]
    assert second["before"] == first["after"]
    assert server.service.stores.audit.verify_store().problem is None


def test_server_refuses_what_devices_could_not_use(
    server: Running, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _publish(server, export)

    def other_golden(content: dict[str, Any]) -> None:
        content["goldens"][0]["sha256"] = "0" * 64

    def other_name(content: dict[str, Any]) -> None:
        content["product"]["name"] = "gear"

    data = export.read_bytes()
    refused = {
        "cut off": data[:-500],
        "does not have": _again(export, "golden", other_golden).read_bytes(),
        "was sent as one of 'board'": _again(export, "name", other_name).read_bytes(),
    }
    for says, content in refused.items():
        answer = server.client.post("/v1/devices/exports/board", content=content, headers=OCTETS)
        assert answer.status_code == 422, answer.text
        assert says in answer.json()["error"]["message"]
        assert str(server.home) not in answer.text
    unknown = server.client.post("/v1/devices/exports/nothing", content=data, headers=OCTETS)
    assert unknown.status_code == 404, unknown.text
    strange = server.client.post(
        "/v1/devices/exports/board", content=b"{}", headers={"Content-Type": "application/json"}
    )
    assert strange.status_code == 415, strange.text
    monkeypatch.setenv("REFDIFF_EXPORT_KEY", "a key of sixteen letters")
    unsigned = server.client.post("/v1/devices/exports/board", content=data, headers=OCTETS)
    assert (unsigned.status_code, "is not signed" in unsigned.text) == (409, True)
    assert server.client.get("/v1/devices/exports/board").headers["etag"] == f'"{before}"'
    assert [p.name for p in (server.home / "exports").iterdir()] == ["board.refdiff"], "what was refused is gone"


# -- a device


def _updates(server: Running, kept: KeptExports, notes: list[str], keys: Keys = NO_KEYS) -> Updates:
    key = server.key("inspector")["Authorization"].removeprefix("Bearer ")
    return Updates(kept, "board", server.url, key, notes.append, keys=keys, every_s=0.05)


@contextmanager
def _in_use(out: Path, given: Path, notes: list[str]) -> Iterator[tuple[KeptExports, ExportInUse]]:
    kept = KeptExports(out)
    with ExportInUse(kept, given, lambda path: Device.open(path, NO_KEYS, 1), notes.append) as export:
        yield kept, export


def test_newer_export_is_used_and_a_rollback_keeps_it_away(server: Running, export: Path, tmp_path: Path) -> None:
    given = Path(shutil.copy(export, tmp_path / "given.refdiff"))
    newer, newest = _again(export, "newer"), _again(export, "newest")
    _publish(server, given)
    notes: list[str] = []
    with _in_use(tmp_path, given, notes) as (kept, using):
        updates = _updates(server, kept, notes)
        assert not updates.ask(), "it has that one"
        _publish(server, newer)
        assert updates.ask()
        assert kept.state().waiting == _digest(newer), "not in use before the next photo"
        report = using.device().inspect(server.photos["good.png"], "N-1")
        assert report.software.export == using.device().digest == _digest(newer)
        assert not updates.ask()
        assert KeptExports(tmp_path).rollback().current == _digest(given), "as the command does, in another process"
        assert using.device().digest == _digest(given)
        assert not updates.ask(), "a person went back from it"
        with pytest.raises(InputError, match="no export before"):
            kept.rollback()
        _publish(server, newest)
        assert updates.ask()
        assert using.device().digest == _digest(newest)
    with _in_use(tmp_path, given, notes) as (_, using):
        assert using.device().digest == _digest(newest), "after a restart"
    assert sorted(p.stem for p in (tmp_path / "exports").glob("*.refdiff")) == [_digest(newest)]
    (tmp_path / "exports" / f"{_digest(newest)}.refdiff").write_bytes(b"a bad sector")
    with _in_use(tmp_path, given, notes) as (_, using):
        assert using.device().digest == _digest(given), "the way back"
    replaced = Path(shutil.copy(newer, given))
    with _in_use(tmp_path, replaced, notes) as (_, using):
        assert using.device().digest == _digest(newer), "a person put another file there, which is what counts"


def test_export_that_does_not_open_leaves_the_one_in_use(server: Running, export: Path, tmp_path: Path) -> None:
    def other_version(content: dict[str, Any]) -> None:
        content["calibration"]["key"] = "0" * 64

    given = Path(shutil.copy(export, tmp_path / "given.refdiff"))
    _publish(server, _again(export, "version", other_version))
    notes: list[str] = []
    with _in_use(tmp_path, given, notes) as (kept, using):
        updates = _updates(server, kept, notes)
        assert updates.ask()
        assert using.device().inspect(server.photos["good.png"], "V-1").software.export == _digest(given)
        assert "scores are computed in another way" in notes[0]
        assert "still deciding by" in notes[0]
        assert not updates.ask(), "not fetched over and over"
        assert not list((tmp_path / "exports").glob("*.refdiff"))


def test_export_that_is_not_what_the_device_asks_for_is_not_kept(
    server: Running, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Path(shutil.copy(export, tmp_path / "given.refdiff"))
    newer = _again(export, "unsigned")
    _publish(server, newer)
    kept, notes = KeptExports(tmp_path), list[str]()
    kept.begin(given, _unchecked)
    strict = _updates(server, kept, notes, Keys(b"a key of sixteen letters"))
    with pytest.raises(TamperedError, match=r"^export [0-9a-f]{12}: is not signed"):
        strict.ask()
    assert not strict.ask(), "not fetched over and over"
    server_file = server.home / "exports" / "board.refdiff"
    whole = server_file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    server_file.write_bytes(bytes(damaged))
    updates = _updates(server, kept, notes)
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"(not what was exported|damaged).*; refdiff-edge fetches it again"):
            updates.ask()
    server_file.write_bytes(whole)

    def cut(self: Updates, answer: Any, read: Any = Updates._read) -> bytes:
        return b"" if answer.length == 0 or answer.length < len(whole) else read(self, answer)

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "_read", cut)
        with pytest.raises(UnavailableError, match="bytes of the export arrived"):
            _updates(server, kept, notes).ask()
    assert {p.name for p in (tmp_path / "exports").iterdir()} <= {"state.json", "state.lock"}
    assert kept.state().waiting is None
    assert updates.ask(), "the next time all of it arrives as it is; what was damaged on the way is not held against it"


def test_device_that_dies_while_it_opens_an_export_does_not_open_it_for_ever(export: Path, tmp_path: Path) -> None:
    given, newer = Path(shutil.copy(export, tmp_path / "given.refdiff")), _again(export, "deadly")
    kept = KeptExports(tmp_path)
    kept.begin(given, _unchecked)
    shutil.copy(newer, kept.path(_digest(newer)))
    kept.offer(_digest(newer), "2026-01-01")
    for _ in range(2):  # killed each time
        kept = KeptExports(tmp_path)
        kept.begin(given, _unchecked)
        assert kept.trying() == _digest(newer)
    notes: list[str] = []
    with _in_use(tmp_path, given, notes) as (kept, using):
        for _ in range(2):
            assert using.device().digest == _digest(given)
        assert _digest(newer) in kept.known()
    assert kept.state().waiting is None
    here, there = _digest(given)[:12], _digest(newer)[:12]
    said = f"export {there} cannot be used (refdiff-edge ended 2 times while it opened it); still deciding by {here}"
    assert notes == [said], "once"


@contextmanager
def _waiting(
    tmp_path: Path, export: Path, opened: Callable[[Path], Device], notes: list[str]
) -> Iterator[tuple[KeptExports, ExportInUse, str]]:
    """A device that decides by `export`, and one that waits, whose digest is the third."""
    given, newer = Path(shutil.copy(export, tmp_path / "given.refdiff")), _again(export, "waits", days=1)
    kept, digest = KeptExports(tmp_path), _digest(newer)
    with ExportInUse(kept, given, opened, notes.append) as using:
        shutil.copy(newer, kept.path(digest))
        kept.offer(digest, _created(newer))
        yield kept, using, digest


def _created(path: Path) -> str:
    with Export(path, parts=False) as export:
        return export.manifest.created_at


SHORT = [
    StorageError("the disk"),
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    MemoryError(),
]


def test_what_the_machine_lacks_is_no_word_against_the_export_that_waits(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, asked, notes = list[Exception](), list[Path](), list[str]()

    def opened(path: Path) -> Device:
        asked.append(path)
        if errors:
            raise errors.pop()
        return Device.open(path, NO_KEYS, 1)

    with _waiting(tmp_path, export, opened, notes) as (kept, using, digest):
        before = using.device  # bound: each call is the look between two photos
        errors += SHORT
        for n in range(len(SHORT)):
            assert before().digest == _digest(export)
            state = kept.state()
            assert (state.waiting, state.tries, state.unwanted) == (digest, 0, {})
            assert len(asked) == n + 2
            assert before().digest == _digest(export)
            assert len(asked) == n + 2, "the line is not held up by opening it over and over"
            using._again_at = 0.0  # the wait is over
        assert before().digest == digest
        assert (kept.state().current, kept.state().waiting) == (digest, None)
    assert kept.path(digest).is_file()
    assert len(notes) == 1 + len(SHORT), "each once, and the swap"
    assert "no longer by" in notes[-1]


def test_export_in_use_that_could_not_be_written_down_is_not_opened_again(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refdiff.server.device.exports._BACKOFF", Backoff(0.0, 0.0))
    asked = list[Path]()

    def opened(path: Path) -> Device:
        asked.append(path)
        return Device.open(path, NO_KEYS, 1)

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with _waiting(tmp_path, export, opened, []) as (kept, using, digest):
        with monkeypatch.context() as patch:
            patch.setattr(KeptExports, "adopt", full)
            for _ in range(4):  # more often than an export is tried
                assert using.device().digest == digest
                assert kept.state().waiting == digest
        assert using.device().digest == digest
        assert (kept.state().current, kept.state().waiting, len(asked)) == (digest, None, 2)


def test_rollback_while_an_export_is_tried_out_counts(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Device.open
    with _waiting(tmp_path, export, lambda path: opened(path, NO_KEYS, 1), []) as (kept, using, digest):
        assert using.device().digest == digest
        third = _again(export, "third", days=2)
        shutil.copy(third, kept.path(_digest(third)))
        kept.offer(_digest(third), _created(third))
        with monkeypatch.context() as patch:
            patch.setattr(Device, "try_out", lambda _: KeptExports(tmp_path).rollback())
            using.device()
        assert using.device().digest == _digest(export)
        assert {digest, _digest(third)} < set(kept.known())


class _Unplugged(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def test_opening_an_export_tells_damage_from_what_the_machine_lacks(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplugged = _Unplugged(export.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: unplugged)
        with pytest.raises(StorageError, match="Input/output error"):
            Export(export)
    with monkeypatch.context() as patch:
        patch.setattr("refdiff.model.difference.sessions.find_spec", lambda _: None)
        with pytest.raises(UnavailableError, match="pip install openvino"):
            Device.open(export, NO_KEYS, 1)

    def short(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("refdiff.model.difference.sessions._openvino", short)
        with pytest.raises(UnavailableError, match="not enough memory"):
            Device.open(export, NO_KEYS, 1)
    for content in (b"", b"no zip", export.read_bytes()[:-30]):
        export.with_name("cut.refdiff").write_bytes(content)
        with pytest.raises(DamagedError, match="cut off"):
            Export(export.with_name("cut.refdiff"))


def test_start_does_not_give_up_an_export_for_what_may_pass(export: Path, tmp_path: Path) -> None:
    with _waiting(tmp_path, export, lambda path: Device.open(path, NO_KEYS, 1), []) as (kept, using, digest):
        assert using.device().digest == digest
    before, given = kept.state(), tmp_path / "given.refdiff"
    for error in SHORT:

        def opened(path: Path, error: Exception = error) -> Device:
            if path.stem == digest:
                raise error
            return Device.open(path, NO_KEYS, 1)

        with pytest.raises(UnavailableError):
            ExportInUse(KeptExports(tmp_path), given, opened, lambda _: None)
        assert kept.state() == before
        assert kept.path(digest).is_file()
    with _in_use(tmp_path, given, []) as (_, using):
        assert using.device().digest == digest


def test_given_file_that_is_wrong_forgets_nothing(server: Running, export: Path, tmp_path: Path) -> None:
    with _waiting(tmp_path, export, lambda path: Device.open(path, NO_KEYS, 1), []) as (kept, using, digest):
        assert using.device().digest == digest
    before, other = kept.state(), _again(export, "other", days=-1)

    def other_version(content: dict[str, Any]) -> None:
        content["calibration"]["key"] = "0" * 64

    part_changed = bytearray(other.read_bytes())
    part_changed[len(part_changed) // 2] ^= 1
    given = tmp_path / "new.refdiff"
    wrong = {
        DamagedError: bytes(part_changed),
        InputError: _again(export, "other version", other_version).read_bytes(),
    }
    for error, content in wrong.items():
        given.write_bytes(content)
        with pytest.raises(error):
            ExportInUse(KeptExports(tmp_path), given, lambda path: Device.open(path, NO_KEYS, 1), lambda _: None)
        assert kept.state() == before
        assert kept.path(digest).is_file()
    shutil.copy(other, given)
    _publish(server, _again(export, "waits", days=1))
    with _in_use(tmp_path, given, []) as (kept, using):
        assert using.device().digest == _digest(other), "also an older one, by hand"
        assert list(kept.state().unwanted) == [digest]
        assert not _updates(server, kept, []).ask(), "what was left is still published"
        assert not list((tmp_path / "exports").glob("*.refdiff"))


def test_older_export_does_not_come_back(server: Running, export: Path, tmp_path: Path) -> None:
    given, newer = Path(shutil.copy(export, tmp_path / "given.refdiff")), _again(export, "tomorrow", days=1)
    between, notes = _again(export, "noon", days=0), list[str]()
    with _in_use(tmp_path, given, notes) as (kept, using):
        updates = _updates(server, kept, notes)
        _publish(server, newer)
        assert updates.ask()
        assert using.device().digest == _digest(newer)
        for old in (between, given):  # one that has to come down, and one that is here
            _publish(server, old)
            with pytest.raises(InputError, match="is older than the one in use"):
                updates.ask()
            assert not updates.ask(), "said once"
            assert kept.state().waiting is None
            assert using.device().digest == _digest(newer)
        again = _again(export, "exported again", days=2)
        _publish(server, again)
        assert updates.ask()
        assert using.device().digest == _digest(again)


def test_export_is_held_back_for_what_is_wrong_with_it_alone(
    server: Running, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, secret = Path(shutil.copy(export, tmp_path / "given.refdiff")), b"a key of sixteen letters"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key.pem"], check=True)
    kept, notes = KeptExports(tmp_path), list[str]()
    kept.begin(given, _unchecked)
    _publish(server, _again(export, "signed", keys=Keys(secret)))
    updates = _updates(server, kept, notes, Keys(secret, private=(tmp_path / "key.pem").read_bytes()))

    def broken(*_: object) -> bytes:
        raise StorageError("reading failed")

    with monkeypatch.context() as patch:
        patch.setattr(Export, "read", broken)
        with pytest.raises(StorageError):
            updates.ask()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
        with pytest.raises(UnavailableError, match="cryptography"):
            updates.ask()
    assert updates.ask(), "the same one, once that is over"
    _publish(server, _again(export, "unsigned again"))
    with updates:
        deadline = time.monotonic() + 30
        while not notes:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)  # ten more times
    (said,) = notes
    assert "is not signed" in said
    assert "held back until refdiff-edge starts again" in said


class _Foreign(BaseHTTPRequestHandler):
    """What may answer in place of a RefDiff server. status: of its answers, which do not say how long they are."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("ETag", f'"{"0" * 64}"')
        self.end_headers()
        self.wfile.write(b'{"error": {"type": "NotFound", "message": "no such page"}}')

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_only_the_server_itself_can_say_that_nothing_is_published(
    server: Running, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptExports(tmp_path)
    kept.begin(Path(shutil.copy(export, tmp_path / "given.refdiff")), _unchecked)
    (server.home / "exports" / "board.refdiff").unlink(missing_ok=True)
    assert not _updates(server, kept, []).ask()

    def asked(url: str, product: str) -> RefDiffError:
        key = server.key("inspector")["Authorization"].removeprefix("Bearer ")
        with pytest.raises(RefDiffError) as told:
            Updates(kept, product, url, key, lambda _: None, keys=NO_KEYS, every_s=1).ask()
        return told.value

    assert "HTTP 404: no product 'nothing'" in str(asked(server.url, "nothing"))
    foreign = ThreadingHTTPServer(("127.0.0.1", 0), _Foreign)
    address = f"http://127.0.0.1:{foreign.server_port}"
    with serving(foreign):
        assert "does not say how long" in str(asked(address, "board"))
        monkeypatch.setattr(_Foreign, "status", 404)
        assert "HTTP 404: no such page" in str(asked(address, "board"))
    assert not list((tmp_path / "exports").glob("*.refdiff"))


def test_full_disk_is_said_before_anything_is_written(
    server: Running, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptExports(tmp_path)
    kept.begin(Path(shutil.copy(export, tmp_path / "given.refdiff")), _unchecked)
    newer = _again(export, "large")
    _publish(server, newer)
    updates, usage, needed = _updates(server, kept, []), shutil.disk_usage(tmp_path), newer.stat().st_size + 200_000_000
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
        patch.setattr(Updates, "_write", lambda *_: pytest.fail("written"))
        with pytest.raises(StorageError, match="free some space"):
            updates.ask()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
        assert updates.ask(), "there is just enough"
    path = "/v1/devices/exports/board"
    monkeypatch.setattr(server.service.stores.settings, "min_free_bytes", 10**18)
    monkeypatch.setattr("refdiff.server.web.routes.devices._received", lambda *_: pytest.fail("received"))
    for body in ({"content": export.read_bytes(), "headers": OCTETS}, {}):
        answer = server.client.post(path, **body)
        assert (answer.status_code, "are free" in answer.text) == (503, True), answer.text


def _watch(*arguments: str | Path, key: str) -> subprocess.Popen[str]:
    environment = device_environment() | {"REFDIFF_API_KEY": key}
    command = device_command("watch", *arguments, "--threads", "1")
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_watch_swaps_exports_through_kills_and_inspects_each_part_once(
    server: Running, export: Path, tmp_path: Path
) -> None:
    given = Path(shutil.copy(export, tmp_path / "given.refdiff"))
    _publish(server, given)
    key = server.key("inspector", "device 2")["Authorization"].removeprefix("Bearer ")
    line, out = tmp_path / "swaps", tmp_path / "out"
    line.mkdir()
    started = (given, line, "--out", out, "--server", server.url, "--updates-every", "0.005")
    names, published = [], [_digest(given)]

    def reports() -> dict[str, str]:
        found = [json.loads(p.read_text()) for p in (out / "reports").glob("*.json")]
        assert len({r["part_id"] for r in found}) == len(found), "each part once"
        return {r["part_id"]: r["software"]["export"] for r in found}

    running = _watch(*started, key=key)
    for turn in range(4):
        published.append(_publish(server, _again(export, f"turn {turn}")))
        if turn < 3:  # the last one comes down undisturbed
            time.sleep((0.3, 1.0, 2.0)[turn])  # before, while and after it comes down
            running.send_signal(signal.SIGKILL)
            running.communicate()
            running = _watch(*started, key=key)
        deadline = time.monotonic() + 60
        while (state := KeptExports(out).state()) is None or state.current != published[-1]:
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        (part,) = _photos(server, tmp_path / f"turn{turn}", 1)
        (tmp_path / f"turn{turn}" / f"{part}.png").rename(line / f"{part}.png")
        names.append(part)
        while part not in reports():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    said, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert f"export {published[-1][:12]} of" in errors
    assert errors.count("is not checked") == 1, "not for every swap"
    assert reports() == dict(zip(names, published[1:], strict=True)), errors
    assert json.loads(said) | {"export": published[-1], "waiting": 0, "refused": 0} == json.loads(said), errors
    filed = [r for r in server.service.stores.inspections.list(limit=1000) if r.part_id in names]
    assert {r.part_id: r.report["software"]["export"] for r in filed} == reports()
    for code, says in ((0, f"back to export {published[-2]}"), (65, "no export before")):
        done = on_device("rollback", "--out", out, check=False)
        assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done.stderr


def test_publishing_in_this_process_moves_the_file(server: Running, export: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(export, tmp_path / "sent.refdiff"))
    found = publish(server.service.workspace, "board", file, by="ann")
    assert (file.exists(), found.path.is_file(), found.digest) == (False, True, _digest(export))
