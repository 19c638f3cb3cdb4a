"""`refdiff serve` as a real process: killed in the middle, started twice, asked with curl, used beside commands."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import render
from refdiff.server.cli import main

SETTINGS = {"REFDIFF_WORKING_PX": "96", "REFDIFF_LLM": "off"}
REFDIFF = Path(sys.executable).with_name("refdiff")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


http_load = _script("http_load")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    """Small photos of parts; two of their kind are enrolled, and the script drives."""
    folder = tmp_path_factory.mktemp("served")
    made = [encode_png(render("circuit", 1, i, size=(96, 128), noise_seed=i).image) for i in range(8)]
    for i in range(2):
        (folder / f"{i}.png").write_bytes(made[i])
    with pytest.MonkeyPatch.context() as m:
        for name, value in SETTINGS.items():
            m.setenv(name, value)
        m.setenv("REFDIFF_HOME", str(folder / "home"))
        m.setenv("REFDIFF_CACHE", str(folder / "cache"))
        assert main.run(["enroll", "--product", "board", str(folder / "0.png"), str(folder / "1.png")]) == 0
        yield made[2:]


@pytest.fixture(scope="module")
def server(photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.getbasetemp()
    running = http_load.Server(os.environ, folder / "server.log")
    yield running
    if running.process.poll() is None:
        running.kill()


def test_server_killed_in_mid_inspection_files_each_accepted_inspection_once(server: Any, photos: list[bytes]) -> None:
    accepted = []
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as http:
        for i, data in enumerate(photos):
            form = {"part_id": str(i), "product": "board"}
            made = http.post("/v1/inspections", files={"image": data}, data=form, headers={"Idempotency-Key": f"k{i}"})
            assert made.status_code == 202, made.text
            accepted.append(made.json()["inspection_id"])
        while http.get("/v1/inspections/queue").json()["running"] is None:
            time.sleep(0.01)
    server.kill()
    server.start()
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as http:
        form = {"part_id": "0", "product": "board"}
        again = http.post("/v1/inspections", files={"image": photos[0]}, data=form, headers={"Idempotency-Key": "k0"})
        assert again.json()["inspection_id"] == accepted[0]
        for inspection_id in accepted:
            with http.stream("GET", f"/v1/inspections/{inspection_id}/events") as stream:
                assert [line for line in stream.iter_lines() if line.startswith("event:")][-1] == "event: done"
        page = http.get("/v1/inspections").json()
    assert sorted(i["inspection_id"] for i in page["items"]) == sorted(accepted)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_a_photo_and_follows_its_events(server: Any, photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(photos[0])
    form = [f"image=@{tmp_path / 'part.png'}", "part_id=4412", "product=board"]
    key = ["-H", f"Authorization: {server.headers['Authorization']}"]
    command = [
        "curl",
        "-sS",
        *key,
        *(f for part in form for f in ("-F", part)),
        f"{server.url}/v1/inspections?wait_s=60",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["state"], found["report"]["part_id"]) == ("done", "4412")
    stream = subprocess.run(
        ["curl", "-sSN", *key, server.url + found["links"]["events"]], capture_output=True, text=True, check=True
    )
    assert stream.stdout.rstrip().rpartition("event: ")[2].startswith("done")


def test_server_log_is_json_lines(server: Any) -> None:
    httpx2.get(f"{server.url}/v1/inspections", headers=server.headers | {"X-Request-ID": "request-77"})
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while not found and time.monotonic() < deadline:  # it is written after the answer
        lines = [json.loads(line) for line in server.log.read_text().rpartition("\n")[0].splitlines()]
        found = [line for line in lines if line.get("request_id") == "request-77"]
        time.sleep(0.05)
    [request] = found
    assert (request["method"], request["path"], request["status"]) == ("GET", "/v1/inspections", 200)


def test_backup_beside_a_working_server_restores_whole_inspections(
    server: Any,
    photos: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as http:
        for i, data in enumerate(photos[:4]):
            form = {"part_id": f"b{i}", "product": "board"}
            assert http.post("/v1/inspections", files={"image": data}, data=form).status_code == 202
        while http.get("/v1/inspections/queue").json()["running"] is None:
            time.sleep(0.01)
    for name, value in (SETTINGS | server.environment).items():
        monkeypatch.setenv(name, value)
    assert main.run(["backup", str(tmp_path / "b.tar"), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "again"))
    assert main.run(["restore", str(tmp_path / "b.tar"), "--json"]) == 0
    restored = json.loads(capsys.readouterr().out)
    assert (restored["sha256"], restored["audit"]["intact"]) == (held["sha256"], True)
    assert main.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {f["kind"] for f in found["findings"]} <= {"orphaned"}  # a photo may be newer than the database
    assert main.run(["goldens", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["goldens"]) == 2
    # what the server had accepted and not filed is filed here too
    again = http_load.Server(os.environ, tmp_path / "again.log")
    try:
        with httpx2.Client(base_url=again.url, headers=again.headers, timeout=120) as http:
            while http.get("/v1/inspections/queue").json()["items"]:
                time.sleep(0.1)
            parts = {i["part_id"] for i in http.get("/v1/inspections").json()["items"]}
        assert {f"b{i}" for i in range(4)} <= parts
    finally:
        again.kill()


def test_commands_beside_a_running_server_explain_why_they_are_refused(server: Any, photos: list[bytes]) -> None:
    def refused(*arguments: str, code: int = 69) -> str:
        environment = {**server.environment, "REFDIFF_BANK_WAIT_S": "0.2"}
        done = subprocess.run(
            [REFDIFF, *arguments, "--json"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return str(json.loads(done.stdout)["error"]["message"])

    assert "is in use" in refused("serve", "--port", server.url.rpartition(":")[2])
    assert "another refdiff server" in refused("serve", "--port", "0")
    assert "refdiff serve" in refused("goldens", "list")
    assert "cannot be listened on" in refused("serve", "--host", "192.0.2.1")
    # what needs no bank goes on as ever
    listed = subprocess.run([REFDIFF, "inspections", "list"], env=server.environment, capture_output=True, check=False)
    assert listed.returncode == 0
    assert server.stop() == 0
    assert "refdiff keys add" in refused("serve", "--host", "0.0.0.0", "--port", "0", code=65)


@pytest.mark.long
def test_eight_clients_and_a_killed_server_lose_no_inspection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of the load script."""
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    monkeypatch.setattr(http_load, "SIZE", (96, 128))
    monkeypatch.setattr(http_load, "GOLDENS", 2)
    found = http_load.load(tmp_path, clients=8, minutes=0.25, kill_every=7, seed=1, model=False)
    assert found["kills"] >= 1
    assert found["accepted"] > 5
    assert (found["missing"], found["filed_twice"], found["failed"]) == ([], [], 0)
    assert all(status < 500 for status in found["statuses"])
