"""Request admission: checks id, host, origin, rate and key before any route; then headers, log line and metrics.

Pure ASGI, because streams must stay streams and a body must not be read before its sender is known.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from anyio import CancelScope, CapacityLimiter
from anyio.to_thread import run_sync
from fastapi.responses import JSONResponse, Response
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refdiff.memory.audit_chain import using_key
from refdiff.memory.kinds import Role
from refdiff.model.files import outage
from refdiff.server.web import errors
from refdiff.server.web.access import Access, Caller, check_role, given_key, server_port
from refdiff.server.web.connections import HUNG_UP
from refdiff.server.web.metrics import Metrics

log = logging.getLogger("refdiff.http")

_GUARDED = ("/v1/", "/metrics")  # paths that need an identified caller
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
PROBES = {"/healthz", "/readyz"}  # answered to everybody, whatever the limits
SMALL = 1_000_000  # limit of a body without photos, in bytes
MAX_JSON = 40_000_000  # limit of JSON with photos, in bytes: the parser holds up every thread
MAX_EXPORT = 4_000_000_000  # limit of an export, in bytes; it is written to the disk as it arrives
MAX_MEMBERS = 100_000  # of the lists and objects of such a body; parsing takes its time by them, not by bytes
SMALL_MEMBERS = 30_000  # of a body without photos, as many as the largest specification; each may be an error to word
STREAMS = 8  # event streams of one caller at a time
REQUESTS = 512  # at a time; of one caller half of them
DOCS_PATH = "/docs"
# Swagger UI starts with an inline script; the page holds no caller's data
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STREAM = re.compile(r"/v1/inspections/[^/]+/events")
_SAFE = {"GET", "HEAD", "OPTIONS"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """rate_per_minute, bytes_per_minute: of one key, or one address without a key; 0: no limit. max_bytes: of a body with
    images. max_photo_bytes: of one photo."""

    rate_per_minute: int
    bytes_per_minute: int
    max_bytes: int
    max_photo_bytes: int
    requests: int = REQUESTS


@dataclass(frozen=True)
class _Photos:
    """A route that takes photos: who may send them, and the kinds of bodies that carry them."""

    path: str
    role: Role
    kind: str = "multipart/"
    many: bool = False
    export: bool = False  # of a product, which is larger than any photo


_PHOTO_ROUTES = (
    _Photos("/v1/inspections", "inspector"),
    _Photos("/v1/captures", "inspector"),
    _Photos("/v1/lines/", "inspector"),
    _Photos("/v1/devices/exports/", "admin", kind="application/octet-stream", export=True),
    _Photos("/v1/devices/", "inspector"),
    _Photos("/v1/goldens", "admin", many=True),
    _Photos("/v1/chat/completions", "inspector", kind="", many=True),  # a conversation repeats its photos
)


@cache
def _identifying() -> CapacityLimiter:
    """How many callers are looked up at a time: half of the connections that read."""
    return CapacityLimiter(4)


class RequestAdmission:
    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, limits: Limits) -> None:
        self._app, self._access, self._metrics, self._limits = app, access, metrics, limits
        self._rate = RateLimitItemPerMinute(limits.rate_per_minute) if limits.rate_per_minute else None
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._volume = RateLimitItemPerMinute(limits.bytes_per_minute) if limits.bytes_per_minute else None
        self._volumes = FixedWindowRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()  # requests by caller
        self._streams: Counter[str] = Counter()

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
            await self._admit(request)
        except errors.Refused as refusal:
            answer = await errors.http_error(request, refusal)
            await answer(scope, receive, sending)
        except Exception as error:
            await (await self._failed(request, error))(scope, receive, sending)
        else:
            who = _who(request)
            counted = [self._running] if request.url.path not in PROBES else []
            if _STREAM.fullmatch(request.url.path):
                counted.append(self._streams)
            for counter in counted:
                counter[who] += 1
            try:
                with CancelScope() as work, using_key(_key_of(request)):
                    # a probe that hangs on a store is counted by its thread, which cancelling would let go
                    if (
                        request.method in _SAFE and request.url.path not in PROBES
                    ):  # what waits for a thread is dropped; what has begun in one is ended
                        scope[HUNG_UP] = work.cancel
                    await self._app(scope, self._limited(request, receive), sending)
                if work.cancelled_caught:
                    log.info("the client hung up", extra={"request_id": request.state.request_id})
            except ClientDisconnect:
                log.info("the client hung up", extra={"request_id": request.state.request_id})
            except Exception as error:
                if status:
                    raise
                await (await self._failed(request, error))(scope, receive, sending)
            finally:
                for counter in counted:
                    counter[who] -= 1
                    if not counter[who]:
                        del counter[who]
        finally:
            self._log(request, scope, status, time.perf_counter() - started)

    async def _failed(self, request: Request, error: Exception) -> Response:
        """The answer to a request that ended in an error."""
        if (lacking := outage(error)) is not None:
            log.warning("%s", lacking, extra={"request_id": request.state.request_id})
            return await errors.known(request, lacking)
        # a bug: the response has no details, the log has
        log.error("internal error", exc_info=error, extra={"request_id": request.state.request_id})
        text = "internal error; see the server's log under this request_id"
        return JSONResponse(errors.body(request, "InternalError", text, "internal_error"), 500)

    async def _admit(self, request: Request) -> None:
        """Raises Refused, and what the database of the keys raises."""
        headers, path = request.headers, request.url.path
        key = given_key(headers)
        if path in PROBES:
            return
        if not self._access.host_allowed(headers):
            raise errors.Refused(403, f"unknown host {headers.get('host', '')[:80]!r}: use localhost, or add the "
                                 "host to REFDIFF_ALLOWED_HOSTS")  # fmt: skip
        if (key is None or self._access.open) and request.method not in _SAFE and self._access.is_cross_site(headers):
            raise errors.Refused(403, "requests from web pages of other sites are not allowed")
        client, port = request.client.host if request.client else "", server_port(request)
        # people behind a proxy share its address, so they count by who they are
        person = key is None and path.startswith(_GUARDED) and self._access.has_cookie(headers, port)
        if key is None and not person:
            self._count(client)
        if path.startswith(_GUARDED):
            # in a thread: a database on another machine may be slow to answer, and every other request would wait with it
            identify = partial(self._access.identify, headers, client, key, port)
            try:
                caller = await run_sync(identify, limiter=_identifying())
            except errors.Refused:
                if person:
                    self._count(client)
                raise
            request.state.caller = caller
            if key is not None or person:
                self._count(caller.key_id or client)
        elif key is not None:
            self._count(client)
        who = _who(request)
        if self._running[who] >= self._limits.requests // 2 or self._running.total() >= self._limits.requests:
            raise errors.Refused(503, "too many requests at a time; try again", {"Retry-After": "1"})
        if _STREAM.fullmatch(path) and self._streams[who] >= STREAMS:
            raise errors.Refused(
                429, f"{STREAMS} event streams are open already; close one, or ask for the inspection's state instead",
                {"Retry-After": "10"},
            )  # fmt: skip
        photos = _photos(request)
        if photos and request.method == "POST":
            check_role(request.state.caller, photos.role)  # before the body is read
        if (length := headers.get("content-length", "0")).isdecimal():
            if int(length) > self._limit(photos):
                raise _too_large(self._limit(photos), photos)
            if photos and self._volume and not self._volumes.test(self._volume, who, cost=int(length)):
                raise self._too_much(who)

    def _count(self, who: str) -> None:
        """Count a request against the rate of a key, or of an address without one. Raises Refused."""
        if self._rate and not self._window.hit(self._rate, who):
            reset = self._window.get_window_stats(self._rate, who).reset_time
            raise errors.Refused(429, f"more than {self._rate.amount} requests a minute; slow down", _wait(reset))

    def _limit(self, photos: _Photos | None) -> int:
        """Size limit of the body, in bytes; higher where images are expected."""
        if photos is None:
            return SMALL
        if photos.export:
            return MAX_EXPORT
        one = self._limits.max_photo_bytes + SMALL
        most = MAX_JSON if not photos.kind else self._limits.max_bytes if photos.many else one
        return min(most, self._limits.max_bytes)

    def _too_much(self, who: str) -> errors.Refused:
        assert self._volume is not None
        reset = self._volumes.get_window_stats(self._volume, who).reset_time
        return errors.Refused(
            429, f"more than {self._volume.amount:,} bytes of photos a minute (REFDIFF_BYTES_PER_MINUTE); slow down",
            _wait(reset),
        )  # fmt: skip

    def _limited(self, request: Request, receive: Receive) -> Receive:
        """`receive` with the limits of the body enforced, also for one without a stated length."""
        photos, who = _photos(request), _who(request)
        limit, seen, members = self._limit(photos), 0, 0
        most_members = MAX_MEMBERS if photos else SMALL_MEMBERS
        is_json = "json" in request.headers.get("content-type", "").lower()

        async def receiving() -> Message:
            nonlocal seen, members
            message = await receive()
            body = message.get("body", b"")
            seen += len(body)
            if seen > limit:
                raise _too_large(limit, photos)
            if is_json:
                members += body.count(b",")
                if members > most_members:
                    raise errors.Refused(413, f"the JSON has more than {most_members:,} members; send less at a time")
            if photos and body and not photos.export:
                self._metrics.received(len(body))
                if self._volume and not self._volumes.hit(self._volume, who, cost=len(body)):
                    raise self._too_much(who)
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


def _photos(request: Request) -> _Photos | None:
    path, kind = request.url.path, request.headers.get("content-type", "").lower()
    return next((r for r in _PHOTO_ROUTES if _is_at(path, r.path) and kind.startswith(r.kind)), None)


def _is_at(path: str, route: str) -> bool:
    return path.startswith(route) if route.endswith("/") else path == route


def _who(request: Request) -> str:
    """Whom the limits count: the key, or the address without one."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return (caller and caller.key_id) or (request.client.host if request.client else "")


def _wait(reset_time: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, round(reset_time - time.time())))}


def _too_large(limit: int, photos: _Photos | None) -> errors.Refused:
    way_out = "REFDIFF_HTTP_MAX_BYTES sets the limit for images"
    if photos and photos.export:
        way_out = "publish it at the server itself: refdiff export --publish"
    if photos and not photos.kind:
        way_out = "send large photos to /v1/captures, then name the part in the conversation"
    return errors.Refused(413, f"the body exceeds {limit:,} bytes ({way_out})")
