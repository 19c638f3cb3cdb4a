"""Line cameras that send photos over HTTP instead of writing to a folder: one per request, in order, exactly once."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import PurePath
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Path, UploadFile

from refdiff.agent.request import Judge
from refdiff.server.web.access import InspectorRole, TheService
from refdiff.server.web.errors import responses
from refdiff.server.web.photos import each_once, read_upload
from refdiff.server.web.schemas import InspectionView, inspection_view, request_digest

router = APIRouter(prefix="/v1/lines", tags=["lines"])


@router.post("/{line}/photos", status_code=202, responses=responses(404, 413), dependencies=[Depends(each_once)])
async def add_line_photo(
    service: TheService,
    caller: InspectorRole,
    line: Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Name of the line or camera")],
    image: UploadFile,
    product: Annotated[
        str | None, Form(max_length=64, description="Optional while only one product has golden samples")
    ] = None,
    part_id: Annotated[str | None, Form(max_length=200, description="Default: the file name without suffix")] = None,
    judge: Annotated[Judge, Form(description="Role of the language model, as in `refdiff watch`")] = "on-anomaly",
    scale_mm_per_px: Annotated[float | None, Form(gt=0, allow_inf_nan=False)] = None,
) -> InspectionView:
    """Accept a photo. On 202 it is safely stored and will be inspected in order of arrival, even after a restart.

    The part id is the file name without suffix, unless `part_id` is given. The same name with the same content is the
    same inspection, so a camera may repeat unanswered requests; with another part or product it is refused (422).
    429 with `Retry-After` when the queue is full.
    """
    photo = await read_upload(image, service)
    digest = request_digest(part_id, product, scale_mm_per_px)
    product = product or await run_sync(service.only_product)
    # no pattern from the caller: a foreign regular expression can run for hours
    name = part_id or PurePath(photo.path.name).stem
    origin = f"line:{line}:{photo.path.name}:{hashlib.sha256(photo.data).hexdigest()}"
    work = partial(
        service.submit, "", by=f"{line} ({caller.name})"[:128], part_id=name, product=product, photo=photo,
        scale_mm_per_px=scale_mm_per_px, origin=origin, digest=digest, judge=judge, line=line,
    )  # fmt: skip
    job = await run_sync(work)
    return inspection_view(await run_sync(service.inspection, job.inspection_id))
