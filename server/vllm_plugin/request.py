"""Request checks before vLLM: texts without control tokens, image pairs as data URLs, schemas of bounded size.

Everything else is refused with a message that says what to send instead. Knows nothing about HTTP.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from PIL import Image

from refdiff.model.errors import InputError
from refdiff.model.language.messages import safe_messages
from refdiff.model.language.tokens import strip_all_control_tokens, strip_control_tokens
from refdiff.server.vllm_plugin.grammar import tight_json

MAX_TEXT = 200_000  # characters in all texts of a request: several times the model's context
MAX_CHOICES = 4
MAX_PICTURE_PIXELS = 16_000_000
MAX_TOOLS = 64
_SCHEMA_CHARS, _SCHEMA_DEPTH, _SCHEMA_COUNT = 64_000, 24, 4096
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REPEATED = re.compile(r"\{(\d+)(?:,(\d*))?\}")

# OpenAI's fields, and those of vLLM that only affect sampling or reporting
_PASSED = frozenset(
    ("messages", "model", "max_tokens", "max_completion_tokens", "n", "seed", "stop", "stream", "stream_options",
     "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
     "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "ignore_eos", "min_tokens", "priority",
     "request_id", "cache_salt", "return_token_ids", "response_format")
)  # fmt: skip
_UNUSED = frozenset(("user", "metadata", "store", "service_tier", "reasoning_effort"))


def checked(body: bytes) -> bytes:
    """The checked request for vLLM. Raises InputError."""
    try:
        return _checked(body)
    except RecursionError as e:
        raise InputError("the request is nested too deeply") from e


def _checked(body: bytes) -> bytes:
    try:
        request = json.loads(body)
    except ValueError as e:
        raise InputError("the request is not JSON") from e
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list) or not request["messages"]:
        raise InputError("send a JSON object with a list of messages")
    if not all(isinstance(m, dict) for m in request["messages"]):
        raise InputError("every message is a JSON object with role and content")
    unknown = sorted(set(request) - _PASSED - _UNUSED)
    if unknown:
        raise InputError(f"unknown or refused fields: {', '.join(map(repr, unknown))[:200]}; leave them out")
    request = {k: v for k, v in request.items() if k in _PASSED and v is not None}
    if not isinstance(request.get("n", 1), int) or not 1 <= request.get("n", 1) <= MAX_CHOICES:
        raise InputError(f"n={str(request['n'])[:20]}: ask for 1 to {MAX_CHOICES} answers")
    request["messages"] = _messages(request["messages"])
    if "tools" in request:
        request["tools"] = _tools(request["tools"])
    _answer_format(request)
    return json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")


def _messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    safe, pairs = safe_messages(messages, "image_url")
    if sum(map(_characters, safe)) > MAX_TEXT:
        raise InputError(f"the texts have more than {MAX_TEXT:,} characters; send less of the history")
    for url in (picture for pair in pairs for picture in pair):
        check_picture(url.get("url") if isinstance(url, dict) else url)
    return [_message(m) for m in safe]


def check_picture(url: Any) -> None:
    """Raises InputError unless it is a data URL of a decodable image; only the image header is read here."""
    start = _DATA_URL.match(url) if isinstance(url, str) else None
    if start is None:
        raise InputError("a picture is sent as {'url': 'data:image/png;base64,...'}, not fetched from an address")
    try:
        data = base64.b64decode(url[start.end() :], validate=True)
    except ValueError as e:
        raise InputError("a picture is no valid base64") from e
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as e:
        raise InputError(f"a picture is larger than {MAX_PICTURE_PIXELS:,} pixels; send a smaller one") from e
    except (OSError, ValueError, SyntaxError) as e:  # what Pillow raises for damaged headers
        raise InputError(f"a picture cannot be read; send one of {', '.join(_FORMATS)}") from e
    if width * height > MAX_PICTURE_PIXELS:
        raise InputError(
            f"a picture of {width} x {height} is larger than {MAX_PICTURE_PIXELS:,} pixels; send a smaller one"
        )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Allow known keys only: an id next to an image, for example, would replace it in caches."""
    kept = {k: message[k] for k in ("role", "content", "tool_calls", "tool_call_id") if message.get(k) is not None}
    calls = kept.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        _check_arguments(function.get("arguments") if isinstance(function, dict) else None)
    if isinstance(kept["content"], list):
        kept["content"] = [
            b if b["type"] == "text" else {"type": "image_url", "image_url": {"url": _url(b)}} for b in kept["content"]
        ]
    return kept


def _check_arguments(arguments: Any) -> None:
    """vLLM parses text arguments as JSON and refuses invalid JSON itself."""
    if isinstance(arguments, str):
        try:
            strip_all_control_tokens(json.loads(arguments))
        except RecursionError as e:
            raise InputError("the arguments of a tool call are nested too deeply") from e
        except ValueError:
            pass


def _url(block: dict[str, Any]) -> str:
    given = block["image_url"]
    return str(given["url"] if isinstance(given, dict) else given)


def _characters(message: dict[str, Any]) -> int:
    content = message["content"]
    texts = [content] if isinstance(content, str) else [b["text"] for b in content if b["type"] == "text"]
    return sum(map(len, texts)) + len(json.dumps(message.get("tool_calls") or ""))


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise InputError(f"tools is a list of at most {MAX_TOOLS} functions")
    made = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not _NAME.fullmatch(str(function.get("name"))):
            raise InputError("a tool is {'type': 'function', 'function': {'name': letters, digits, _ and -, ...}}")
        parameters = function.get("parameters") or {"type": "object"}
        check_schema(parameters)
        properties = parameters.get("properties") or {}
        if any(strip_control_tokens(str(name)) != name for name in properties):
            raise InputError(f"tool {function['name']}: its parameters' names hold tokens with a meaning")
        plain = {k: function[k] for k in ("name", "description", "strict") if function.get(k) is not None}
        made.append({"type": "function", "function": plain | {"parameters": parameters | {"properties": properties}}})
    return made


def _answer_format(request: dict[str, Any]) -> None:
    """Replace a JSON schema by a grammar in the format of the training data."""
    wanted = request.pop("response_format", None)
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return
    named = wanted.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, dict) else {"type": "object"} if kind == "json_object" else None
    if not isinstance(schema, dict):
        raise InputError("response_format is {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}")
    check_schema(schema)
    try:
        request["structured_outputs"] = {"grammar": tight_json(schema)}
    except ValueError as e:
        raise InputError(f"the JSON schema cannot be used: {e}") from e


def check_schema(schema: Any) -> None:
    """Raises InputError for invalid schemas, and for those whose grammar would be too large."""
    if not isinstance(schema, dict):
        raise InputError("a JSON schema is an object")
    if len(json.dumps(schema)) > _SCHEMA_CHARS:
        raise InputError(f"a JSON schema has at most {_SCHEMA_CHARS:,} characters")
    for depth, key, value in _walk(schema, 0):
        if depth > _SCHEMA_DEPTH:
            raise InputError(f"a JSON schema is nested at most {_SCHEMA_DEPTH} deep")
        if key in _COUNTS and isinstance(value, int | float) and not value <= _SCHEMA_COUNT:
            raise InputError(f"a JSON schema counts to at most {_SCHEMA_COUNT}: {key}={str(value)[:20]}")
        if key == "pattern" and isinstance(value, str):
            times = [int(found[1] or found[0]) for found in _REPEATED.findall(value[:10_000])]
            if len(value) > 1000 or math.prod(max(1, t) for t in times) > _SCHEMA_COUNT:
                raise InputError("a pattern of a JSON schema is too long or repeats too often")


def _walk(value: Any, depth: int) -> Iterator[tuple[int, str, Any]]:
    if depth > _SCHEMA_DEPTH + 1:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield depth, key, inner
            yield from _walk(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, depth + 1)
