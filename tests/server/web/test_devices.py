"""A device beside a real server: what it inspected is filed there once, through outages and kills."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from edge_parity import device_command, device_environment
from own_http import serving

from refdiff.agent.device.device import Device, DeviceRecord
from refdiff.memory.rows.watched import FileIdentity
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import DamagedError
from refdiff.server.device.delivery import Delivery, form
from refdiff.server.device.exports import ExportInUse, KeptExports
from refdiff.server.device.spool import Spool
from refdiff.server.device.watcher import DeviceWatcher
from refdiff.server.watch.folder import WatchedFolder
from refdiff.tools.inspection.kept_difference import KeptDifference

from .conftest import Running

_NO_GOLDEN = "g-000000000000"


def _send(server: Running, record: DeviceRecord, photo: bytes, **other: bytes) -> Any:
    parts = {
        "report": record.report.model_dump_json().encode(),
        "image": photo,
        "difference": record.difference,
    } | other
    body, kind = form({name: (name, data) for name, data in parts.items()})
    return server.client.post("/v1/devices/reports", content=body, headers={"Content-Type": kind})


def test_report_of_a_device_is_filed_once_and_drawn(server: Running, export: Path) -> None:
    photo = server.photos["bad.png"]
    with Device.open(export) as device:
        record = device.record(photo, "D-1", requested_by="cell 7")
    answers = [_send(server, record, photo) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201], answers[0].text
    filed = [r for r in server.service.stores.inspections.list(limit=1000) if r.part_id == "D-1"]
    assert [r.inspection_id for r in filed] == [record.report.inspection_id]
    assert filed[0].report["requested_by"].startswith("cell 7 (")
    assert filed[0].report["image_score"] == record.report.image_score
    assert [c.sha256 for c in server.service.stores.captures.history("D-1")] == [record.report.query_sha256]
    overlay = server.client.get(f"/v1/inspections/{record.report.inspection_id}/artefacts/overlay")
    assert overlay.status_code == 200
    assert cv2.imdecode(np.frombuffer(overlay.content, np.uint8), cv2.IMREAD_COLOR).size
    assert server.service.stores.audit.verify_store().problem is None


def test_report_that_arrives_late_leaves_the_newer_photo_of_its_part_the_newest(server: Running, export: Path) -> None:
    with Device.open(export) as device:
        record = device.record(server.photos["bad.png"], "late")
    server.inspected("good.png", "late")  # after rework
    assert _send(server, record, server.photos["bad.png"]).status_code == 201
    captures = server.service.stores.captures
    newest, late = captures.history("late")
    assert captures.latest("late") == newest
    assert (late.sha256, late.created_at) == (record.report.query_sha256, to_utc(record.report.created_at))


@pytest.mark.parametrize(
    ("year", "says"),
    [pytest.param(1970, "was enrolled only at", id="never set"), pytest.param(2099, "the server's is", id="ahead")],
)
def test_photo_of_a_device_whose_clock_is_wrong_counts_as_taken_on_receipt(
    server: Running, export: Path, caplog: pytest.LogCaptureFixture, year: int, says: str
) -> None:
    part, wrong = f"clock {year}", datetime(year, 1, 2, tzinfo=UTC)
    with Device.open(export) as device:
        record = device.record(server.photos["bad.png"], part)
    record = replace(record, report=record.report.model_copy(update={"created_at": wrong}))
    before = utc_now()
    with caplog.at_level(logging.WARNING):
        assert _send(server, record, server.photos["bad.png"]).status_code == 201
    stores = server.service.stores
    [capture] = stores.captures.history(part)
    assert before <= capture.created_at <= utc_now()
    assert says in caplog.text
    assert stores.inspections.get(record.report.inspection_id).created_at == to_utc(
        wrong
    )  # the report is as it was sent
    newest = server.inspected("good.png", part)
    assert stores.captures.latest(part).sha256 == newest["report"]["query_sha256"]


def test_clock_of_a_device_that_is_a_little_ahead_makes_no_photo_newer_than_what_comes_later(
    server: Running, export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Device.open(export) as device:
        record = device.record(server.photos["bad.png"], "ahead")
    soon = datetime.now(UTC) + timedelta(minutes=2)
    record = replace(record, report=record.report.model_copy(update={"created_at": soon}))
    assert _send(server, record, server.photos["bad.png"]).status_code == 201
    assert "set the clock" not in caplog.text
    newest = server.inspected("good.png", "ahead")
    assert server.service.stores.captures.latest("ahead").sha256 == newest["report"]["query_sha256"]


def test_what_does_not_belong_together_is_refused(server: Running, export: Path) -> None:
    photo = server.photos["good.png"]
    with Device.open(export) as device:
        record = device.record(photo, "D-2")
    report = json.loads(record.report.model_dump_json())

    def sent(changed: dict[str, Any]) -> Any:
        return _send(server, record, photo, report=json.dumps(report | changed).encode())

    refused = {
        "not the photo": _send(server, record, server.photos["bad.png"]),
        "no report of this version": _send(server, record, photo, report=b"{}"),
        "product 'gear' is not known": sent({"product": "gear"}),
        "is another one here": sent({"reference": report["reference"] | {"sha256": "0" * 64}}),
        "golden sample g-000000000000 is not known": sent(
            {"reference": report["reference"] | {"golden_id": "g-" + "0" * 12}}
        ),
        "whose judge is the script": sent({"judge": report["judge"] | {"via": "embedded"}}),
        "is damaged": _send(server, record, photo, difference=b"no picture"),
        "not of": _send(server, record, photo, difference=_of_another_size(record)),
        "none of a device": sent({"inspection_id": "../../x"}),
    }
    for says, answer in refused.items():
        assert answer.status_code == 422, answer.text
        assert says in answer.json()["error"]["message"]
    assert server.service.stores.inspections.find(record.report.inspection_id) is None
    viewer = server.key("viewer")
    body, kind = form({"report": ("r", b"{}"), "image": ("i", photo), "difference": ("d", b"")})
    answer = server.client.post("/v1/devices/reports", content=body, headers={"Content-Type": kind, **viewer})
    assert answer.status_code == 403


def _of_another_size(record: DeviceRecord) -> bytes:
    kept = KeptDifference.decode(record.difference)
    return replace(kept, anomaly_map=np.zeros((60, 50), np.float32)).encode()


def test_report_is_sent_only_to_what_says_that_it_has_it(server: Running, export: Path, tmp_path: Path) -> None:
    """A login page of the network answers everything with 200, or sends elsewhere."""
    seen: list[tuple[str, str | None]] = []

    class Portal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302 if len(seen) == 1 else 200)
            self.send_header("Location", "/login")
            self.end_headers()
            self.wfile.write(b"<h1>Welcome</h1>")

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    (tmp_path / "line").mkdir()
    spool, notes = Spool(tmp_path / "out", sends=True), []
    with Device.open(export) as device:
        record = device.record(server.photos["good.png"], "portal")
    spool.finish(spool.put(FileIdentity("p.png", 1, 1, 1), server.photos["good.png"], record))
    (tmp_path / "out" / "outbox" / "aaa").mkdir()  # damaged: no other one waits for it
    portal = ThreadingHTTPServer(("127.0.0.1", 0), Portal)
    address = f"http://127.0.0.1:{portal.server_port}"
    with serving(portal), Delivery(spool, address, "rdk-x", notes.append):
        deadline = time.monotonic() + 20
        while len(seen) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert {path for path, _ in seen} == {"/v1/devices/reports"}, "nothing was sent to where it was told to go"
    assert spool.counts() == {"reports": 1, "waiting": 1, "refused": 1}
    assert "HTTP 302" in notes[0]
    assert "no RefDiff server" in notes[1]


def test_damaged_export_moves_no_photo(server: Running, export: Path, tmp_path: Path) -> None:
    copy = tmp_path / "board.refdiff"
    shutil.copy(export, copy)
    names = _photos(server, tmp_path / "line", 2)
    with Device.open(copy) as device:
        watcher = _watcher(tmp_path, copy, device)
        copy.write_bytes(b"x" * copy.stat().st_size)  # as `cp` does to a file in use
        with pytest.raises(DamagedError):
            watcher.run(once=True)
    assert sorted(p.stem for p in (tmp_path / "line").glob("*.png")) == names


def test_photo_that_breaks_the_inspection_is_set_apart(
    server: Running, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _photos(server, tmp_path / "line", 2)
    with Device.open(export) as device:
        real = device.record

        def record(data: bytes, part_id: str, **more: Any) -> DeviceRecord:
            if part_id == names[0]:
                raise ValueError("out of bounds")
            return real(data, part_id, **more)

        monkeypatch.setattr(device, "record", record)
        os.utime(tmp_path / "line" / f"{names[0]}.png", (time.time() - 60, time.time() - 60))
        watcher = _watcher(tmp_path, export, device)
        state = watcher.run(once=True)
    assert (state.quarantined, sum(state.verdicts.values())) == (1, 1)
    assert "internal error (ValueError" in (tmp_path / "line" / "quarantine" / f"{names[0]}.png.reason.txt").read_text()


def _watcher(folder: Path, export: Path, device: Device) -> DeviceWatcher:
    """Of photos in the folder `line`, by a device that is open."""
    out = folder / "out"
    in_use = ExportInUse(KeptExports(out), export, lambda path: device, lambda said: None)
    return DeviceWatcher(WatchedFolder(folder / "line"), in_use, Spool(out, sends=False), note=lambda said: None)


def _photos(server: Running, folder: Path, count: int) -> list[str]:
    """Photos of that many parts, each a little different."""
    folder.mkdir(exist_ok=True)
    image = cv2.imdecode(np.frombuffer(server.photos["good.png"], np.uint8), cv2.IMREAD_COLOR)
    names = [f"{folder.name}-{i:03d}" for i in range(count)]
    rng = np.random.default_rng(0)
    for name in names:
        noisy = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.tmp.png"), noisy)
        (folder / f"{name}.tmp.png").rename(folder / f"{name}.png")
    return names


def _start(export: Path, folder: Path, out: Path, url: str, key: str, *more: str) -> subprocess.Popen[str]:
    environment = device_environment() | {"REFDIFF_API_KEY": key}
    command = device_command("watch", export, folder, "--out", out, "--server", url, "--threads", "1", *more)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("count", "killed_after"), [(12, (1, 4)), pytest.param(500, (150, 300), marks=pytest.mark.long)]
)
def test_watch_survives_kills_and_an_outage_and_files_each_part_once(
    server: Running, export: Path, tmp_path: Path, count: int, killed_after: tuple[int, ...]
) -> None:
    line, out = tmp_path / f"line{count}", tmp_path / "out"
    names, began = _photos(server, line, count), time.monotonic()
    key = server.key("inspector", f"device {count}")["Authorization"].removeprefix("Bearer ")
    away = f"http://127.0.0.1:{_free_port()}"
    for reports in killed_after:  # while the server is away
        running = _start(export, line, out, away, key)
        deadline = time.monotonic() + 60 + 3 * reports
        while len(list((out / "outbox").glob("*"))) < reports:
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    waiting = len(list((out / "outbox").iterdir()))
    assert waiting >= killed_after[-1], "what was inspected waits for the server"
    running = _start(export, line, out, server.url, key, "--once", "--drain-s", "120")
    said, errors = running.communicate(timeout=120 + 3 * count)
    assert running.returncode == 0, errors
    assert json.loads(said)["waiting"] == json.loads(said)["refused"] == 0, errors
    here = {json.loads(p.read_text())["part_id"]: p.stem for p in (out / "reports").glob("*.json")}
    assert sorted(here) == names
    assert len(list((out / "reports").iterdir())) == len(names)
    filed = [r for r in server.service.stores.inspections.list(limit=1000) if r.part_id.startswith(f"{line.name}-")]
    assert {r.part_id: r.inspection_id for r in filed} == here
    assert len(filed) == len(names)
    assert sorted(p.stem for p in (line / "done").iterdir()) == names
    print(f"{count} photos, killed at {killed_after}, {waiting} waited, {time.monotonic() - began:.0f} s")


def test_watch_quarantines_what_is_no_image_and_keeps_what_the_server_refuses(
    server: Running, export: Path, tmp_path: Path
) -> None:
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "broken.png").write_bytes(b"no image")
    os.utime(tmp_path / "line" / "broken.png", (time.time() - 60, time.time() - 60))
    running = _start(export, tmp_path / "line", tmp_path / "out", server.url, "rdk-wrong", "--once", "--drain-s", "1")
    said, errors = running.communicate(timeout=60)
    assert json.loads(said)["quarantined"] == 1, errors
    assert "not an image" in (tmp_path / "line" / "quarantine" / "broken.png.reason.txt").read_text()
    _photos(server, tmp_path / "line", 1)
    spool, notes = Spool(tmp_path / "out", sends=True), []
    running = _start(export, tmp_path / "line", tmp_path / "out", server.url, "rdk-wrong", "--once", "--drain-s", "1")
    said, errors = running.communicate(timeout=60)
    assert json.loads(said)["waiting"] == 1
    assert "HTTP 401" in errors
    [entry] = spool.waiting()
    (entry.folder / "photo").write_bytes(b"another photo")
    key = server.key("inspector", "device 1")["Authorization"].removeprefix("Bearer ")
    with Delivery(spool, server.url, key, notes.append) as delivery:
        delivery.drain(20)
    assert spool.counts() == {"reports": 1, "waiting": 0, "refused": 1}
    assert "not the photo" in notes[0]
    [folder] = (tmp_path / "out" / "refused").iterdir()
    assert "HTTP 422" in (folder / "reason.txt").read_text()
    shutil.rmtree(folder)
