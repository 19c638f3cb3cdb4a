"""`refdiff doctor` as a check of the installation, and `refdiff prune`, on real inspections."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from own_http import serving
from sqlalchemy import text

from refdiff.memory.golden_bank.connection import QdrantConnection
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc
from refdiff.model.difference import scorer
from refdiff.server.cli import main

from .conftest import said

NAMES = [
    "home folder", "cache", "database", "audit trail", "clock", "API keys", "golden bank", "weights", "arithmetic",
    "language model", "calibrations",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")


EVERY_DATABASE = pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


def age_photos(home: Path) -> None:
    for path in (home / "images").rglob("*"):
        if path.is_file():
            os.utime(path, (0, 0))


def examined(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, the checks by name, the document."""
    code, document = said(capsys, "doctor", *more)
    return code, {c["name"]: c for c in document["checks"]}, document


def statuses(checks: dict[str, Any]) -> dict[str, str]:
    return {name: c["status"] for name, c in checks.items() if c["status"] != "ok"}


# ---- prune ----


@EVERY_DATABASE
def test_pruned_inspection_says_so_wherever_it_is_asked_for(
    ready: Path, database: None, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ready / "home"
    _, passed = said(capsys, "inspect", "--part", "1", "--product", "board", "--image", "good.png")
    _, failed = said(capsys, "inspect", "--part", "2", "--product", "board", "--image", "bad.png")
    assert (passed["verdict"], failed["verdict"]) == ("PASS", "FAIL")
    goldens = {g["sha256"] for g in said(capsys, "goldens", "list")[1]["goldens"]}
    age_photos(home)
    code, foreseen = said(capsys, "prune", "--older-than", "0d", "--verdict", "pass", "--dry-run")
    assert (code, foreseen["dry_run"], foreseen["inspections"], foreseen["photos"]) == (0, True, 1, 1)
    assert Path(passed["artefacts"]["html"]).exists()
    code, found = said(capsys, "prune", "--older-than", "0d", "--verdict", "pass")
    same = ("inspections", "captures", "photos", "photo_bytes", "files", "file_bytes", "record_bytes", "bytes", "kept")
    assert {k: found[k] for k in same} == {k: foreseen[k] for k in same}
    assert found["bytes"] > (ready / "good.png").stat().st_size
    assert not Path(passed["artefacts"]["html"]).parent.exists()
    assert goldens <= {p.name for p in (home / "images").rglob("*")}
    code, shown = said(capsys, "inspections", "show", passed["inspection_id"])
    assert (code, shown["error"]["type"]) == (65, "RemovedError")
    assert f"was removed on {datetime.now(UTC):%Y-%m-%d} by prune" in shown["error"]["message"]
    assert said(capsys, "inspections", "show", failed["inspection_id"])[0] == 0
    capsys.readouterr()
    assert main.run(["inspections", "list"]) == 0
    assert "by prune" in capsys.readouterr().out
    assert said(capsys, "audit", "verify", "--store", "--photos")[0] == 0
    [change] = said(capsys, "audit", "list", "--kind", "prune")[1]["changes"]
    assert "removed 1: filed before" in change["facts"]["change"]
    assert said(capsys, "audit", "export", passed["inspection_id"], "--out", "one.jsonl")[0] == 0
    assert said(capsys, "audit", "verify", "one.jsonl", "--store")[0] == 0
    code, _, document = examined(capsys, "--deep")
    assert (code, document["findings"], document["use"]["inspections"]) == (0, [], 1)
    code, document = said(capsys, "inspect", "--part", "1")
    assert (code, document["error"]["type"]) == (65, "UnknownPartError")
    assert said(capsys, "inspect", "--part", "2")[0] == 1


@pytest.mark.parametrize("age", ["90", "d", "-1d", "1y", "9999999d", "999999w"])
def test_age_that_is_none_is_refused(ready: Path, capsys: pytest.CaptureFixture[str], age: str) -> None:
    assert main.run(["prune", "--older-than", age]) == 64
    assert main.run(["prune"]) == 64


def test_nothing_is_removed_while_the_photos_of_goldens_are_unknown(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(capsys, "inspect", "--part", "1", "--product", "board", "--image", "good.png")
    age_photos(ready / "home")
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:9")
    code, document = said(capsys, "prune", "--older-than", "0d")
    assert (code, document["error"]["type"]) == (69, "UnavailableError")
    assert "nothing is removed" in document["error"]["message"]
    monkeypatch.delenv("QDRANT_URL")
    (ready / "home" / "goldens.sqlite").write_bytes(b"garbage" * 1000)
    assert said(capsys, "prune", "--older-than", "0d")[0] == 69
    (ready / "home" / "goldens.sqlite").unlink()  # as with a Qdrant server that is not named any more
    code, document = said(capsys, "prune", "--older-than", "0d")
    assert (code, document["error"]["type"]) == (69, "UnavailableError")
    assert "has no golden samples" in document["error"]["message"]
    assert said(capsys, "inspections", "list")[1]["inspections"][0]["removed_at"] is None


def test_product_without_inspections_and_home_that_is_not_there_are_refused(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(capsys, "inspect", "--part", "1", "--product", "board", "--image", "good.png")
    code, document = said(capsys, "prune", "--older-than", "0d", "--product", "bord", "--dry-run")
    assert (code, document["error"]["type"]) == (65, "UnknownProductError")
    assert said(capsys, "prune", "--older-than", "0d", "--product", "BOARD", "--dry-run")[1]["inspections"] == 1
    monkeypatch.setenv("REFDIFF_HOME", str(ready / "hone"))
    code, document = said(capsys, "prune", "--older-than", "0d")
    assert (code, document["error"]["type"]) == (65, "InputError")
    assert not (ready / "hone").exists()


# ---- doctor ----


@EVERY_DATABASE
def test_installation_that_works(ready: Path, database: None, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "inspect", "--part", "1", "--product", "board", "--image", "good.png")
    code, checks, document = examined(capsys)
    assert (code, document["sound"], [*checks], statuses(checks)) == (0, True, NAMES, {"language model": "off"})
    use = document["use"]
    assert use["inspections"] == 1
    assert use["bytes_per_inspection"] > (ready / "good.png").stat().st_size
    assert use["inspections_a_day"] == round(1 / 7, 2)
    assert use["days_left"] > 0
    assert {"images", "inspections", "goldens.sqlite"} <= use["home"].keys()
    assert use["cache"]["features"] > 0
    assert main.run(["doctor"]) == 0
    assert "grows with each photo" in capsys.readouterr().out


def test_new_machine_has_warnings_and_makes_no_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("REFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REFDIFF_LLM")
    code, checks, _ = examined(capsys)
    assert code == 0
    assert statuses(checks) == dict.fromkeys(
        ("home folder", "database", "audit trail", "API keys", "golden bank", "language model"), "warning"
    )
    assert all(c["remedy"] for c in checks.values() if c["status"] == "warning")
    assert not (tmp_path / "new").exists()


def test_each_thing_that_is_broken_is_told_and_the_rest_is_checked(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFDIFF_MIN_FREE_BYTES", str(10**18))
    weights = tmp_path / "own.safetensors"
    shutil.copy(scorer.PACKAGED.with_suffix(".json"), weights.with_suffix(".json"))
    weights.write_bytes(scorer.PACKAGED.read_bytes()[:-1] + b"!")
    monkeypatch.setenv("REFDIFF_BOARD_WEIGHTS", str(weights))
    with Stores.open() as stores:
        stores.keys.add("ann", "viewer", "boss")
        with stores.db.transaction() as conn:
            later = {"at": to_utc(datetime.now(UTC) + timedelta(days=2))}
            conn.execute(text("UPDATE audit SET at = :at WHERE kind = 'key'"), later)
            conn.execute(text("UPDATE calibrations SET key = 'other'"))
    code, checks, document = examined(capsys)
    assert (code, document["sound"]) == (65, False)
    assert statuses(checks) == {
        "home folder": "broken", "audit trail": "broken", "clock": "warning", "weights": "broken", "language model": "off",
        "calibrations": "warning",
    }  # fmt: skip
    assert "own.safetensors" in checks["weights"]["says"]
    assert checks["calibrations"]["says"].startswith("stale: board")


def test_bank_that_a_server_holds_is_a_warning_and_one_that_is_down_is_broken(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = QdrantConnection(MemorySettings())
    try:
        code, checks, _ = examined(capsys)
        assert (code, checks["golden bank"]["status"], checks["calibrations"]["status"]) == (0, "warning", "warning")
        assert said(capsys, "prune", "--older-than", "0d")[0] == 0
    finally:
        held.close()
    monkeypatch.setenv("QDRANT_URL", "http://user:hunter2@127.0.0.1:9")
    monkeypatch.setenv("QDRANT_API_KEY", "hunter3")
    code, checks, document = examined(capsys)
    assert (code, checks["golden bank"]["status"], checks["database"]["status"]) == (65, "broken", "ok")
    assert "hunter" not in json.dumps(document)


def test_database_that_is_down_is_told_and_no_password(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready / "home" / "refdiff.sqlite").unlink()
    monkeypatch.setenv("REFDIFF_DATABASE_URL", "postgresql://refdiff:hunter2@127.0.0.1:9/refdiff")
    code, checks, document = examined(capsys)
    assert (code, checks["database"]["status"], checks["golden bank"]["status"]) == (65, "broken", "warning")
    assert checks["weights"]["status"] == checks["home folder"]["status"] == "ok"
    assert "hunter" not in json.dumps(document)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[int], list[str | None]]]:
    """An endpoint that answers with a status, and the keys that it was sent."""
    status, keys = [200], list[str | None]()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"] if self.path == "/v1/models" else self.path)
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/v1", status, keys


def test_endpoint_is_asked_with_its_key_which_is_not_shown(
    ready: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    endpoint: tuple[str, list[int], list[str | None]],
) -> None:
    url, status, keys = endpoint
    monkeypatch.setenv("REFDIFF_LLM", "auto")
    monkeypatch.setenv("REFDIFF_LLM_BASE_URL", url)
    monkeypatch.setenv("REFDIFF_LLM_API_KEY", "hunter2")
    for answered, expected in ((200, "ok"), (401, "warning"), (503, "warning")):
        status[0] = answered
        code, checks, document = examined(capsys)
        assert (code, checks["language model"]["status"]) == (0, expected)
        assert "hunter" not in json.dumps(document)
    assert keys == ["Bearer hunter2"] * 3
    monkeypatch.setenv("REFDIFF_LLM_BASE_URL", "http://ann:hunter3@127.0.0.1:9/v1?key=hunter4")
    code, checks, document = examined(capsys)
    assert (code, checks["language model"]["status"]) == (0, "warning")
    assert "hunter" not in json.dumps(document)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="functools.cached_property has no lock any more")
def test_lock_of_all_objects_is_a_warning(ready: Path) -> None:
    program = "import sys; from refdiff.server.cli.main import main; sys.argv[1:] = ['doctor', '--json']; main()"
    slow = os.environ | {"PROPCACHE_NO_EXTENSIONS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=slow, capture_output=True, check=True)
    [found] = [c for c in json.loads(done.stdout)["checks"] if c["name"] == "arithmetic"]
    assert (found["status"], "compiled part" in found["says"]) == ("warning", True)


def test_photo_that_is_damaged_is_found_by_reading_all(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = said(capsys, "goldens", "list")[1]["goldens"][0]["sha256"]
    (ready / "home" / "images" / golden[:2] / golden).write_bytes(b"something else")
    assert examined(capsys)[0] == 0
    code, _, document = examined(capsys, "--deep")
    assert (code, [f["kind"] for f in document["findings"]]) == (65, ["damaged"])
