"""The FastAPI application over one desk."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from refdiff.server.api import captures, chat, errors, events, goldens, inspections, lines, people, products, service
from refdiff.server.api.access import Access
from refdiff.server.api.front import Front
from refdiff.server.api.metrics import Metrics
from refdiff.server.desk import Desk
from refdiff.server.page.files import add_page

ABOUT = "Inspect parts against their nearest golden sample, with evidence."
ROUTERS = (
    inspections.router,
    events.router,
    captures.router,
    lines.router,
    goldens.router,
    products.router,
    people.router,
    chat.router,
    service.router,
)


def create_app(desk: Desk, access: Access) -> FastAPI:
    """desk: stays the caller's to close. access: who may come in."""
    app = FastAPI(
        title="RefDiff Inspector",
        description=ABOUT,
        version=version("refdiff"),
        docs_url=None,  # those load scripts from elsewhere; ours is in service.py
        redoc_url=None,
        form_limits={"max_files": 200, "max_fields": 32, "max_part_size": 100_000},
    )
    app.state.desk, app.state.access, app.state.metrics = desk, access, Metrics(desk)
    for router in ROUTERS:
        app.include_router(router)
    add_page(app)
    errors.register(app)
    app.add_middleware(
        Front,
        access=access,
        metrics=app.state.metrics,
        rate_per_minute=desk.settings.rate_per_minute,
        max_bytes=desk.settings.http_max_bytes,
    )
    return app
