"""Request admission: checks id, host, origin, rate and key before any route; then headers, log line and metrics.

Pure ASGI, because streams must stay streams and a body must not be read before its sender is known.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refdiff.memory.audit_chain import using_key
from refdiff.server.web import errors
from refdiff.server.web.access import Access, Caller, given_key, server_port
from refdiff.server.web.metrics import Metrics

log = logging.getLogger("refdiff.http")

_GUARDED = ("/v1/", "/metrics")  # paths that need an identified caller
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
WITH_PICTURES = {"/v1/chat/completions"}  # paths whose JSON bodies carry images
SMALL = 1_000_000  # limit of any other body, in bytes
DOCS_PATH = "/docs"
# Swagger UI starts with an inline script; the page holds no caller's data
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {"GET", "HEAD", "OPTIONS"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class RequestAdmission:
    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, rate_per_minute: int, max_bytes: int) -> None:
        """max_bytes: limit of a body with images. rate_per_minute: per key, or per address without a key; 0: no limit."""
        self._app, self._access, self._metrics = app, access, metrics
        self._max_bytes = max_bytes
        self._rate = RateLimitItemPerMinute(rate_per_minute) if rate_per_minute else None
        self._window = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request.state.request_id
                if request.url.path == DOCS_PATH:
                    headers["Content-Security-Policy"] = _DOCS_POLICY
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._admit(request)
        except errors.Refused as refusal:
            answer = await errors.http_error(request, refusal)
            await answer(scope, receive, sending)
        else:
            try:
                with using_key(_key_of(request)):
                    await self._app(scope, self._limited(request, receive), sending)
            except Exception:  # a bug: the response has no details, the log has
                log.exception("internal error", extra={"request_id": request.state.request_id})
                if status:
                    raise
                text = "internal error; see the server's log under this request_id"
                failed = JSONResponse(errors.body(request, "InternalError", text, "internal_error"), 500)
                await failed(scope, receive, sending)
        finally:
            self._log(request, scope, status, time.perf_counter() - started)

    def _admit(self, request: Request) -> None:
        """Raises Refused."""
        headers, path = request.headers, request.url.path
        key = given_key(headers)
        if path == "/healthz":
            return
        if not self._access.host_allowed(headers):
            raise errors.Refused(403, f"unknown host {headers.get('host', '')[:80]!r}: use localhost, or add the "
                                 "host to REFDIFF_ALLOWED_HOSTS")  # fmt: skip
        if (key is None or self._access.open) and request.method not in _SAFE and _is_cross_site(headers):
            raise errors.Refused(403, "requests from web pages of other sites are not allowed")
        client = request.client.host if request.client else ""
        if key is None:
            self._count(client)
        if path.startswith(_GUARDED):
            caller = self._access.identify(headers, client, key, server_port(request))
            request.state.caller = caller
            if key is not None:
                self._count(caller.key_id or client)
        elif key is not None:
            self._count(client)
        if (length := headers.get("content-length", "0")).isdecimal() and int(length) > self._limit(request):
            raise _too_large(self._limit(request))

    def _count(self, who: str) -> None:
        """Count a request against the rate of a key, or of an address without one. Raises Refused."""
        if self._rate and not self._window.hit(self._rate, who):
            reset = self._window.get_window_stats(self._rate, who).reset_time
            wait = {"Retry-After": str(max(1, round(reset - time.time())))}
            raise errors.Refused(429, f"more than {self._rate.amount} requests a minute; slow down", wait)

    def _limit(self, request: Request) -> int:
        """Size limit of the body, in bytes; higher where images are expected."""
        kind = request.headers.get("content-type", "").lower()
        pictures = kind.startswith("multipart/") or request.url.path in WITH_PICTURES
        return self._max_bytes if pictures else SMALL

    def _limited(self, request: Request, receive: Receive) -> Receive:
        """`receive` with the size limit enforced, also for a body without a stated length."""
        limit, seen = self._limit(request), 0

        async def receiving() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        return receiving

    def _log(self, request: Request, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")  # the route template: ids must not become labels
        self._metrics.request(request.method, route or "unknown", status, seconds)
        fields = {
            "request_id": request.state.request_id,
            "method": request.method,
            "path": request.url.path[:300],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "key": _key_of(request),
            "client": request.client.host if request.client else None,
        }
        log.log(logging.INFO if status < 500 else logging.ERROR, "request", extra=fields)


def _key_of(request: Request) -> str | None:
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller.key_id if caller else None


def _too_large(limit: int) -> errors.Refused:
    return errors.Refused(413, f"the body exceeds {limit:,} bytes (REFDIFF_HTTP_MAX_BYTES sets the limit for images)")


def _is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent this for a page of another site; programs send neither header."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
