"""Traces from the request to the report, across processes, as a collector receives them by OTLP over HTTP."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from own_http import serving

from refdiff.server.telemetry import exporting

from .conftest import bad_photo, said
from .test_workers import COMMAND, until, workers
from .web.provider import Provider, authorized

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and shared locks")

CALLERS_TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = {"step agent", "step record", "step verify", "step read", "step decide", "filing"}
TOOLS = {"tool find_part", "tool retrieve_reference", "tool align", "tool score_difference", "tool submit_report"}


class Collector:
    """Receives spans. received: each as a dictionary; raw: the bytes of all requests."""

    def __init__(self) -> None:
        collector = self
        self.received: list[dict[str, Any]] = []
        self.raw = b""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.raw += body
                collector.received += _spans(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Collector]:
        with serving(self._server):
            yield self

    def named(self, name: str) -> list[dict[str, Any]]:
        return [s for s in self.received if s["name"] == name]


def _spans(body: bytes) -> Iterator[dict[str, Any]]:
    for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = {a.key: a.value.string_value for a in of_process.resource.attributes}
        for of_library in of_process.scope_spans:
            for s in of_library.spans:
                values = {a.key: a.value.string_value or a.value.int_value for a in s.attributes}
                yield {
                    "name": s.name, "service": about["service.name"], "trace": s.trace_id.hex(), "id": s.span_id.hex(),
                    "parent": s.parent_span_id.hex(), "began": s.start_time_unix_nano, "ended": s.end_time_unix_nano,
                    "status": s.status.code, "links": [(k.trace_id.hex(), k.span_id.hex()) for k in s.links], **values,
                }  # fmt: skip


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Where processes that are started from now on send their spans."""
    with Collector().running() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        monkeypatch.setenv("REFDIFF_LLM", "off")
        yield running


@contextmanager
def server(*options: str) -> Iterator[dict[str, Any]]:
    """A `refdiff serve` process: what it printed."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--json", *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield dict(json.loads(said))
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def test_one_trace_leads_from_the_request_to_the_report_of_a_worker(ready: Path, collector: Collector) -> None:
    with server("--no-inspections") as told, workers(1) as [worker]:
        headers = {
            "Authorization": f"Bearer {told['api_key']}",
            "traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01",
            "tracestate": "vendor=callers-own-words",
        }
        with httpx2.Client(base_url=told["address"], headers=headers, timeout=90) as client:
            sent = {"part_id": "4412", "product": "board", "text": "inspect part #4412, says Berta Secretive"}
            answer = client.post(
                "/v1/inspections?wait_s=60", data=sent, files={"image": ("berta.png", bad_photo(7), "image/png")}
            )
            assert answer.status_code == 200, answer.text
            report = answer.json()["report"]
            lost = client.get("/v1/inspections/insp-nothing?token=in-the-query")
            assert lost.status_code == 404
            assert client.get("/readyz").status_code == 200
        assert worker.end() in (0, 130)
    spans, inspection_id = collector.received, report["inspection_id"]
    [request] = collector.named("POST /v1/inspections")
    [wait], [inspection], [filing] = map(collector.named, ("queue wait", "inspection", "filing"))
    asked = [s for s in spans if s["trace"] == CALLERS_TRACE]
    assert {s["name"] for s in spans if s not in asked} == set(), "everything belongs to the caller's trace"
    assert (request["parent"], request["service"]) == (CALLERS_SPAN, "refdiff-server")
    for child in (wait, inspection):
        assert (child["parent"], child["service"]) == (request["id"], "refdiff-worker")
    steps = [s for s in spans if s["parent"] == inspection["id"]]
    assert {s["name"] for s in steps} == STEPS | TOOLS | {s["name"] for s in steps if s["name"].startswith("tool ")}
    for s in steps:
        assert inspection["began"] <= s["began"] <= s["ended"] <= inspection["ended"]
    assert filing["ended"] > max(s["ended"] for s in collector.named("tool score_difference"))
    assert request["began"] <= wait["began"] <= wait["ended"] <= inspection["began"]
    about = {"refdiff.inspection_id": inspection_id, "refdiff.part": "4412", "refdiff.product": "board"}
    assert about.items() <= request.items()
    assert (about | {"refdiff.verdict": report["verdict"]}).items() <= inspection.items()
    assert (request["http.route"], request["http.response.status_code"]) == ("/v1/inspections", 200)
    assert not any("readyz" in s["name"] for s in spans)
    for private in ("Berta", "berta", told["api_key"], "in-the-query", "insp-nothing", "PNG", report["requested_by"]):
        if private != "root":  # the name of the account may be part of other words
            assert private.encode() not in collector.raw, private


def test_parts_of_a_batch_are_traces_of_their_own_with_a_link_to_the_request(ready: Path, collector: Collector) -> None:
    with server() as told, httpx2.Client(base_url=told["address"], timeout=90) as client:
        client.headers["Authorization"] = f"Bearer {told['api_key']}"
        for i in range(2):
            data, files = {"part_id": f"b-{i}", "product": "board"}, {"image": ("p.png", bad_photo(i))}
            assert client.post("/v1/captures", data=data, files=files).status_code == 201
        made = client.post("/v1/batches", json={"parts": [{"part_id": "b-0"}, {"part_id": "b-1"}]})
        assert made.status_code == 202, made.text
        until(lambda: client.get(f"/v1/batches/{made.json()['batch_id']}").json()["over"])
        until(lambda: len(collector.named("job")) == 2)
    [request] = collector.named("POST /v1/batches")
    jobs = collector.named("job")
    assert len({s["trace"] for s in (*jobs, request)}) == 3
    for job in jobs:
        assert job["links"] == [(request["trace"], request["id"])]
        below = [s["name"] for s in collector.received if s["parent"] == job["id"]]
        assert sorted(below) == ["inspection", "queue wait"]


def test_inspection_that_fails_is_marked_by_the_kind_of_its_error(
    ready: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = ready / "home" / "images"
    kept = {p for p in photos.rglob("*") if p.is_file()}
    (ready / "gone.png").write_bytes(bad_photo(3))
    assert said(capsys, "capture", "--part", "gone", "--product", "board", "gone.png")[0] == 0
    [photo] = {p for p in photos.rglob("*") if p.is_file()} - kept
    photo.unlink()
    with server() as told, httpx2.Client(base_url=told["address"], timeout=90) as client:
        client.headers["Authorization"] = f"Bearer {told['api_key']}"
        answer = client.post("/v1/inspections?wait_s=60", json={"part_id": "gone"})
        assert answer.json()["state"] == "failed", answer.text
    [inspection] = collector.named("inspection")
    assert (inspection["status"], inspection["error.type"]) == (2, answer.json()["error"]["type"])
    assert "refdiff.verdict" not in inspection
    assert photo.name.encode() not in collector.raw  # as it is in the message


def test_sign_in_at_a_server_by_its_environment_is_traced_without_code_and_state(
    ready: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Provider({"u-1": {"name": "Berta Secretive", "groups": ["qa"]}}).running() as provider:
        for name, value in {
            "ISSUER": provider.issuer, "CLIENT_ID": "refdiff", "CLIENT_SECRET": "the client's secret",
            "ROLE_CLAIM": "groups", "ROLES": '{"qa": "inspector"}',
        }.items():  # fmt: skip
            monkeypatch.setenv(f"REFDIFF_OIDC_{name}", value)
        with server("--no-inspections") as told, httpx2.Client(base_url=told["address"], timeout=90) as client:
            back = httpx2.URL(authorized(client.get("/oidc/login").headers["location"], "u-1"))
            assert client.get(back).status_code == 303
            odd = {"Host": "host-that-a-caller-wrote.example", "Authorization": "Bearer x"}
            assert client.request("METHODACALLERWROTE", "/v1/me", headers=odd).status_code >= 400
            assert client.get("/v1/me").json() == {"name": "Berta Secretive", "role": "inspector", "needs_key": True}
            cookies = list(client.cookies.values())
        document = said(capsys, "doctor")[1]
        assert [c["status"] for c in document["checks"] if c["name"] == "sign-in"] == ["ok"]
    [callback] = collector.named("GET /oidc/callback")
    assert (callback["http.route"], callback["http.response.status_code"]) == ("/oidc/callback", 303)
    assert collector.raw.count(b"http.request.method_original") >= 1
    for written in ("host-that-a-caller-wrote", "METHODACALLERWROTE"):
        assert written.encode() not in collector.raw
    for secret in (back.params["code"], back.params["state"], "Secretive", "the client's secret", *cookies):
        assert secret.encode() not in collector.raw


def test_nothing_of_the_exporter_is_loaded_without_its_variable(ready: Path) -> None:
    code = (
        "import sys\n"
        "from refdiff.server.telemetry import exporting, of_requests\n"
        "import refdiff.server.web.app\n"
        "from refdiff.agent import telemetry\n"
        "with exporting('x'), telemetry.span('s', part='1'):\n"
        "    telemetry.note(part='1')\n"
        "    assert telemetry.carried() == {}\n"
        "    assert of_requests()['tracing'] is False\n"
        "heavy = 'opentelemetry.sdk.trace.export', 'opentelemetry.exporter', 'google.protobuf'\n"
        "print([m for m in sys.modules if m.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_standard_variables_switch_it_off(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    from refdiff.agent import telemetry

    monkeypatch.setenv(variable, value)
    with exporting("refdiff-test"), telemetry.span("inspection"):
        assert telemetry.carried() == {}
    assert collector.received == []


def test_name_of_the_service_is_the_one_that_is_set(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    from refdiff.agent import telemetry

    monkeypatch.setenv("OTEL_SERVICE_NAME", "line 3")
    with exporting("refdiff-test"), telemetry.span("inspection"):
        pass
    assert [s["service"] for s in collector.received] == ["line 3"]


def test_process_without_the_extra_says_so_and_works(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("refdiff.server.extras.find_spec", lambda name: None)
    with exporting("refdiff-test"):
        pass
    assert "pip install 'refdiff[telemetry]'" in caplog.text
    assert collector.received == []


@pytest.mark.parametrize("collector_is", ["away", "silent"])
def test_collector_that_does_not_answer_delays_nothing_but_the_end_and_no_longer_than_the_guide_says(
    monkeypatch: pytest.MonkeyPatch, collector_is: str
) -> None:
    from refdiff.agent import telemetry

    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    [longest] = re.findall(r"the end of the process takes up to (\d+) s more", guide)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, and says nothing
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        if collector_is == "away":
            listener.close()
        began = time.monotonic()
        with exporting("refdiff-test"):
            for _ in range(2000):  # four requests
                with telemetry.span("inspection", part="1"):
                    pass
            ended = time.monotonic()
            assert ended - began < 2
        assert time.monotonic() - ended < int(longest) + 1
