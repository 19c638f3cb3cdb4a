"""The FastAPI application over one desk."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from refdiff.agent.service import InspectionService
from refdiff.server.settings import ServerSettings
from refdiff.server.web import errors
from refdiff.server.web.access import Access
from refdiff.server.web.metrics import Metrics
from refdiff.server.web.middleware import RequestAdmission
from refdiff.server.web.page.files import add_page
from refdiff.server.web.routes import (
    captures,
    events,
    goldens,
    health,
    inspections,
    line_cameras,
    openai,
    people,
    products,
)

ABOUT = "Inspect parts against their nearest golden sample, with evidence."
ROUTERS = (
    inspections.router,
    events.router,
    captures.router,
    line_cameras.router,
    goldens.router,
    products.router,
    people.router,
    openai.router,
    health.router,
)


def create_app(service: InspectionService, access: Access, settings: ServerSettings) -> FastAPI:
    """service: the caller closes it. access: who may come in."""
    app = FastAPI(
        title="RefDiff Inspector",
        description=ABOUT,
        version=version("refdiff"),
        docs_url=None,  # those load scripts from elsewhere; ours is in service.py
        redoc_url=None,
        form_limits={"max_files": 200, "max_fields": 32, "max_part_size": 100_000},
    )
    app.state.service, app.state.access, app.state.metrics = service, access, Metrics(service)
    for router in ROUTERS:
        app.include_router(router)
    add_page(app)
    errors.register(app)
    app.add_middleware(
        RequestAdmission,
        access=access,
        metrics=app.state.metrics,
        rate_per_minute=settings.rate_per_minute,
        max_bytes=settings.http_max_bytes,
    )
    return app
