"""The server itself: health, version and metrics."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from refdiff.server.web.access import TheService, Viewer
from refdiff.server.web.errors import responses
from refdiff.server.web.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"])


class Health(BaseModel):
    status: str
    version: str


class VersionView(BaseModel):
    version: str
    model: str | None
    no_model: str
    encoder: str


@router.get(
    "/healthz", responses={503: {"model": Health, "description": "The inspection thread has died; restart the server"}}
)
def healthz(service: TheService) -> JSONResponse:
    """Health for load balancers and process managers; needs no key."""
    status = service.status()
    shown = Health(status="ok" if status.healthy else "failing", version=status.version)
    return JSONResponse(shown.model_dump(), 200 if status.healthy else 503)


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
