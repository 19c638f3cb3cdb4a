"""Requests that the guard passes to vLLM, changes or refuses; called as an ASGI server calls it."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.model.errors import InputError
from refdiff.model.language.reading import READING_SCHEMA
from refdiff.model.language.tokens import NEW_TOKENS
from refdiff.server.vllm_plugin import guard as guard_module
from refdiff.server.vllm_plugin.guard import SERVED, Guard
from refdiff.server.vllm_plugin.request import MAX_PICTURE_PIXELS, MAX_TEXT, check_schema, checked

Body = dict[str, Any]
NEEDS_XGRAMMAR = pytest.mark.skipif(not importlib.util.find_spec("xgrammar"), reason="xgrammar comes with vLLM")


def picture(side: int = 8, data: bytes | None = None) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data or buffer.getvalue()).decode()}"


def shown(*urls: Any, text: str = "look", role: str = "user") -> Body:
    blocks = [{"type": "image_url", "image_url": {"url": u}, "uuid": "made-up"} for u in urls]
    return {"role": role, "content": [{"type": "text", "text": text}, *blocks]}


def sent(*messages: Body, **fields: Any) -> Body:
    """The request as vLLM gets it."""
    given = {"model": "refdiff", "messages": list(messages) or [{"role": "user", "content": "hi"}]}
    answer: Body = json.loads(checked(json.dumps(given | fields).encode()))
    return answer


def tool(**function: Any) -> Body:
    parameters = {"type": "object", "properties": {"region": {"type": "string"}}, "required": ["region"]}
    return {"type": "function", "function": {"name": "zoom", "parameters": parameters, "strict": True} | function}


def test_valid_request_passes_unchanged() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": '{"region": "r1"}'}}
    messages = [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "Grüße, 零件 #4412"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"evidence": "e1"}', "tool_call_id": "1"},
    ]
    given = sent(
        *messages, tools=[tool()], temperature=0, max_completion_tokens=9, parallel_tool_calls=False, user="ann"
    )
    assert given["messages"] == messages
    assert given["tools"] == [tool()]
    assert (given["temperature"], given["max_completion_tokens"]) == (0, 9)
    assert "user" not in given


def test_picture_pairs_pass_without_client_uuids() -> None:
    given = sent(shown(picture(8), picture(9)), shown(picture(10), picture(11)))
    urls = [b["image_url"]["url"] for m in given["messages"] for b in m["content"] if b["type"] == "image_url"]
    assert urls == [picture(side) for side in (8, 9, 10, 11)]
    assert "made-up" not in json.dumps(given)


@pytest.mark.parametrize("token", [*NEW_TOKENS, "<|im_start|>", "<|im_end|>"])
def test_control_tokens_in_a_request_are_stripped_or_refused(token: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": json.dumps({"region": token})}}
    text = {"role": "user", "content": f"a {token[:2]}{token}{token[2:]} b"}
    given = sent(
        text, {"role": "assistant", "content": token, "tool_calls": [call]}, {"role": "tool", "content": token}
    )
    assert token not in json.dumps(given, ensure_ascii=False)
    split = {"role": "user", "content": [{"type": "text", "text": token[:3]}, {"type": "text", "text": token[3:]}]}
    assert token not in json.dumps(sent(split))
    odd = tool(parameters={"type": "object", "properties": {token: {"type": "string"}}})
    with pytest.raises(InputError, match="tokens with a meaning"):
        sent(tools=[odd])


def _bomb() -> str:
    buffer = io.BytesIO()
    Image.new("L", (30_000, 30_000)).save(buffer, "PNG")
    return picture(data=buffer.getvalue())


def _wide() -> str:
    buffer = io.BytesIO()
    Image.new("1", (MAX_PICTURE_PIXELS // 1000, 1001)).save(buffer, "PNG")
    return picture(data=buffer.getvalue())


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([shown(picture())], "1 picture"),
        ([shown(picture()), shown(picture())], "1 picture"),
        ([shown(*[picture()] * 3)], "3 picture"),
        ([shown(*[picture()] * 4)], "4 picture"),
        ([shown(picture(), picture(), role="assistant")], "assistant message"),
        ([shown(picture(), picture())] * 5, "at most 4"),
        ([shown("https://example.org/a.png", picture())], "not fetched"),
        ([shown("file:///etc/passwd", picture())], "not fetched"),
        ([shown(None, picture())], "not fetched"),
        ([shown("data:image/png;base64,@@@", picture())], "base64"),
        ([shown("data:image/png;base64,AAAA", picture())], "cannot be read"),
        ([shown(picture(data=b"\x89PNG\r\n\x1a\n" + b"\0" * 40), picture())], "cannot be read"),
        ([shown(picture(data=b"<svg xmlns='http://www.w3.org/2000/svg'/>"), picture())], "cannot be read"),
        ([{"role": "root", "content": "x"}], "role"),
        ([{"role": "user", "content": 5}], "text or a list"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}], "video_url"),
        ([{"role": "user", "content": "x" * (MAX_TEXT + 1)}], "characters"),
        (["hi"], "JSON object"),
        ([], "list of messages"),
    ],
)
def test_invalid_messages_are_refused_with_the_reason(messages: list[Any], why: str) -> None:
    body = json.dumps({"model": "refdiff", "messages": messages}).encode()
    with pytest.raises(InputError, match=why):
        checked(body)


@pytest.mark.parametrize("make", [_bomb, _wide])
def test_huge_picture_is_refused_without_decoding(make: Any) -> None:
    with pytest.raises(InputError, match="smaller"):
        sent(shown(make(), picture()))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"messages": 1}', b"\xff\xfe"])
def test_malformed_request_body_is_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        checked(body)


@pytest.mark.parametrize(
    "fields",
    [{"n": 1000}, {"n": 0}, {"n": "2"}, {"chat_template": "{{ x }}"}, {"mm_processor_kwargs": {}}, {"documents": []},
     {"allowed_token_ids": [1]}, {"structured_outputs": {"regex": "(a+)+"}}, {"tools": "zoom"}, {"tools": [tool()] * 65},
     {"tools": [tool(name="a b")]}, {"tools": [{"type": "function"}]}, {"tools": [tool(parameters=5)]},
     {"response_format": {"type": "structural_tag"}}, {"response_format": 5}],
)  # fmt: skip
def test_costly_or_unsafe_request_fields_are_refused(fields: Body) -> None:
    with pytest.raises(InputError):
        sent(**fields)


def _deep(levels: int) -> Body:
    schema: Body = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [True, _deep(30), {"type": "string", "minLength": 10**9}, {"type": "array", "items": {}, "maxItems": 1e300},
     {"type": "string", "pattern": "(a{99}){99}"}, {"type": "string", "pattern": "a" * 1001}, {"enum": ["x" * 70_000]}],
)  # fmt: skip
def test_json_schema_too_large_to_compile_is_refused(schema: Any) -> None:
    with pytest.raises(InputError):
        check_schema(schema)


def test_own_json_schemas_pass_the_size_check() -> None:
    check_schema(READING_SCHEMA)
    check_schema(_deep(10))
    check_schema({"type": "string", "pattern": "[0-9]{1,3}(\\.[0-9]{2})?"})


@NEEDS_XGRAMMAR
def test_json_schema_becomes_the_trained_grammar() -> None:
    import xgrammar

    wanted = {"type": "json_schema", "json_schema": {"name": "reading", "strict": True, "schema": READING_SCHEMA}}
    given = sent(response_format=wanted)
    assert "response_format" not in given
    grammar = xgrammar.Grammar.from_ebnf(given["structured_outputs"]["grammar"])
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([]))

    def fits(text: str) -> bool:
        return bool(xgrammar.GrammarMatcher(compiler.compile_grammar(grammar)).accept_string(text))

    assert fits('{"defect": true, "type": "crack", "confidence": 95}')
    for text in ('{"defect":true', '{ "defect"', '{\n"defect"', '{"defect": 1', '{"type"'):
        assert not fits(text), text


@NEEDS_XGRAMMAR
@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"type": "string", "pattern": "("}, {"$ref": "#/nope"}, {"enum": []}]
)
def test_invalid_json_schema_is_refused_with_the_reason(schema: Body) -> None:
    with pytest.raises(InputError, match=r"cannot be used: [A-Za-z]"):
        sent(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


class Server:
    """One request through the guard, in pieces as they come from a socket; what vLLM and what the client got."""

    def __init__(
        self, *pieces: bytes | None, path: str = SERVED, method: str = "POST", authorization: bytes | None = None
    ) -> None:
        self.reached: list[bytes] = []
        self.sent: list[Body] = []
        self._pieces = list(pieces)
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(b"content-length", b"999"), (b"x-a", b"b")],
        }
        if authorization is not None:
            scope["headers"] = [*scope["headers"], (b"authorization", authorization)]
        asyncio.run(Guard(self._app)(scope, self._receive, self._send))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        headers = dict(scope["headers"])
        assert headers[b"x-a"] == b"b"
        self.reached.append(message.get("body", b""))
        if scope["method"] == "POST":
            assert int(headers[b"content-length"]) == len(self.reached[0])
            assert (await receive())["type"] == "http.disconnect"

    async def _receive(self) -> Body:
        piece = self._pieces.pop(0) if self._pieces else None
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


GOOD = json.dumps({"model": "refdiff", "messages": [{"role": "user", "content": "a <image> b"}]}).encode()


def test_guard_passes_the_checked_body_on() -> None:
    server = Server(GOOD[:10], GOOD[10:])
    assert server.sent == []
    assert json.loads(server.reached[0])["messages"] == [{"role": "user", "content": "a   b"}]


def test_guard_error_has_the_openai_format() -> None:
    server = Server(b'{"messages": []}')
    assert (server.status, server.reached) == (400, [])
    error = json.loads(server.sent[1]["body"])["error"]
    assert error["type"] == "invalid_request_error"
    assert "list of messages" in error["message"]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), (b"", 401), (b"Bearer", 401), (b"Bearer wrong", 401), (b"Basic s\xc3\xa9cret", 401),
     (b"Bearer s\xc3\xa9cret ", 401), (b"bearer s\xc3\xa9cret", 200), (b"Bearer s\xc3\xa9cret", 200)],
)  # fmt: skip
def test_request_without_the_key_gets_401_unread(
    monkeypatch: pytest.MonkeyPatch, authorization: bytes | None, status: int
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sécret")
    server = Server(GOOD, authorization=authorization)
    if status == 200:
        assert (server.sent, len(server.reached)) == ([], 1)
        return
    assert (server.status, server.reached) == (401, [])
    assert server._pieces == [GOOD], "the body was not read"
    assert "VLLM_API_KEY" in json.loads(server.sent[1]["body"])["error"]["message"]
    assert Server(b"", path="/v1/models", method="GET").reached == [b""]  # vLLM's own check follows


@pytest.mark.parametrize(
    ("field", "levels"),
    [(field, n) for field in ("tool_calls", "arguments", "tools") for n in (100, 700, 5000)] + [("stop", 5000)],
)
def test_deeply_nested_json_gets_400(field: str, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": deep}}
    message: Body = {"role": "assistant", "content": None, "tool_calls": "DEEP" if field == "tool_calls" else [call]}
    request: Body = {
        "messages": [message if field in ("tool_calls", "arguments") else {"role": "user", "content": "a"}]
    }
    if field in ("stop", "tools"):
        request[field] = "DEEP"
    server = Server(json.dumps(request).replace('"DEEP"', deep).encode())
    assert (server.status, server.reached) == (400, [])


def test_ordinary_tool_call_arguments_pass_unchanged() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": '{"box": [1, 2, 3, 4]}'}}
    for arguments in ('{"box": [1, 2, 3, 4]}', "no JSON", {"box": [1, [2]]}):
        function = {"name": "zoom", "arguments": arguments}
        message = {"role": "assistant", "content": "", "tool_calls": [call | {"function": function}]}
        server = Server(json.dumps({"messages": [message]}).encode())
        assert json.loads(server.reached[0])["messages"][0]["tool_calls"][0]["function"] == function


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/embeddings", "/tokenize", "/v1/load_lora_adapter", "/pooling"]
)
def test_paths_other_than_chat_get_404(path: str) -> None:
    server = Server(GOOD, path=path)
    assert (server.status, server.reached) == (404, [])


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_health_metrics_and_models_requests_pass(path: str) -> None:
    assert Server(b"", path=path, method="GET").reached == [b""]


def test_endless_body_gets_413_and_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MAX_BODY", 100)
    server = Server(*[b"x" * 60] * 9)
    assert (server.status, server.reached) == (413, [])
    assert len(server._pieces) == 7, "read no further"


def test_guard_sends_nothing_when_the_client_disconnects() -> None:
    server = Server(GOOD[:10], None)
    assert (server.sent, server.reached) == ([], [])


def test_websocket_is_closed_with_policy_violation() -> None:
    sent_: list[Body] = []

    async def send(message: Any) -> None:
        sent_.append(message)

    asyncio.run(Guard(None)({"type": "websocket", "path": "/v1/realtime"}, None, send))  # type: ignore[arg-type]
    assert sent_ == [{"type": "websocket.close", "code": 1008}]
