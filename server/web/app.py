"""The FastAPI application over one inspection service."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from refdiff.agent.service import InspectionService
from refdiff.server.settings import ServerSettings
from refdiff.server.telemetry import of_requests
from refdiff.server.web import errors
from refdiff.server.web.access import Access
from refdiff.server.web.metrics import Metrics
from refdiff.server.web.middleware import DOCS_PATH, REQUESTS, Limits, RequestAdmission
from refdiff.server.web.page.files import add_page
from refdiff.server.web.routes import (
    batches,
    captures,
    defects,
    devices,
    goldens,
    health,
    inspections,
    line_cameras,
    login,
    oidc,
    openai,
    people,
    products,
)

ABOUT = "Inspect parts against their nearest golden sample, with evidence."
ROUTERS = (
    inspections.router,
    batches.router,
    defects.router,
    captures.router,
    devices.router,
    line_cameras.router,
    goldens.router,
    products.router,
    people.router,
    openai.router,
    health.router,
    login.router,
    oidc.router,
)


def create_app(
    service: InspectionService,
    access: Access,
    settings: ServerSettings,
    public_url: str | None = None,
    requests: int = REQUESTS,
) -> FastAPI:
    """The application. service: stays open; the caller closes it. access: who may connect. public_url: for links. requests:
    at most at a time."""
    app = FastAPIOffline(  # /docs loads its scripts from this server, not from a CDN
        docs_url=DOCS_PATH,
        redoc_url=None,
        title="RefDiff Inspector",
        description=ABOUT,
        version=version("refdiff"),
        swagger_ui_parameters={"validatorUrl": None, "docExpansion": "none"},
        telemetry=of_requests(),
        form_limits={"max_files": 200, "max_fields": 32, "max_part_size": 100_000},
    )
    app.state.service, app.state.access, app.state.metrics = service, access, Metrics(service)
    app.state.public_url = public_url
    for router in ROUTERS:
        app.include_router(router)
    add_page(app)
    errors.register(app)
    app.add_middleware(
        RequestAdmission,
        access=access,
        metrics=app.state.metrics,
        limits=Limits(
            rate_per_minute=settings.rate_per_minute,
            bytes_per_minute=settings.bytes_per_minute,
            max_bytes=settings.http_max_bytes,
            max_photo_bytes=service.workspace.model_settings.max_bytes,
            requests=requests,
        ),
    )
    return app
