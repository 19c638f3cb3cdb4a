"""The server itself: health, version and metrics."""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from importlib.metadata import version
from typing import Literal, cast

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from refdiff.agent.service import InspectionService
from refdiff.model.files import outage
from refdiff.server.web.access import TheService, Viewer
from refdiff.server.web.errors import responses
from refdiff.server.web.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"])
log = logging.getLogger(__name__)
_READY_S = 2.0
_VERSION = version("refdiff")


class Health(BaseModel):
    status: str
    version: str


class Ready(BaseModel):
    """problems: why accepted work does not get done now, in words; [] if it does."""

    status: Literal["ready", "not ready"]
    problems: list[str]


class VersionView(BaseModel):
    version: str
    model: str | None
    no_model: str
    encoder: str


@router.get(
    "/healthz",
    response_model=Health,
    responses={503: {"model": Health, "description": "The inspection thread has died; restart the server"}},
)
async def healthz(service: TheService) -> Response:
    """Health for process managers: whether a restart would help. Needs no key, and waits for no thread, lock or disk.

    On a new connection it is answered before all other requests, and appears in neither log nor metrics.
    """
    status, body = health_of(service)
    return Response(body, status, media_type="application/json")


def health_of(service: InspectionService) -> tuple[int, bytes]:
    """Status and JSON body of /healthz. Waits for nothing."""
    alive = service.alive
    shown = Health(status="ok" if alive else "failing", version=_VERSION)
    return 200 if alive else 503, shown.model_dump_json().encode()


@router.get("/readyz", responses={503: {"model": Ready, "description": "Accepted work does not get done now"}})
async def readyz(service: TheService, workers: bool = True) -> JSONResponse:
    """Readiness for load balancers and alarms: workers, stores, golden bank and free disk. Needs no key.

    workers=false leaves out whether a worker lives: a server that only accepts can do so while its workers are started
    again, so a balancer should go on sending.
    """
    try:
        async with asyncio.timeout(_READY_S):
            ready = await run_sync(service.readiness, workers, abandon_on_cancel=True, limiter=_probes())
        problems = list(ready.problems)
    except TimeoutError:
        problems = [f"the stores have not answered within {_READY_S:g} s"]
    except Exception as e:
        if outage(e) is None:
            raise
        problems = ["the stores cannot be read; the log says why"]
        log.warning("not ready: %s", outage(e))
    shown = Ready(status="not ready" if problems else "ready", problems=problems)
    return JSONResponse(shown.model_dump(), 503 if problems else 200)


@cache
def _probes() -> CapacityLimiter:
    """Threads of their own: those of the other routes may all be held."""
    return CapacityLimiter(2)


@router.get("/v1/version", responses=responses())
def get_version(service: TheService, _caller: Viewer) -> VersionView:
    """Version, language model (or why there is none) and encoder fingerprint."""
    status = service.status()
    return VersionView(
        version=status.version,
        model=status.model,
        no_model=status.no_model,
        encoder=service.workspace.encoder.fingerprint,
    )


@router.get("/metrics", response_class=Response, responses=responses(answers="text/plain"))
def metrics(request: Request, _caller: Viewer) -> Response:
    """Metrics for Prometheus."""
    return Response(cast(Metrics, request.app.state.metrics).text(), media_type=CONTENT_TYPE)
