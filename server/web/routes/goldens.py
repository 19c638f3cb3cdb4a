"""Golden samples: enrol, view, flag, retire."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, File, Form, Query, Response, UploadFile

from refdiff.memory.golden_bank.golden import Golden, GoldenStatus
from refdiff.memory.kinds import ProductKind
from refdiff.server.web.access import Admin, TheService, Viewer
from refdiff.server.web.errors import Refused, responses
from refdiff.server.web.photos import (
    IMAGE_TYPES,
    MaxPx,
    image_response,
    images_and_others_once,
    read_upload,
    with_colour,
)
from refdiff.server.web.schemas import (
    COLOUR,
    CONDITIONS,
    EnrolledView,
    GoldenChange,
    GoldenList,
    Limit,
    Offset,
    enrolled_view,
)
from refdiff.tools.kinds.conditions import parse_conditions

router = APIRouter(prefix="/v1/goldens", tags=["golden samples"])


@router.post("", responses=responses(413), dependencies=[Depends(images_and_others_once)])
async def enroll_goldens(
    service: TheService,
    caller: Admin,
    images: list[UploadFile],
    product: Annotated[str, Form(max_length=64)],
    scale_mm_per_px: Annotated[float | None, Form(gt=0, allow_inf_nan=False)] = None,
    part_group: Annotated[
        str | None, Form(max_length=128, description="Label of the one part that all these photos show")
    ] = None,
    station: Annotated[str | None, Form(max_length=128)] = None,
    kind: Annotated[
        ProductKind | None,
        Form(description="Of the product's files; said with its first golden sample. Default: photo"),
    ] = None,
    conditions: Annotated[str, Form(max_length=400, description=CONDITIONS)] = "",
    colour: Annotated[
        UploadFile | None,
        File(description=f"{COLOUR}; for one image. Of several, send them as `images`, too: part.tiff and part.png"),
    ] = None,
) -> EnrolledView:
    """Add photos of good parts to the golden bank. Idempotent; refused photos are listed with the reason."""
    photos = [await read_upload(image, service) for image in images]
    if colour is not None and len(photos) > 1:
        raise Refused(
            422, "colour: it belongs to one image; send photos of several as images, named as their height maps"
        )
    photos = [await with_colour(photo, colour, service) for photo in photos]
    work = partial(
        service.enroll, product, photos, by=caller.name, scale_mm_per_px=scale_mm_per_px, part_group=part_group,
        station=station, kind=kind, conditions=parse_conditions(conditions),
    )  # fmt: skip
    return enrolled_view(await run_sync(work))


@router.get("", responses=responses())
def list_goldens(
    service: TheService,
    _caller: Viewer,
    product: Annotated[str | None, Query(max_length=64)] = None,
    status: GoldenStatus | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> GoldenList:
    """Oldest first."""
    found = service.goldens(product, status)
    return GoldenList(
        items=found[offset : offset + limit],
        total=len(found),
        limit=limit,
        offset=offset,
        notes=service.workspace.bank.notes(product),
    )


@router.get("/{golden_id}", responses=responses(404))
def get_golden(service: TheService, _caller: Viewer, golden_id: str) -> Golden:
    return service.workspace.bank.get(golden_id)


@router.get("/{golden_id}/image", response_class=Response, responses=responses(404, answers=IMAGE_TYPES))
def golden_image(service: TheService, _caller: Viewer, golden_id: str, max_px: MaxPx = 1024) -> Response:
    golden = service.workspace.bank.get(golden_id)
    return image_response(service.shown(golden.sha256, golden.product, max_px))


@router.patch("/{golden_id}", responses=responses(404))
def change_golden(service: TheService, caller: Admin, golden_id: str, change: GoldenChange) -> Golden:
    """Flag, retire or reactivate; the next inspection of the product calibrates again."""
    return service.set_golden_status(golden_id, change.status, caller.name, change.note)
