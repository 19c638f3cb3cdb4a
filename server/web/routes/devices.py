"""Devices: reports of parts that were inspected by an export, with the photos."""

from __future__ import annotations

from functools import partial

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, UploadFile
from pydantic import BaseModel

from refdiff.agent.device.received import file_received
from refdiff.server.web.access import InspectorRole, TheService
from refdiff.server.web.errors import responses
from refdiff.server.web.photos import each_once, read_upload


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
    work = partial(
        file_received, service.workspace, *(p.data for p in parts),
        by=caller.name, filename=parts[1].path.name, blind_share=service.settings.blind_share,
    )  # fmt: skip
    filed, new = await run_sync(work)
    return Received(inspection_id=filed.inspection_id, new=new)
