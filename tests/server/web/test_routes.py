"""The HTTP API as programs see it."""

from __future__ import annotations

import errno
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import DefectReport
from refdiff.memory.records.inspections import InspectionPage
from refdiff.memory.rows.calibrations import Calibration, Component
from refdiff.server.web.routes import health
from tests.server.bot_server import wait

from .conftest import Running

pytestmark = pytest.mark.usefixtures("server")


def error(answer: Any) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert {"type", "message", "code", "request_id"} <= set(body["error"])
    assert body["error"]["request_id"] == answer.headers["x-request-id"]
    return dict(body["error"])


def test_uploaded_photo_is_inspected_and_filed(server: Running) -> None:
    found = server.inspected("bad.png", "#4412")
    report = DefectReport.model_validate(found["report"])
    assert (report.verdict, report.part_id, report.requested_by) == ("FAIL", "4412", "ann")
    assert found["state"] == "done"
    for name, kind in {"overlay": "image/png", "html": "text/html", "report": "application/json"}.items():
        file = server.client.get(found["links"][name])
        assert file.status_code == 200
        assert file.headers["content-type"].startswith(kind)
        assert "sandbox" in file.headers["content-security-policy"]
    assert server.client.get(found["links"]["query"]).content.startswith(b"\x89PNG")
    assert server.client.get(found["links"]["reference"] + "?max_px=64").content.startswith(b"\x89PNG")
    assert str(server.home) not in json.dumps(found)  # where it lies on the server is nobody's business
    assert server.client.get(found["links"]["self"]).json() == found
    assert (
        error(server.client.get(found["links"]["self"] + "/artefacts/..%2f..%2frefdiff.sqlite"))["code"] == "not_found"
    )


def test_captured_part_is_inspected_by_text_request(server: Running) -> None:
    sent = {"part_id": "77", "product": "board", "scale_mm_per_px": "0.1"}
    taken = server.client.post("/v1/captures", files={"image": server.photos["good.png"]}, data=sent)
    assert taken.status_code == 201
    capture = taken.json()
    assert server.client.get("/v1/captures", params={"part_id": "#77"}).json() == [capture]
    assert server.client.get(f"/v1/captures/{capture['capture_id']}").json() == capture
    made = server.client.post("/v1/inspections", json={"text": "inspect part #77 against the nearest good sample"})
    assert made.status_code == 202
    assert made.headers["location"] == made.json()["links"]["self"]
    with server.client.stream("GET", made.json()["links"]["events"]) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert events[0] == "queued"
    assert events[-1] == "done"
    assert "tool" in events
    filed = server.client.get(made.headers["location"]).json()
    assert filed["report"]["scale"]["mm_per_px"] == 0.1
    late = server.client.get(made.json()["links"]["events"])  # all of it again, and it ends
    assert late.text.count("event: ") == len(events)


def test_same_idempotency_key_returns_the_same_inspection(server: Running) -> None:
    server.inspected("good.png", "78")
    headers = {"Idempotency-Key": "order 1"}
    ids = {server.client.post("/v1/inspections", json={"part_id": "78"}, headers=headers).json()["inspection_id"]
           for _ in range(3)}  # fmt: skip
    assert len(ids) == 1


def test_same_idempotency_key_with_another_request_is_refused(server: Running) -> None:
    for part, name in (("78", "good.png"), ("79", "bad.png")):
        server.inspected(name, part)
    headers = {"Idempotency-Key": "shift 1, part 1"}

    def send(**request: Any) -> httpx2.Response:
        return server.client.post("/v1/inspections", headers=headers, **request)

    first = send(json={"part_id": "78"})
    assert first.status_code == 202
    form = {"part_id": "78", "product": "board"}
    for other in (
        {"json": {"part_id": "79"}},
        {"json": {"part_id": "78", "text": "again"}},
        {"data": form, "files": {"image": server.photos["good.png"]}},
        {"data": form, "files": {"image": server.photos["bad.png"]}},
    ):
        refused = send(**other)
        assert refused.status_code == 422
        assert first.json()["inspection_id"] in error(refused)["message"]
    assert send(json={"part_id": "78"}).json()["inspection_id"] == first.json()["inspection_id"]


def test_inspection_is_cancelled_and_tried_again_over_http(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, begun = threading.Event(), threading.Event()
    run = Inspector.run
    server.inspected("good.png", "90")
    with monkeypatch.context() as m:
        m.setattr(Inspector, "run", lambda self, r: (begun.set(), hold.wait(30)) and run(self, r))
        running, waiting = (
            server.client.post("/v1/inspections", json={"part_id": "90"}).json()["links"]["self"] for _ in range(2)
        )
        assert begun.wait(10)
        gone = server.client.delete(waiting)
        assert (gone.status_code, gone.json()["state"]) == (200, "failed")
        assert gone.json()["error"]["message"] == "cancelled by ann"
        assert "is running" in error(server.client.delete(running))["message"]
        assert server.client.delete("/v1/inspections/insp-nobody").status_code == 404
        assert error(server.client.post(f"{running}/retry"))["code"] == "invalid_request"
        assert server.client.post(f"{waiting}/retry").status_code == 202
        hold.set()
    assert server.service.wait(waiting.rpartition("/")[2], 60).report is not None
    assert server.client.delete(waiting).status_code == 422, "what is filed stays"


@pytest.mark.parametrize("path", ["/v1/inspections", "/v1/captures", "/v1/lines/cam-9/photos"])
@pytest.mark.parametrize("twice", ["image", "part_id"])
def test_field_that_comes_twice_is_refused(server: Running, path: str, twice: str) -> None:
    files = [("image", (f"{n}.png", server.photos[n])) for n in ("good.png", "bad.png")]
    fields = {"part_id": ["T1", "T2"] if twice == "part_id" else ["T1"], "product": ["board"]}
    answer = server.client.post(path, files=files if twice == "image" else files[:1], data=fields)
    assert answer.status_code == 400
    assert "more than once" in error(answer)["message"]
    assert server.client.get("/v1/captures", params={"part_id": "T1"}).json() == []


@pytest.mark.parametrize("twice", ["colour", "product"])
def test_field_of_golden_samples_that_comes_twice_is_refused_but_images_may(server: Running, twice: str) -> None:
    image = ("images", ("good.png", server.photos["good.png"]))
    colours = [("colour", (f"{n}.png", server.photos[n])) for n in ("good.png", "bad.png")]
    fields = {"product": ["twice", "thrice"] if twice == "product" else ["twice"]}
    files = [image, *colours] if twice == "colour" else [image, image]
    answer = server.client.post("/v1/goldens", files=files, data=fields)
    assert answer.status_code == 400
    assert f"the field '{twice}' is given more than once" in error(answer)["message"]


def test_json_member_that_comes_twice_is_refused(server: Running) -> None:
    body, kind = b'{"part_id": "77", "part_id": "78"}', {"Content-Type": "application/json"}
    assert server.client.post("/v1/inspections", content=body, headers=kind).status_code == 400


@pytest.mark.parametrize(
    ("path", "members"),
    [("/v1/chat/completions", 100_001), ("/v1/inspections", 30_001), ("/v1/inspections/x/disposition", 30_001)],
)
def test_json_of_very_many_members_is_refused_before_it_is_parsed(server: Running, path: str, members: int) -> None:
    body = b"[" + b"{}," * members + b"{}]"
    answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, error(answer)["code"]) == (413, "too_large")


def test_health_is_answered_while_every_thread_and_the_database_are_held(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = threading.Event()
    monkeypatch.setattr(
        server.service.stores.inspections, "search", lambda **_: hold.wait(20) and InspectionPage([], 0)
    )
    many = httpx2.Client(base_url=server.url, timeout=30)
    with many, ThreadPoolExecutor(45) as people, server.service.stores.db.transaction():
        for _ in range(45):
            people.submit(many.get, "/v1/inspections")
        try:
            time.sleep(1)
            began = time.monotonic()
            assert server.client.get("/healthz").json()["status"] == "ok"
            assert time.monotonic() - began < 1
            assert server.client.get("/readyz").json() == {"status": "ready", "problems": []}
        finally:
            hold.set()


def test_reading_that_waits_when_its_client_hangs_up_is_dropped_and_accepted_work_is_not(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, asked = threading.Event(), list[str | None]()

    def search(part_id: str | None = None, **_: object) -> InspectionPage:
        asked.append(part_id)
        hold.wait(20)
        return InspectionPage([], 0)

    monkeypatch.setattr(server.service.stores.inspections, "search", search)
    key = server.client.headers["authorization"]
    photo = b"".join([b'--b\r\ncontent-disposition: form-data; name="part_id"\r\n\r\nleft-behind\r\n',
                      b'--b\r\ncontent-disposition: form-data; name="product"\r\n\r\nboard\r\n',
                      b'--b\r\ncontent-disposition: form-data; name="image"; filename="p.png"\r\n\r\n',
                      server.photos["good.png"], b"\r\n--b--\r\n"])  # fmt: skip

    def sent(line: str, more: str = "", body: bytes = b"") -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        peer.sendall(f"{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: {key}\r\n{more}\r\n".encode() + body)
        return peer

    held = [sent("GET /v1/inspections?part_id=held") for _ in range(40)]  # as many as there are threads
    wait(lambda: len(asked) == 40)
    gone = [sent("GET /v1/inspections?part_id=gone") for _ in range(20)]
    form = f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {len(photo)}\r\n"
    gone.append(sent("POST /v1/inspections", form, photo))
    time.sleep(0.3)
    for peer in (*gone, *held[:5]):
        peer.close()
    time.sleep(0.3)
    last = sent("GET /v1/inspections?part_id=last")
    hold.set()
    assert last.recv(15) == b"HTTP/1.1 200 OK"
    assert held[-1].recv(15) == b"HTTP/1.1 200 OK"
    assert (asked.count("held"), asked.count("gone"), asked.count("last")) == (40, 0, 1)
    wait(lambda: server.service.stores.inspections.list(part_id="left-behind"))
    for peer in (last, *held):
        peer.close()


def test_readiness_says_why_work_does_not_get_done(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.client.get("/readyz").status_code == 200
    with monkeypatch.context() as m:
        m.setattr(server.service.stores.settings, "min_free_bytes", 10**18)
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert "disk" in answer.json()["problems"][0]
        assert "refdiff_ready 0.0" in server.client.get("/metrics").text
    with monkeypatch.context() as m:
        m.setattr(health, "_READY_S", 0.1)
        m.setattr(server.service, "readiness", lambda *_: time.sleep(1))
        assert "have not answered" in server.client.get("/readyz").json()["problems"][0]
        assert server.client.get("/healthz").status_code == 200


def test_outage_in_a_route_gets_503_and_no_traceback(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(server.service.stores.inspections, "search", lacking)
    answer = server.client.get("/v1/inspections")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert not [r for r in caplog.records if r.exc_info]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"json": {"part_id": "nobody"}}, 404, "not_found"),
        ({"json": {"text": "hello"}}, 422, "invalid_request"),
        ({"json": {"part_id": "77", "colour": "red"}}, 422, "invalid_request"),
        ({"json": {"part_id": "77", "scale_mm_per_px": -1}}, 422, "invalid_request"),
        ({"json": [1]}, 422, "invalid_request"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "bad_request"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "bad_request"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"data": {"part_id": "77", "image": "no file"}}, 422, "invalid_request"),
        ({"data": {"part_id": "1", "product": "board"}, "files": {"image": b"no picture"}}, 422, "invalid_request"),
        ({"data": {"part_id": "1", "product": "../x"}, "files": {"image": b"no picture"}}, 422, "invalid_request"),
        ({"data": {"part_id": "1"}, "files": {"image": b"\x89PNG" + bytes(3_100_000)}}, 413, "too_large"),
        ({"data": {"part_id": "x" * 1_200_000}}, 413, "too_large"),
    ],
)
def test_invalid_inspection_request_gets_its_status_and_code(
    server: Running, sent: dict[str, Any], status: int, code: str
) -> None:
    answer = server.client.post("/v1/inspections", **sent)
    told = error(answer)
    assert (answer.status_code, told["code"]) == (status, code), told
    assert len(told["message"]) > 5


@pytest.mark.parametrize("path", ["/v1/inspections/insp-x", "/v1/inspections/insp-x/events", "/v1/goldens/g-x",
                                  "/v1/products/none", "/v1/captures/c-x", "/v1/nothing", "/v1/inspections/x/pictures/query",
                                  "/v1/inspections/%00", "/v1/inspections/%ED%A0%80"])  # fmt: skip
def test_missing_resource_gets_404(server: Running, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404, answer.text
    assert error(answer)["code"] == "not_found"


def test_inspection_list_is_filtered_and_paged(server: Running) -> None:
    good, bad = server.inspected("good.png", "list-1"), server.inspected("bad.png", "list-2")
    one = server.client.get("/v1/inspections", params={"part_id": "list-2"}).json()
    assert [i["inspection_id"] for i in one["items"]] == [bad["inspection_id"]]
    assert (one["total"], one["items"][0]["verdict"], one["items"][0]["decision"]) == (1, "FAIL", None)
    first = server.client.get("/v1/inspections", params={"limit": 1, "product": "board"}).json()
    second = server.client.get("/v1/inspections", params={"limit": 1, "offset": 1}).json()
    assert first["items"][0]["inspection_id"] == bad["inspection_id"]
    assert second["items"][0]["inspection_id"] == good["inspection_id"]
    assert first["total"] >= 2
    verdicts = server.client.get("/v1/inspections", params={"verdict": "PASS"}).json()["items"]
    assert {i["verdict"] for i in verdicts} == {"PASS"}
    since = bad["created_at"]
    assert server.client.get("/v1/inspections", params={"since": since}).json()["total"] == 1
    assert server.client.get("/v1/inspections", params={"until": "2020-01-01"}).json()["total"] == 0
    assert server.client.get("/v1/inspections", params={"open_review": True}).json()["total"] == 0
    for wrong in (
        {"limit": 0},
        {"limit": 1001},
        {"offset": -1},
        {"verdict": "MAYBE"},
        {"since": "soon"},
        {"product": "/"},
    ):
        assert server.client.get("/v1/inspections", params=wrong).status_code == 422, wrong


def test_second_disposition_gets_409_with_the_first(server: Running) -> None:
    bad = server.inspected("bad.png", "91")
    path = bad["links"]["self"] + "/disposition"
    bob = server.key("inspector", "bob")
    won = server.client.post(path, json={"decision": "override", "reason": "dust"}, headers=bob)
    assert (won.status_code, won.json()["by"], won.json()["decision"]) == (201, "bob", "override")
    decided = {k: v for k, v in won.json().items() if k not in ("learned", "waits_for_approval")}
    lost = server.client.post(path, json={"decision": "accept", "reason": "no"})
    assert lost.status_code == 409
    assert error(lost)["earlier"] == decided
    assert server.client.get(bad["links"]["self"]).json()["disposition"] == decided
    for wrong in ({"decision": "perhaps", "reason": "x"}, {"decision": "accept", "reason": ""}, {"decision": "accept"},
                  {"decision": "accept", "reason": "  "}):  # fmt: skip
        assert server.client.post(path, json=wrong).status_code == 422


def test_question_over_http_is_answered_from_the_report(server: Running) -> None:
    bad = server.inspected("bad.png", "92")
    said = server.client.post(bad["links"]["self"] + "/questions", json={"question": "how long is finding 1?"}).json()
    assert "\nf1: " in said["answer"]


def test_goldens_and_products_are_managed_over_http(server: Running) -> None:
    files = [("images", ("a.png", server.photos["good.png"])), ("images", ("b.txt", b"text"))]
    made = server.client.post("/v1/goldens", files=files, data={"product": "gear", "part_group": "one"})
    assert made.status_code == 200, made.text
    golden = made.json()["added"][0]
    assert made.json()["refused"][0]["file"] == "b.txt"
    assert golden["enrolled_by"] == "ann"
    path = f"/v1/goldens/{golden['golden_id']}"
    assert server.client.patch(path, json={"status": "retired", "note": "old"}).json()["status"] == "retired"
    assert server.client.get(path).json()["note"] == "old"
    assert server.client.get(path + "/image").content.startswith(b"\x89PNG")
    retired = server.client.get("/v1/goldens", params={"product": "gear", "status": "retired"}).json()
    assert (retired["total"], retired["items"][0]["golden_id"]) == (1, golden["golden_id"])
    assert server.client.get("/v1/goldens", params={"product": "board", "limit": 5}).json()["total"] == 22
    assert "gear" in server.client.get("/v1/products").json()
    spec = {"scale_mm_per_px": 0.5, "limits": [{"severity": "minor", "max_length_px": 3}]}
    assert server.client.put("/v1/products/gear/spec", json=spec).json()["spec"]["limits"][0]["max_length_px"] == 3
    assert server.client.put("/v1/products/gear/spec", json={"zones": "x"}).status_code == 422
    version = server.client.get("/v1/products/gear").json()["spec_version"]
    for match, status in (
        ("x", 422),
        (f'"{version}"', 200),
        (f'"{version}"', 409),
        (str(version + 1), 200),
        ("*", 200),
    ):
        assert server.client.put("/v1/products/gear/spec", json=spec, headers={"If-Match": match}).status_code == status
    assert server.client.get("/v1/products/board").json()["calibration"]["n"] == 22
    assert server.client.post("/v1/products/none/calibration").status_code == 404


def test_counted_component_is_named_over_http_with_its_record(server: Running) -> None:
    stores, by = server.service.stores, server.key("admin", "zoe")
    stores.products.ensure("tray")
    component = Component(np.eye(3, dtype=np.float32), [1], 20.0, 6)
    stores.calibrations.save(Calibration("tray", "k", [0.1], 0.2, 1, 1, components=[component]))
    path = "/v1/products/tray/components"
    made = server.client.put(f"{path}/1", json={"name": "clip"}, headers=by).json()
    assert (made["component_names"], made["calibration"]["component_names"]) == (["clip"], ["clip"])
    record = stores.audit.changes("product", "tray")[0]
    assert (record.by, "component_names" in record.facts["change"]) == ("zoe", True)
    assert server.client.put(f"{path}/2", json={"name": "nut"}, headers=by).status_code == 404
    assert server.client.put(f"{path}/1", json={"name": "<b>"}, headers=by).status_code == 422
    # a name with a slash is addressed by it, however it is encoded; a decomposed letter is the same name
    assert server.client.put(f"{path}/clip", json={"name": " head/shaft  u\u0308"}, headers=by).status_code == 200
    assert server.client.put(f"{path}/head%2Fshaft%20%C3%BC", json={"name": "head/rim"}, headers=by).status_code == 200
    assert server.client.put(f"{path}/1", json={"name": "e\u0301" * 48}, headers=by).json()["component_names"] == [
        "é" * 48
    ]
    assert server.client.put(f"{path}/1", json={"name": "é" * 49}, headers=by).status_code == 422
    assert server.client.put(f"{path}/1", json={"name": "head/rim"}, headers=by).status_code == 200
    assert server.client.delete(f"{path}/head/rim", headers=by).json()["component_names"] == []


def test_health_version_metrics_and_openapi_are_served(server: Running) -> None:
    assert server.client.get("/healthz").json()["status"] == "ok"
    told = server.client.get("/v1/version").json()
    assert told["model"] is None
    assert "REFDIFF_LLM" in told["no_model"]
    figures = server.client.get("/metrics").text
    assert 'refdiff_http_requests_total{method="GET",route="/healthz",status="200"}' in figures
    assert "refdiff_inspections_open 0.0" in figures
    document = server.client.get("/openapi.json").json()
    assert set(document["paths"]["/v1/inspections"]["post"]["requestBody"]["content"]) == {
        "application/json", "multipart/form-data",
    }  # fmt: skip
    answer = server.client.get("/healthz", headers={"X-Request-ID": "my-request-1"})
    assert answer.headers["x-request-id"] == "my-request-1"
    assert server.client.get("/healthz", headers={"X-Request-ID": "a\tb c"}).headers["x-request-id"] != "a\tb c"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_api_documentation_needs_no_network(server: Running) -> None:
    docs = server.client.get("/docs")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', docs.text)
    assert {Path(url).suffix for url in loaded} == {".js", ".css", ".png"}
    for url in [*loaded, "/openapi.json"]:
        assert url.startswith("/"), "from this server"
        assert server.client.get(url).status_code == 200
    assert "http://" not in docs.text
    assert "https://" not in docs.text
    policy = docs.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "unsafe" not in server.client.get("/").headers["content-security-policy"]
    assert "/v1/inspections/{inspection_id}/events" in server.client.get("/openapi.json").text


def test_internal_error_gets_500_without_details(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(server.service), "products", lambda _: 1 / 0)
    answer = server.client.get("/v1/products")
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert error(answer)["code"] == "internal_error"
