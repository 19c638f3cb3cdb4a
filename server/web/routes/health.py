"""The server itself: health, version, metrics, and its documentation: one plain page that needs no network."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from refdiff.server.web.access import TheService, Viewer
from refdiff.server.web.errors import responses
from refdiff.server.web.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"])
_DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


class Health(BaseModel):
    status: str
    version: str


class VersionView(BaseModel):
    version: str
    model: str | None
    no_model: str
    encoder: str


@router.get("/healthz", responses={503: {"model": Health, "description": "The inspecting thread is gone: restart"}})
def healthz(service: TheService) -> JSONResponse:
    """For load balancers and process managers; needs no key."""
    status = service.status()
    shown = Health(status="ok" if status.healthy else "failing", version=status.version)
    return JSONResponse(shown.model_dump(), 200 if status.healthy else 503)


@router.get("/v1/version", responses=responses())
def get_version(service: TheService, _caller: Viewer) -> VersionView:
    """What answers here: version, language model (or why none), encoder fingerprint."""
    status = service.status()
    return VersionView(
        version=status.version,
        model=status.model,
        no_model=status.no_model,
        encoder=service.workspace.encoder.fingerprint,
    )


@router.get("/metrics", response_class=Response, responses=responses(answers="text/plain"))
def metrics(request: Request, _caller: Viewer) -> Response:
    """For Prometheus."""
    return Response(cast(Metrics, request.app.state.metrics).text(), media_type=CONTENT_TYPE)


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    environment = Environment(loader=PackageLoader("refdiff.server.web", "templates"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    document = request.app.openapi()
    page = environment.get_template("docs.html.j2").render(routes=_routes(document), version=version("refdiff"))
    return HTMLResponse(page, headers={"Content-Security-Policy": _DOCS_POLICY})


def _routes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Each route of an OpenAPI document with what it takes, in plain words."""
    found = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            content = route.get("requestBody", {}).get("content", {})
            bodies = {kind: _fields(document, c["schema"]) for kind, c in content.items()}
            parameters = [
                (p["name"], p["in"], _type(document, p["schema"]), p.get("required", False), p.get("description", ""))
                for p in route.get("parameters", ())
            ]
            found.append({
                "method": method.upper(), "path": path, "tag": route.get("tags", [""])[0], "parameters": parameters,
                "text": route.get("description") or route.get("summary", ""), "bodies": bodies,
                "answers": ", ".join(route["responses"]),
            })  # fmt: skip
    return found


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, bool, str]]:
    schema = _resolved(document, schema)
    required = schema.get("required", ())
    return [
        (name, _type(document, field), name in required, field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]


def _type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(document, s) for s in schema["anyOf"] if s.get("type") != "null")
    schema = _resolved(document, schema)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(document, schema.get('items', {}))}"
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    return str(schema.get("type", "any"))
