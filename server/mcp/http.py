"""MCP over streamable HTTP, with access control."""

from __future__ import annotations

import hmac
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from refdiff.server.sockets import is_loopback

PATH = "/mcp"


class BearerToken:
    """Refuses requests without the token (401); compares in constant time."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                refusal = JSONResponse(
                    {"error": "send Authorization: Bearer REFDIFF_MCP_TOKEN"}, 401, {"www-authenticate": "Bearer"}
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def build_app(server: MCPServer[Any], host: str, token: str | None, max_bytes: int) -> Starlette:
    """The ASGI app with the endpoint /mcp. max_bytes: limit of a request; base64 makes a photo a third larger.

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
    if token:
        app.add_middleware(BearerToken, token=token)
    return app
