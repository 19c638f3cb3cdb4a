"""Inspections: request, follow, read, decide, and ask questions about them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from refdiff.agent.service import InspectionService, Progress, Upload
from refdiff.memory.kinds import Verdict
from refdiff.model.errors import UnknownRecordError
from refdiff.server.progress import progress_of
from refdiff.server.web.access import InspectorRole, TheService, Viewer
from refdiff.server.web.errors import Refused, responses
from refdiff.server.web.photos import IMAGE_TYPES, MaxPx, check_once, image_response, read_upload, with_colour
from refdiff.server.web.schemas import (
    COLOUR,
    KEY_LASTS,
    AnswerView,
    DecidedView,
    DispositionBody,
    InspectionList,
    InspectionRequestBody,
    InspectionView,
    Limit,
    Offset,
    QuestionBody,
    QueueView,
    inspection_view,
    job_view,
    request_digest,
)
from refdiff.tools.kinds.conditions import parse_conditions

router = APIRouter(prefix="/v1/inspections", tags=["inspections"])
EVENT_STREAM = "text/event-stream"
MAX_WAIT_S = 600
MAX_FIELD = 100_000  # size limit of a form field, in bytes
# a report page may run no script and load nothing
_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'"
_ARTEFACT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".html": "text/html", ".md": "text/markdown",
                   ".json": "application/json"}  # fmt: skip
Asked = tuple[InspectionRequestBody, Upload | None]


async def _asked(request: Request, service: TheService) -> Asked:
    """The request, from JSON or a form. Raises RequestValidationError, Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    photo = None
    if kind == "application/json":
        try:
            given = json.loads(await request.body(), object_pairs_hook=_object)
        except (ValueError, RecursionError) as e:
            raise Refused(400, f"the body is not JSON ({str(e)[:100]})") from e
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with request.form(max_files=2, max_fields=16, max_part_size=MAX_FIELD) as form:
            check_once(form.multi_items())
            given = dict(form)
            image = given.pop("image", None)
            if isinstance(image, UploadFile):
                photo = await read_upload(image, service)
            elif image:
                raise Refused(422, "image: send a file")
            colour = given.pop("colour", None)
            if isinstance(colour, UploadFile) and photo is not None:
                photo = await with_colour(photo, colour, service)
            elif colour:
                raise Refused(422, "colour: send it as a file, with its height map in the field `image`")
            given = {name: value for name, value in given.items() if value != ""}
    else:
        raise Refused(415, "send application/json, or multipart/form-data with the photo in the field `image`")
    try:
        return InspectionRequestBody.model_validate(given), photo
    except ValidationError as e:
        raise RequestValidationError([p | {"loc": ("body", *p["loc"])} for p in e.errors(include_url=False)]) from e


def _digest(photo: Upload) -> str:
    """Of all that was sent as files."""
    return hashlib.sha256(photo.data + (photo.colour or b"")).hexdigest()


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    check_once(members)
    return dict(members)


_SCHEMA: dict[str, Any] = InspectionRequestBody.model_json_schema()
_FILE = {"type": "string", "format": "binary"}
_FORM = {**_SCHEMA, "properties": {"image": _FILE, "colour": _FILE | {"description": COLOUR}, **_SCHEMA["properties"]}}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA},
                                                       "multipart/form-data": {"schema": _FORM}}}}  # fmt: skip
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": InspectionView, "description": "Filed or failed within wait_s"},
    202: {"model": InspectionView, "description": "Accepted; it will be filed, even after a restart"},
}


@router.post("", status_code=202, responses=_CREATED | responses(404, 409, 413, 415), openapi_extra=_BODY)
async def create_inspection(
    service: TheService,
    caller: InspectorRole,
    asked: Annotated[Asked, Depends(_asked)],
    wait_s: Annotated[
        float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the report before answering")
    ] = 0,
    idempotency_key: Annotated[
        str | None,
        Header(
            max_length=200,
            description="A repeated key returns the same inspection for a day; with another request it is refused (422)",
        ),
    ] = None,
) -> JSONResponse:
    """Inspect a part against its nearest golden samples, with its newest photo or the attached one.

    The response is 202 once the request is safely stored; follow the inspection at `links.events`, or give `wait_s`.
    """
    wish, photo = asked
    origin = f"http:{caller.key_id or ''}:{idempotency_key}" if idempotency_key else None
    digest = request_digest(wish.model_dump(), _digest(photo) if photo else None)
    work = partial(
        service.submit, wish.text, by=caller.name, part_id=wish.part_id, product=wish.product, photo=photo,
        scale_mm_per_px=wish.scale_mm_per_px, conditions=parse_conditions(wish.conditions), capture_id=wish.capture_id,
        origin=origin, digest=digest, origin_lasts=KEY_LASTS,
    )  # fmt: skip
    job = await run_sync(work)
    if wait_s:
        await _wait(service, job.inspection_id, wait_s)
    found = await run_sync(service.inspection, job.inspection_id)
    view = inspection_view(found)
    status = 202 if found.state in ("queued", "running") else 200
    return JSONResponse(view.model_dump(mode="json"), status, {"Location": view.links["self"]})


@router.get("", responses=responses())
def list_inspections(
    service: TheService,
    _caller: Viewer,
    product: Annotated[str | None, Query(max_length=64)] = None,
    verdict: Verdict | None = None,
    part_id: Annotated[str | None, Query(max_length=200)] = None,
    since: Annotated[str | None, Query(max_length=40, description="ISO 8601; from this time on")] = None,
    until: Annotated[str | None, Query(max_length=40, description="ISO 8601; before this time")] = None,
    open_review: Annotated[
        bool | None, Query(description="Only those waiting for a person, or only the others")
    ] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> InspectionList:
    """Filed inspections, newest first, without their reports."""
    page = service.stores.inspections.search(
        product=product, verdict=verdict, part_id=part_id, since=since, until=until, open_review=open_review,
        limit=limit, offset=offset,
    )  # fmt: skip
    return InspectionList(items=page.items, total=page.total, limit=limit, offset=offset)


@router.get("/queue", responses=responses())
def queue(service: TheService, _caller: Viewer, failed: bool = False) -> QueueView:
    """The inspections that are running or waiting, in order; with `failed`, the failed ones instead."""
    status = service.status()
    items = [job_view(j) for j in service.unfinished(failed)]
    return QueueView(running=status.running, limit=status.queue_limit, seconds_each=status.seconds_each, items=items)


@router.get("/{inspection_id}", responses=responses(404))
def get_inspection(service: TheService, _caller: Viewer, inspection_id: str) -> InspectionView:
    """State of an inspection, with the whole report once it is filed."""
    stores = service.stores
    found = service.inspection(inspection_id)
    return inspection_view(found, stores.adoptions.get(inspection_id), stores.defect_names.of(inspection_id))


@router.delete("/{inspection_id}", responses=responses(404))
def cancel(service: TheService, caller: InspectorRole, inspection_id: str) -> InspectionView:
    """Cancel an inspection that waits; its photo is kept. One that runs or has ended is refused (422)."""
    return inspection_view(service.cancel(inspection_id, caller.name))


@router.post("/{inspection_id}/retry", status_code=202, responses=responses(404))
def retry(service: TheService, caller: InspectorRole, inspection_id: str) -> InspectionView:
    """Inspect a failed or cancelled inspection again, under its id. One that has not failed is refused (422)."""
    return inspection_view(service.retry(inspection_id, caller.name))


@router.get("/{inspection_id}/events", response_class=StreamingResponse, responses=responses(404, answers=EVENT_STREAM))
async def follow(service: TheService, _caller: Viewer, inspection_id: str) -> StreamingResponse:
    """Server-sent events, one per step, from the beginning; the last one has the state done or failed.

    Event names: queued, started, calibrating, llm, tool, verify, fallback, filed, retry, done, failed.
    """
    await run_sync(service.inspection, inspection_id)  # an unknown id must be a 404, not a broken stream

    async def stream() -> AsyncIterator[bytes]:
        async for progress in progress_of(service, inspection_id):
            yield _event(progress)

    return event_stream(stream())


@router.get(
    "/{inspection_id}/artefacts/{name}",
    response_class=FileResponse,
    responses=responses(404, 409, answers="image/png image/jpeg text/html text/markdown application/json"),
)
def get_artefact(service: TheService, _caller: Viewer, inspection_id: str, name: str) -> FileResponse:
    """A file of the report: overlay, heatmap, side_by_side, query or registered reference (JPEG), anomaly, html, markdown
    or report. 409 if it is not the file that was filed."""
    path = service.artefact(inspection_id, name)
    kind = _ARTEFACT_TYPES[path.suffix]
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "private, max-age=3600"}
    return FileResponse(path, media_type=kind, headers=headers)


@router.get("/{inspection_id}/pictures/{which}", response_class=Response, responses=responses(404, answers=IMAGE_TYPES))
def get_picture(
    service: TheService, _caller: Viewer, inspection_id: str, which: Literal["query", "reference"], max_px: MaxPx = 2048
) -> Response:
    """The original photo, or its nearest golden sample (not registered)."""
    return image_response(service.picture(inspection_id, which, max_px))


@router.get(
    "/{inspection_id}/values",
    response_class=Response,
    responses=responses(404, 409, answers="application/octet-stream"),
)
def get_values(service: TheService, _caller: Viewer, inspection_id: str) -> Response:
    """What was measured in each pixel, of a thermal picture in °C, of a height map in mm: float32, little-endian, row by
    row, NaN where nothing was measured; the headers X-Width and X-Height say how many. 404 for photos."""
    values = service.values(inspection_id)
    if values is None:
        raise UnknownRecordError(f"inspection {inspection_id} is of a photo: nothing was measured but sizes")
    height, width = values.query.shape
    headers = {"X-Width": str(width), "X-Height": str(height), "Cache-Control": "private, max-age=3600"}
    data = np.ascontiguousarray(values.query, "<f4").tobytes()
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.get(
    "/{inspection_id}/points",
    response_class=Response,
    responses=responses(404, 409, answers="application/octet-stream"),
)
def get_points(service: TheService, _caller: Viewer, inspection_id: str) -> Response:
    """The point cloud of a part in the frame of its golden samples, at most 60,000 points: x, y, z and the deviation from
    the nearest golden sample, in mm, float32, little-endian, point by point. 404 for other products."""
    points = service.points(inspection_id)
    if points is None:
        raise UnknownRecordError(f"inspection {inspection_id} is not of a point cloud")
    data = np.ascontiguousarray(points, "<f4").tobytes()
    return Response(data, media_type="application/octet-stream", headers={"Cache-Control": "private, max-age=3600"})


@router.post("/{inspection_id}/disposition", status_code=201, responses=responses(404, 409))
def dispose(service: TheService, caller: InspectorRole, inspection_id: str, body: DispositionBody) -> DecidedView:
    """A person's decision. The first one stands (409; `error.earlier` holds it); the report never changes."""
    made = service.people.dispose(
        inspection_id, body.decision, caller.name, body.reason, body.judged, body.as_reference,
        admin=caller.may("admin"),
    )  # fmt: skip
    adoptions = service.stores.adoptions
    waits = bool(adoptions.waiting(inspection_id))
    return DecidedView(**asdict(made), learned=adoptions.get(inspection_id), waits_for_approval=waits)


@router.post("/{inspection_id}/questions", responses=responses(404))
def ask(service: TheService, _caller: Viewer, inspection_id: str, body: QuestionBody) -> AnswerView:
    """Answer a question about a filed report with what the report says, in English, German, Spanish or Chinese."""
    return AnswerView(answer=service.ask(inspection_id, body.question), inspection_id=inspection_id)


async def _wait(service: InspectionService, inspection_id: str, timeout_s: float) -> None:
    """Wait until the inspection is filed or failed, at most `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            async for _ in progress_of(service, inspection_id):
                pass


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events as a response that proxies do not buffer."""
    return StreamingResponse(
        events, media_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no", "Cache-Control": "no-cache"}
    )


def _event(progress: Progress | None) -> bytes:
    if progress is None:
        return KEEPALIVE_COMMENT
    return format_sse_event(event=progress.kind, id=str(progress.number), data_str=json.dumps(asdict(progress)))
