"""Photos of parts."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, File, Form, Query, UploadFile

from refdiff.memory.rows.captures import Capture
from refdiff.server.web.access import InspectorRole, TheService, Viewer
from refdiff.server.web.errors import responses
from refdiff.server.web.photos import each_once, read_upload, with_colour
from refdiff.server.web.schemas import COLOUR, CONDITIONS
from refdiff.tools.kinds.conditions import parse_conditions

router = APIRouter(prefix="/v1/captures", tags=["captures"])


@router.post("", status_code=201, responses=responses(404, 413), dependencies=[Depends(each_once)])
async def add_capture(
    service: TheService,
    _caller: InspectorRole,
    image: UploadFile,
    part_id: Annotated[str, Form(max_length=200)],
    product: Annotated[str | None, Form(max_length=64)] = None,
    scale_mm_per_px: Annotated[float | None, Form(gt=0, allow_inf_nan=False)] = None,
    conditions: Annotated[str, Form(max_length=400, description=CONDITIONS)] = "",
    colour: Annotated[UploadFile | None, File(description=COLOUR)] = None,
) -> Capture:
    """Store a photo as the newest of its part; `product` is optional for a part that was photographed before."""
    photo = await with_colour(await read_upload(image, service), colour, service)
    stated = parse_conditions(conditions)
    return await run_sync(service.capture, part_id, photo, product, scale_mm_per_px, stated)


@router.get("", responses=responses())
def list_captures(
    service: TheService, _caller: Viewer, part_id: Annotated[str, Query(max_length=200)]
) -> list[Capture]:
    """All photos of a part, newest first."""
    return service.stores.captures.history(part_id)


@router.get("/{capture_id}", responses=responses(404))
def get_capture(service: TheService, _caller: Viewer, capture_id: str) -> Capture:
    return service.stores.captures.get(capture_id)
