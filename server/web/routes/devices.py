"""Devices: reports of parts that were inspected by an export, with the photos; and the exports."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import open_file
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

from refdiff.agent.device.published import publish, published
from refdiff.model.difference.sessions import GraphFormat
from refdiff.model.errors import UnknownRecordError
from refdiff.model.files import storage_error
from refdiff.server.web.access import Admin, InspectorRole, TheService
from refdiff.server.web.errors import Refused, responses
from refdiff.server.web.photos import each_once, read_upload

EXPORT_TYPE = "application/octet-stream"


class Received(BaseModel):
    """A report of a device that is filed here. new: it was not before."""

    inspection_id: str
    new: bool


router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.post("/reports", status_code=201, responses=responses(404, 413), dependencies=[Depends(each_once)])
async def add_device_report(
    service: TheService,
    caller: InspectorRole,
    report: UploadFile,
    image: UploadFile,
    difference: UploadFile,
) -> Received:
    """File a report of `refdiff-edge`. Its inspection id makes it the same however often it is sent.

    The photo must be the one that the report names, and the golden sample one of this server.
    """
    parts = [await read_upload(file, service) for file in (report, image, difference)]
    work = partial(service.file_of_device, *(p.data for p in parts), by=caller.name, filename=parts[1].path.name)
    filed, new = await run_sync(work)
    return Received(inspection_id=filed.inspection_id, new=new)


@router.get(
    "/exports/{product}",
    response_class=FileResponse,
    responses=responses(404, answers=EXPORT_TYPE) | {304: {"description": "The device has it"}},
)
def get_device_export(
    service: TheService,
    _caller: InspectorRole,
    product: str,
    if_none_match: Annotated[str, Header(description="ETags of the exports that the device has")] = "",
) -> Response:
    """The export that devices of the product decide by. Its ETag is the sha256 of its manifest, which reports name."""
    found = published(service.workspace, product)
    if found is None:
        raise UnknownRecordError(f"no export of product {product!r} is published; refdiff export --publish does it")
    headers = {"ETag": f'"{found.digest}"'}
    if found.digest in {tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    return FileResponse(found.path, media_type=EXPORT_TYPE, headers=headers)


@router.post(
    "/exports/{product}",
    status_code=201,
    responses=responses(404, 409, 413, 415),
    openapi_extra={"requestBody": {"content": {EXPORT_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def publish_device_export(
    service: TheService,
    caller: Admin,
    product: str,
    request: Request,
    graphs: Annotated[
        GraphFormat, Query(alias="format", description="Without a body: what runs the networks")
    ] = "openvino",
) -> dict[str, Any]:
    """Publish a file of `refdiff export`, sent as the body, for devices to fetch. Without a body the server exports the
    product as it is now, which takes as long as its calibration."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    service.stores.check_free()  # before any of the body is on the disk, and before the server writes one itself
    with service.stores.exports.arriving() as file:
        if not await _received(request, file, kind):
            work = partial(service.export_for_devices, product, graphs, by=caller.name)
        elif kind != EXPORT_TYPE:
            raise Refused(415, f"an export is sent as {EXPORT_TYPE}, not as {kind[:80] or 'nothing'}")
        else:
            work = partial(publish, service.workspace, product, file, by=caller.name)
        return (await run_sync(work)).about


async def _received(request: Request, file: Path, kind: str) -> bool:
    """Write a body to a file; False where there is none. Of another kind than an export, only its beginning is read."""
    size = 0
    try:
        async with await open_file(file, "wb") as written:
            async for chunk in request.stream():
                size += len(chunk)
                if size and kind != EXPORT_TYPE:
                    return True
                await written.write(chunk)
    except OSError as e:
        raise storage_error(file, e) from e
    return size > 0
