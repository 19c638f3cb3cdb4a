"""The guard before vLLM's HTTP server: an ASGI middleware (`--middleware`) that lets checked chat requests through.

vLLM checks the key (VLLM_API_KEY) only behind this middleware, so it is checked here too: without it no body is kept, no
picture decoded and no grammar built. GET requests are left to vLLM's check.
Of the other requests only /v1/chat/completions is served; request.py checks and rewrites its body, up to a limit and in a
thread, so a large one delays nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from refdiff.model.errors import InputError
from refdiff.server.vllm_plugin.request import checked

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SERVED = "/v1/chat/completions"
MAX_BODY = 32 * 2**20  # bytes: eight large photos


class Guard:
    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get("VLLM_API_KEY") or None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if not self._may(scope["headers"]):
            await _refuse(send, 401, "the key is missing or wrong; send Authorization: Bearer KEY (of VLLM_API_KEY)")
            return
        if scope["path"] != SERVED:
            await _refuse(send, 404, f"{scope['path'][:100]} is not served here; post to {SERVED}")
            return
        try:
            body = await _body(receive)
            if body is None:
                await _refuse(send, 413, f"the request is larger than {MAX_BODY // 2**20} MiB; send smaller pictures")
                return
            body = await asyncio.to_thread(checked, body)
        except InputError as e:
            await _refuse(send, 400, str(e))
            return
        except ConnectionError:
            return  # the client has disconnected
        headers = [(k, v) for k, v in scope["headers"] if k.lower() not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._app({**scope, "headers": headers}, _again(body, receive), send)

    def _may(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        if self._key is None:
            return True
        given = next((v for k, v in headers if k.lower() == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        # digests: the comparison time reveals neither content nor length of the key
        same = hmac.compare_digest(hashlib.sha256(key).digest(), hashlib.sha256(self._key.encode()).digest())
        return scheme.lower() == b"bearer" and same


async def _body(receive: Receive) -> bytes | None:
    """The whole body, None if it is too large. Raises ConnectionError if the client disconnected."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that yields the checked body, then the client's further events (disconnect)."""
    sent = False

    async def next_message() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


async def _refuse(send: Send, status: int, message: str) -> None:
    """An error in the format of OpenAI's API."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
