"""`refdiff mcp` as another agent sees it: the real client over stdin/stdout and over HTTP, against the installed command."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, TextContent
from PIL import Image
from starlette.responses import PlainTextResponse

from refdiff.agent.report.schema import DefectReport
from refdiff.agent.service import InspectionService, Upload
from refdiff.memory.kinds import OPERATOR_FILE, ROLES
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.server.cli import main
from refdiff.server.mcp import server as mcp_server
from refdiff.server.mcp.answers import InspectionAnswer, StepAnswer
from refdiff.server.mcp.http import Admission, known_to
from refdiff.server.mcp.server import build_server

from .conftest import bad_photo, good_photo

REFDIFF = Path(sys.executable).with_name("refdiff")
TOKEN = "a-token-of-this-test"


def encoded(photo: bytes) -> str:
    return base64.b64encode(photo).decode("ascii")


def text_of(result: CallToolResult) -> str:
    return "\n".join(c.text for c in result.content if isinstance(c, TextContent))


def pictures(result: CallToolResult) -> list[Image.Image]:
    found = [c for c in result.content if isinstance(c, ImageContent)]
    opened = [Image.open(io.BytesIO(base64.b64decode(c.data))) for c in found]
    assert [f"image/{i.format.lower()}" for i in opened if i.format] == [c.mime_type for c in found]
    return opened


async def good(client: Client, tool: str, **arguments: Any) -> CallToolResult:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    return result


async def session(client: Client) -> None:
    """What an agent does: looks around, inspects a bad part, asks, then looks for itself."""
    tools = {t.name: t for t in (await client.list_tools()).tools}
    assert {"inspect_part", "get_report", "ask_about_inspection", "find_part", "zoom", "measure"} <= set(tools)
    assert not {"dispose", "review", "submit_report"} & set(tools)  # a person's, and the agent's own
    assert tools["inspect_part"].output_schema["properties"]["verdict"]
    assert (await good(client, "list_products")).structured_content == {"products": ["board"]}
    assert (await good(client, "get_product", name="board")).structured_content["calibration"]["n"] == 22

    heard: list[str] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    inspected = await client.call_tool(
        "inspect_part",
        {"part_id": "#7", "product": "board", "photo_base64": encoded(bad_photo(100)), "request": "check part 7"},
        progress_callback=progress,
    )
    assert not inspected.is_error, text_of(inspected)
    answer = InspectionAnswer.model_validate(inspected.structured_content)
    assert (answer.part_id, answer.state, answer.decided) == ("7", "done", None)
    assert answer.verdict in ("FAIL", "REVIEW")
    assert answer.findings
    assert text_of(inspected).startswith(f"{answer.verdict}: part 7 (board).")
    assert len(pictures(inspected)) == 1
    assert any("score_difference" in h for h in heard), heard

    shown = await good(client, "get_inspection", inspection_id=answer.inspection_id, pictures=["query", "side_by_side"])
    assert pictures(shown)[0].size == (128, 96)
    report = DefectReport.model_validate(
        (await good(client, "get_report", inspection_id=answer.inspection_id)).structured_content
    )
    assert [f.id for f in report.findings] == [f.id for f in answer.findings]
    assert report.request == "check part 7"
    said = await good(
        client, "ask_about_inspection", inspection_id=answer.inspection_id, question="what is the verdict?"
    )
    assert str(report.verdict) in text_of(said)
    rows = (await good(client, "list_inspections", verdict=answer.verdict)).structured_content["inspections"]
    assert [r["inspection_id"] for r in rows] == [answer.inspection_id]

    found = StepAnswer.model_validate((await good(client, "find_part", part_id="7")).structured_content)
    near = StepAnswer.model_validate(
        (await good(client, "retrieve_reference", bench=found.bench, k=2)).structured_content
    )
    golden = near.result["goldens"][0]["golden_id"]
    await good(client, "align", bench=found.bench, golden_id=golden)
    scored = await good(client, "score_difference", bench=found.bench)
    score = StepAnswer.model_validate(scored.structured_content)
    assert (score.evidence.id, len(pictures(scored))) == ("e4", 2)
    assert {"score", "p_value", "r1_x0", "r1_place"} <= set(scored.structured_content["evidence"]["numbers"])
    assert score.evidence.numbers.score == pytest.approx(report.image_score, abs=1e-3)
    assert len(pictures(await good(client, "zoom", bench=found.bench, region="r1"))) == 2
    measured = StepAnswer.model_validate(
        (await good(client, "measure", bench=found.bench, region="r1")).structured_content
    )
    assert measured.evidence.numbers.length_px == pytest.approx(report.findings[0].length_px, rel=1e-3)


def test_mcp_session_over_stdio_inspects_a_part(ready: Path) -> None:
    async def run() -> None:
        server = StdioServerParameters(command=str(REFDIFF), args=["mcp"], env={**os.environ, "REFDIFF_LLM": "off"})
        async with Client(server, read_timeout_seconds=120) as client:
            await session(client)

    anyio.run(run)


class RawClient:
    """`refdiff mcp` and lines to it; the SDK's client ends its server itself."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [str(REFDIFF), "mcp"], env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        who = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        self.send("initialize", who, id=1)
        assert self.process.stdout
        assert json.loads(self.process.stdout.readline())["result"]["serverInfo"]["name"] == "refdiff"
        self.send("notifications/initialized", {})

    def send(self, method: str, params: dict[str, Any], **more: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(
            json.dumps({"jsonrpc": "2.0", "method": method, "params": params} | more).encode() + b"\n"
        )
        self.process.stdin.flush()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 0, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=pytest.mark.long),
        pytest.param(None, 0, id="end of stdin", marks=pytest.mark.long),
    ],
)
def test_stopped_mcp_server_exits_cleanly_and_the_inspection_is_resumed(
    ready: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals | None, code: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a language model that never answers
        silent.settimeout(60)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        client = RawClient(REFDIFF_LLM_BASE_URL=address, REFDIFF_LLM_TIMEOUT_S="600")
        photo = encoded(good_photo(100))
        wish = {"part_id": "7", "product": "board", "photo_base64": photo, "wait_s": 600}
        client.send("tools/call", {"name": "inspect_part", "arguments": wish}, id=2)
        held, _ = silent.accept()  # it runs
        if number is None:
            client.process.stdin.close()
        else:
            client.process.send_signal(number)
        assert client.process.wait(30) == code
        held.close()
    monkeypatch.setenv("REFDIFF_LLM", "off")
    with InspectionService.open() as service:  # the home is free
        [job] = service.unfinished()
        assert job.crashes == 0
        assert service.wait(job.inspection_id, 60).report is not None
        assert len(service.stores.inspections.list()) == 1


@pytest.mark.long
def test_mcp_server_ends_with_stdin_while_a_question_is_pending(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setenv("REFDIFF_LLM", "off")
        with InspectionService.open() as service:
            photo = Upload("p.png", good_photo(101))
            job = service.submit("inspect part #8", by="t", part_id="8", product="board", photo=photo)
            assert service.wait(job.inspection_id, 60).report is not None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        client = RawClient(REFDIFF_LLM_BASE_URL=address, REFDIFF_LLM_TIMEOUT_S="600")
        question = {"inspection_id": job.inspection_id, "question": "would you ship it to a friend?"}
        client.send("tools/call", {"name": "ask_about_inspection", "arguments": question}, id=2)
        held, _ = silent.accept()
        assert client.process.stdin
        client.process.stdin.close()
        assert client.process.wait(30) == 0
        held.close()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[str]:
    port = _free_port()
    command = [str(REFDIFF), "mcp", "--http", "--port", str(port), *options]
    process = subprocess.Popen(
        command, env={**os.environ, "REFDIFF_LLM": "off", **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(1200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_mcp_session_over_http_needs_token_and_local_host_name(ready: Path) -> None:
    async def run(url: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(headers=headers, timeout=120) as http:
            async with Client(streamable_http_client(url, http_client=http), read_timeout_seconds=120) as client:
                await session(client)
            hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            evil = await http.post(url, json=hello, headers={"host": "evil.example"})
            assert evil.status_code == 421

    with serving(REFDIFF_MCP_TOKEN=TOKEN) as url:
        anyio.run(run, url)
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            assert httpx2.post(url, json={}, headers=wrong).status_code == 401
        with httpx2.Client(base_url=url.removesuffix("/mcp")) as probe, ExitStack() as silent:
            port = int(url.removesuffix("/mcp").rpartition(":")[2])
            for _ in range(600):
                silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            probe.post("/mcp", json={})  # the connection is the event loop's
            for found in (probe.get("/healthz"), httpx2.get(f"{probe.base_url}/healthz")):
                assert (found.status_code, found.json()["status"]) == (200, "ok")


def test_mcp_over_http_without_a_token_needs_the_operators_key(ready: Path) -> None:
    with serving() as url:
        for wrong in ({}, {"authorization": "Bearer local"}):
            assert httpx2.post(url, json={}, headers=wrong, timeout=120).status_code == 401
        key = (ready / "home" / OPERATOR_FILE).read_text()
        assert httpx2.post(url, json={}, headers={"x-api-key": key}).status_code == 401
        assert httpx2.post(url, json={}, headers={"authorization": f"Bearer {key}"}).status_code != 401


@pytest.mark.parametrize("name", [None, "Via", "X-Forwarded-For", "CF-Ray"])
def test_mcp_without_keys_refuses_what_came_through_a_proxy(name: str | None) -> None:
    async def run() -> int:
        transport = httpx2.ASGITransport(Admission(PlainTextResponse("in"), None))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return (await http.get("/mcp", headers={name: "x"} if name else {})).status_code

    assert anyio.run(run) == (200 if name is None else 401)


def test_mcp_takes_the_keys_of_those_who_may_inspect(tmp_path: Path) -> None:
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        keys = stores.keys
        known = known_to(keys)
        for role in ROLES:
            assert known(keys.add(role, role, "ann")[1]) is (role != "viewer")
        assert not known("made up")


# ---- mistakes, in this process ----


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("inspect_part", {"part_id": "404"}, "no capture of part 404"),
        ("inspect_part", {"part_id": "1", "product": "board", "photo_base64": "%%%"}, "not valid base64"),
        ("inspect_part", {"part_id": "1", "product": "board", "photo_base64": encoded(b"text")}, "not an image"),
        ("inspect_part", {"part_id": "1", "photo_base64": encoded(good_photo(1))}, "say which product"),
        ("inspect_part", {"part_id": ""}, "at least 1 character"),
        ("get_inspection", {"inspection_id": "insp-1"}, "no inspection"),
        ("get_inspection", {"inspection_id": "../../etc/passwd", "pictures": ["overlay"]}, "no inspection"),
        ("get_inspection", {"inspection_id": "x", "pictures": ["../report.json"]}, "Input should be"),
        ("get_product", {"name": "screw"}, "no product"),
        ("align", {"bench": "b-1", "golden_id": "g-1"}, "call find_part"),
        ("list_inspections", {"limit": 1000}, "less than or equal to 100"),
    ],
)
def test_mcp_tool_mistake_returns_an_error_and_files_nothing(
    service: InspectionService, tool: str, arguments: dict[str, Any], words: str
) -> None:
    async def run() -> CallToolResult:
        async with Client(build_server(service)) as client:
            return await client.call_tool(tool, arguments)

    result = anyio.run(run)
    assert result.is_error
    assert words in text_of(result)
    assert service.stores.inspections.list() == []


def test_repeated_mcp_call_finds_the_running_inspection_and_returns_before_clients_give_up(
    service: InspectionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mcp_server.WAIT_S < 45
    monkeypatch.setattr(mcp_server, "WAIT_S", 0.2)
    go, run = threading.Event(), service._inspector.run

    def slowly(request: Any) -> Any:
        go.wait(60)
        return run(request)

    monkeypatch.setattr(service._inspector, "run", slowly)
    wish = {"part_id": "9", "product": "board", "photo_base64": encoded(good_photo(3)), "wait_s": 600}

    async def ask() -> None:
        async with Client(build_server(service, public_url="https://qa.example/")) as client:
            began = time.monotonic()
            calls = [(await good(client, "inspect_part", **wish)).structured_content for _ in range(3)]
            assert time.monotonic() - began < 30
            assert {c["state"] for c in calls} <= {"queued", "running"}
            [inspection_id] = {c["inspection_id"] for c in calls}
            go.set()
            await anyio.to_thread.run_sync(service.wait, inspection_id, 60)
            told = await good(client, "inspect_part", **wish)
            assert told.structured_content["inspection_id"] == inspection_id
            assert told.structured_content["page"] == f"https://qa.example/#/inspections/{inspection_id}"
            assert f"https://qa.example/#/inspections/{inspection_id}" in text_of(told)
            anew = await good(client, "inspect_part", **wish)  # its outcome was told: this is a new wish
            assert anew.structured_content["inspection_id"] != inspection_id

    anyio.run(ask)


def test_mcp_tools_refuse_wrong_order_and_unknown_names(service: InspectionService) -> None:
    service.stores.captures.add("9", "board", service.stores.images.put(good_photo(3)))

    async def run() -> None:
        async with Client(build_server(service)) as client:
            bench = (await good(client, "find_part", part_id="9")).structured_content["bench"]
            for tool, arguments, words in (
                ("score_difference", {}, "call align first"),
                ("zoom", {"region": "r1"}, "call score_difference first"),
                ("retrieve_reference", {"k": 99}, "less than or equal to 8"),
            ):
                result = await client.call_tool(tool, {"bench": bench, **arguments})
                assert result.is_error
                assert words in text_of(result)

    anyio.run(run)


def test_mcp_on_a_public_address_without_token_exits_with_64(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["mcp", "--http", "--host", "0.0.0.0"]) == 64
    assert "REFDIFF_MCP_TOKEN" in capsys.readouterr().err
