"""MCP over streamable HTTP, with access control."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

from anyio.to_thread import run_sync
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from refdiff.memory.records.api_keys import KeyStore
from refdiff.model.files import outage
from refdiff.server.sockets import is_loopback, proxy_header

PATH, HEALTH = "/mcp", "/healthz"


class Admission:
    """Refuses requests without a good key (401). Where none is needed, those that came through a proxy. Health is told
    to everybody."""

    def __init__(self, app: ASGIApp, accepts: Callable[[str], bool] | None) -> None:
        self._app, self._accepts = app, accepts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != HEALTH:
            try:
                # in a thread: a database on another machine may be slow to answer
                why = await run_sync(self._refusal, Headers(scope=scope))
            except Exception as error:
                if (lacking := outage(error)) is None:
                    raise
                await JSONResponse({"error": str(lacking)}, 503, {"retry-after": "5"})(scope, receive, send)
                return
            if why:
                await JSONResponse({"error": why}, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        if self._accepts is None:
            proxy = proxy_header(headers)
            return proxy and f"this request came through a proxy (header {proxy[:40]}); leave out --without-keys"
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._accepts(key.strip()):
            return None
        return (
            "send Authorization: Bearer KEY: REFDIFF_MCP_TOKEN or, where none is set, an inspector's or admin's API key"
        )


def same_text(wanted: str) -> Callable[[str], bool]:
    """Whether a text is the wanted one, in constant time."""
    return lambda given: hmac.compare_digest(given.encode(), wanted.encode())


def known_to(keys: KeyStore) -> Callable[[str], bool]:
    """Whether a text is a valid API key of somebody who may inspect."""

    def known(given: str) -> bool:
        key = keys.check(given)
        return key is not None and key.role != "viewer"

    return known


def build_app(
    server: MCPServer[Any],
    host: str,
    accepts: Callable[[str], bool] | None,
    max_bytes: int,
    health: Callable[[], tuple[int, bytes]],
) -> Starlette:
    """The ASGI app with the endpoints /mcp and /healthz.

    accepts: whether a key opens it; None to serve this machine without one. max_bytes: limit of a request; base64 makes a
    photo a third larger. health: status and JSON body of /healthz; quick, waits for nothing.

    On loopback, only loopback host names are allowed, which prevents DNS rebinding by web pages.
    """
    own = f"[{host}]" if ":" in host else host  # any address of the loopback network
    local = [f"{h}:*" for h in dict.fromkeys(("127.0.0.1", "localhost", "[::1]", own))]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=is_loopback(host),
        allowed_hosts=local,
        allowed_origins=[f"http://{h}" for h in local],
    )
    app = server.streamable_http_app(
        streamable_http_path=PATH, host=host, transport_security=security, max_request_body_size=max_bytes
    )

    async def healthz(_: Request) -> Response:
        status, body = health()
        return Response(body, status, media_type="application/json")

    app.add_route(HEALTH, healthz)
    app.add_middleware(Admission, accepts=accepts)
    return app
