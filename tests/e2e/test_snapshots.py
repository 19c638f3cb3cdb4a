"""What the product answers about a home folder that an earlier version wrote, seen from outside: commands and HTTP.

Nothing here imports the product, so that its insides may change. `snapshots/README.md` says what the folder holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from own_http import serving

from .snapshot import FOLDER, check, differences, masked, without_words, words_of

COMMAND = str(Path(sys.executable).with_name("refdiff"))
AUDIT_KEY = "a-key-kept-elsewhere"


@dataclass
class Old:
    """A copy of the old home in `root`/home, and how to run commands on it. told: ids of what it holds."""

    root: Path
    cache: Path
    told: dict[str, Any] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("REFDIFF_", "QDRANT_"))}
        # one thread adds numbers up in one order, and confirmed defects are not forgotten as the fixture grows old
        own = {"HOME": self.root / "home", "CACHE": self.cache, "WORKING_PX": "128", "USER": "qa", "LLM": "off",
               "THREADS": "1", "BLIND_SHARE": "0", "HISTORY_DAYS": "3660", "AUDIT_KEY": AUDIT_KEY}  # fmt: skip
        return kept | {f"REFDIFF_{k}": str(v) for k, v in own.items()} | {"OMP_NUM_THREADS": "1"} | more

    def run(self, *arguments: str, code: int = 0, **more: str) -> Any:
        """The JSON that a command answers with."""
        done = subprocess.run(
            [COMMAND, *arguments, "--json"], env=self.environment(**more), cwd=self.root, capture_output=True,
            text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-2000:]
        return json.loads(done.stdout)

    def check(self, case: str, answer: Any) -> None:
        check(case, answer, self.root)

    def check_report(self, case: str, report: Any) -> None:
        """The report, and that its artefacts are there."""
        self.check(case, report)
        files = {name: Path(path) for name, path in report["artefacts"].items() if path}
        assert {"overlay", "heatmap", "side_by_side", "html", "markdown", "report"} <= files.keys()
        for file in files.values():
            assert file.stat().st_size
            if file.suffix in (".png", ".jpg"):
                assert cv2.imread(str(file), cv2.IMREAD_UNCHANGED).size

    def check_calibration(self) -> None:
        """The old calibration, made before goldens had frames, was measured again, and with the alpha asked for then."""
        product = self.run("product", "show", "board")
        self.check("product", product)
        assert product["calibration"]["created_at"] > self.told["calibrated_at"]
        assert product["calibration"]["stale"] is False


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the goldens, computed once for all tests: the fixture holds none."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def old(tmp_path: Path, cache: Path) -> Old:
    with tarfile.open(FOLDER / "old_home.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / "refdiff-home"
    return Old(root, cache, json.loads((root / "told.json").read_text(encoding="utf-8")))


@contextlib.contextmanager
def replayed(recording: dict[str, Any], skip: int = 0) -> Iterator[dict[str, str]]:
    """An OpenAI-compatible endpoint that makes the recorded calls, one after the other; the settings that name it."""
    calls = iter(recording["calls"][skip:])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "response_format" in body:
                message = {"role": "assistant", "content": json.dumps(recording["reading"])}
            else:
                call = next(calls)
                function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
                made = {"id": f"call-{len(body['messages'])}", "type": "function", "function": function}
                message = {"role": "assistant", "content": None, "tool_calls": [made]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}/v1"
    with serving(server):
        yield {"REFDIFF_LLM": "auto", "REFDIFF_LLM_BASE_URL": address, "REFDIFF_LLM_MODEL": "vision",
               "REFDIFF_LLM_RETRIES": "0"}  # fmt: skip
    assert next(calls, None) is None, "it was asked less often than when it was recorded"


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "endpoint.json").read_text(encoding="utf-8")))


# ---- one report per driver ----


def test_the_script_inspects(old: Old) -> None:
    # good, but only one of 22 golden samples differs as much: a person decides
    old.check_report("script_good", old.run("inspect", "--part", "4412", code=2))
    old.check_report("script_defective", old.run("inspect", "--part", "4413", code=1))
    old.check_calibration()


@pytest.mark.long
def test_the_embedded_model_inspects(old: Old, model_folder: Path) -> None:
    (old.cache / "models").symlink_to(model_folder.parent)
    wish = "inspect part #4500 against the nearest good sample"
    photo = ["--image", str(old.root / "parts" / "4413.png"), "--product", "board", "--scale-mm-per-px", "0.1"]
    old.check_report("embedded", old.run("ask", wish, *photo, code=1, REFDIFF_LLM="auto"))


def test_an_endpoint_inspects(old: Old, recording: dict[str, Any]) -> None:
    with replayed(recording) as endpoint:
        report = old.run("inspect", "--part", "4414", code=1, **endpoint)
    old.check_report("endpoint", report)
    assert report["judge"]["via"] == "endpoint"
    assert report["unsupported_claims_dropped"]


# ---- what the earlier version left undone ----


def test_interrupted_inspections_are_resumed(old: Old, recording: dict[str, Any]) -> None:
    driven = old.told["interrupted_zoom"]
    with replayed(recording, skip=5) as endpoint:
        (report,) = old.run("inspections", "resume", driven, **endpoint)["inspections"]
    assert (report["inspection_id"], report["judge"]["via"]) == (driven, "endpoint")
    old.check_report("resumed_endpoint", report)
    left = {r["inspection_id"]: r for r in old.run("inspections", "resume")["inspections"]}
    assert left.keys() >= {old.told["interrupted_score"]}
    assert left.keys() <= {old.told["interrupted_score"], *old.told["jobs"]}
    old.check_report("resumed_script", left[old.told["interrupted_score"]])


def test_an_open_review_is_decided(old: Old) -> None:
    waiting = old.run("review")
    old.check("review_open", waiting)
    decision = ["--accept", "--bad", "--reason", "a stain, indeed", "--by", "ann"]
    old.check("review_decided", old.run("review", old.told["open_review"], *decision))
    old.check("review_shown", old.run("inspections", "show", old.told["open_review"]))
    old.check("review_none", old.run("review"))
    assert old.run("audit", "verify", "--store", "--photos")["intact"]


class Server:
    """`refdiff serve` on the old home, called with the old API key."""

    def __init__(self, old: Old) -> None:
        self._process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", "--json"], env=old.environment(), cwd=old.root, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.key = old.told["key"]["key"]
        said = ""
        assert self._process.stdout
        while not said.rstrip().endswith("}"):
            line = self._process.stdout.readline()
            assert line, "the server ended"
            said += line
        self.address = json.loads(said)["address"]

    def get(self, path: str, body: Any = None, key: str | None = None, **headers: str) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"} | headers
        request = urllib.request.Request(self.address + path, data, given)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def json(self, path: str, body: Any = None, **headers: str) -> Any:
        return json.loads(self.get(path, body, **headers))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def test_a_server_goes_on_with_what_it_had_accepted(old: Old) -> None:
    assert (old.root / "home" / "jobs.sqlite").exists()  # the home is of a version that had several databases
    with contextlib.closing(sqlite3.connect(old.root / "home" / "jobs.sqlite")) as jobs, jobs:
        # a repeated key returns its inspection for a day, and the fixture grows older
        jobs.execute("UPDATE jobs SET created_at = ?", (datetime.now(UTC).isoformat(timespec="microseconds"),))
    server = Server(old)
    with contextlib.closing(server):
        assert server.json("/healthz")["status"] == "ok"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.get("/v1/inspections", key="rk-not-a-key")
        unfinished = [*old.told["jobs"], old.told["interrupted_score"], old.told["interrupted_zoom"]]
        deadline = time.monotonic() + 200
        while [j for j in unfinished if server.json(f"/v1/inspections/{j}")["state"] != "done"]:
            assert time.monotonic() < deadline, "not all was filed"
            time.sleep(0.5)
        for number, job in enumerate(old.told["jobs"]):
            old.check(f"http_job_{number}", server.json(f"/v1/inspections/{job}"))
            picture = np.frombuffer(server.get(f"/v1/inspections/{job}/artefacts/overlay"), np.uint8)
            assert cv2.imdecode(picture, cv2.IMREAD_COLOR).size
            assert b"<html" in server.get(f"/v1/inspections/{job}/artefacts/html")
        again = {"part_id": "4412", "product": "board"}
        repeated = server.json("/v1/inspections", again, **{"Idempotency-Key": "old-4412"})
        assert repeated["inspection_id"] == old.told["jobs"][0]
        found = server.json("/v1/inspections")
        assert (found["total"], len(found["items"])) == (8, 8)
        asked = {"question": "how long is finding 1?"}
        old.check("http_question", server.json(f"/v1/inspections/{old.told['filed']}/questions", asked))
        decision = {"decision": "override", "reason": "within what we accept", "judged": "good"}
        old.check("http_decision", server.json(f"/v1/inspections/{old.told['open_review']}/disposition", decision))
    old.check_calibration()


# ---- what the earlier version kept ----


def test_records_are_read(old: Old) -> None:
    old.check("inspections", old.run("inspections", "list"))
    for name in ("accepted", "filed"):
        report = old.run("inspections", "show", old.told[name])
        assert report["inspection_id"] == old.told[name]
        old.check(f"shown_{name}", report)
    old.check("blind", old.run("review", "--blind"))
    old.check("rates", old.run("rates"))
    old.check("keys", old.run("keys", "list"))
    old.check("audit", old.run("audit", "verify", str(old.root / "audit.jsonl"), "--store", "--photos"))


def test_golden_samples_are_read(old: Old) -> None:
    old.check("goldens", old.run("goldens", "list"))


def test_a_tampered_record_is_found(old: Old) -> None:
    file = old.root / "audit.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert old.run("audit", "verify", str(file), code=65)["intact"] is False


# ---- evaluation ----


def test_a_data_set_is_evaluated(old: Old) -> None:
    results = old.root / "results.json"
    printed = old.run(
        "evaluate", str(old.root / "mvtec"), "--references", "2", "--alpha", "0.05", "--out", str(results)
    )
    filed = json.loads(results.read_text(encoding="utf-8"))
    assert printed == filed
    old.check("evaluate", filed)


# ---- the comparison itself ----

REPORT = {
    "inspection_id": "insp-20260131-141500-5f3a9c1e", "image_score": 1.25, "p_value": None, "n": 22,
    "verdict_reason": "p 0.043 is too small", "timings_ms": {"llm": 3.5},
    "findings": [{"type": "stain", "location": {"x0": 10}, "area_px": 100, "within_limits": False}],
    "evidence": [{"images": {"query": "a" * 64}}],
}  # fmt: skip


def _changed(**changes: Any) -> dict[str, Any]:
    """REPORT with other values, by path as in `findings.0.type`."""
    report = json.loads(json.dumps(REPORT))
    for path, value in changes.items():
        *way, last = path.split("__")
        place: Any = report
        for name in way:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    return dict(report)


@pytest.mark.parametrize(
    ("changes", "seen", "seen_strictly"),
    [
        ({}, False, False),
        ({"image_score": 1.2501}, False, True),
        ({"image_score": 1.26}, True, True),
        ({"image_score": None}, True, True),
        ({"p_value": 0.5}, True, True),
        ({"n": 23}, True, True),
        ({"n": True}, True, True),
        ({"findings__0__type": "scratch"}, True, True),
        ({"findings__0__location__x0": 12}, False, True),
        ({"findings__0__location__x0": 13}, True, True),
        ({"findings__0__area_px": 98}, False, True),
        ({"findings__0__within_limits": 0}, True, True),
        ({"findings__0__new": 1}, True, True),
        ({"findings": []}, True, True),
        ({"evidence__0__images__query": "b" * 64}, False, True),
        ({"evidence__0__images__query": "gone"}, True, True),
        ({"inspection_id": "insp-20270101-000000-00000000"}, False, False),
        ({"inspection_id": "other"}, True, True),
        ({"timings_ms": {"llm": 99.0}}, False, False),
        ({"verdict_reason": "p 0.043 is small"}, False, False),
        ({"verdict_reason": ""}, True, True),
    ],
)
def test_a_change_is_seen(changes: dict[str, Any], seen: bool, seen_strictly: bool, tmp_path: Path) -> None:
    before, after = (without_words(masked(r, tmp_path)) for r in (REPORT, _changed(**changes)))
    assert bool(differences(before, after)) == seen
    assert bool(differences(before, after, strict=True)) == seen_strictly


def test_words_are_told_by_path(tmp_path: Path) -> None:
    report = {"findings": [{"description": "Stain, 2 mm"}], "notes": ["a", ""], "part_id": "4412"}
    assert dict(words_of(report)) == {"findings[0].description": "Stain, 2 mm", "notes[0]": "a"}
    assert masked({"file": f"{tmp_path}/a.png"}, tmp_path) == {"file": "<root>/a.png"}
