"""Health, readiness and metrics of a process that has no HTTP API: a worker."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from refdiff.agent.service import InspectionService
from refdiff.model.errors import RefDiffError
from refdiff.model.files import outage
from refdiff.server.sockets import address
from refdiff.server.web.metrics import CONTENT_TYPE, Metrics
from refdiff.server.web.routes.health import healthz, readyz

_STOP_S = 2


def create_probes(service: InspectionService) -> Starlette:
    """An application with `/healthz` and `/readyz`, as a server has them, and `/metrics`; none asks for a key."""
    metrics = Metrics(service)

    async def healthy(_request: Request) -> Response:
        return await healthz(service)

    async def ready(_request: Request) -> Response:
        return await readyz(service)

    def figures(_request: Request) -> Response:  # in a thread: it reads the stores
        try:
            return Response(metrics.text(), media_type=CONTENT_TYPE)
        except Exception as e:
            if outage(e) is None and not isinstance(e, RefDiffError):
                raise
            return PlainTextResponse("the stores cannot be read; /readyz says more", 503)

    return Starlette(routes=[Route("/healthz", healthy), Route("/readyz", ready), Route("/metrics", figures)])


@contextlib.contextmanager
def probes(service: InspectionService, host: str, listener: socket.socket) -> Iterator[str]:
    """Answer probes from a thread until the block ends. host: that the listener is bound to. Yields the URL."""
    config = uvicorn.Config(
        create_probes(service), log_config=None, access_log=False, server_header=False, proxy_headers=False,
        lifespan="off", ws="none", loop="asyncio", timeout_graceful_shutdown=_STOP_S,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="probes", daemon=True)
    thread.start()
    try:
        yield address(host, listener)
    finally:
        server.should_exit = True
        thread.join(2 * _STOP_S)
