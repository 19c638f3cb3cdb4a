"""Photos in requests, up to the size limit, and images in responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

from fastapi import Query, Request, Response
from starlette.datastructures import UploadFile

from refdiff.agent.service import InspectionService, Upload
from refdiff.model.images import media_type
from refdiff.server.base64_images import check_size
from refdiff.server.web.errors import Refused

MaxPx = Annotated[int, Query(ge=32, le=8192, description="Longest side, in px")]
IMAGE_TYPES = "image/png image/jpeg"


async def each_once(request: Request) -> None:
    """Refuse a form that has a field twice: only one of them would count, without a word."""
    check_once((await request.form()).multi_items())


async def images_and_others_once(request: Request) -> None:
    """The same of a form that has `images`, as many as there are."""
    check_once((name, value) for name, value in (await request.form()).multi_items() if name != "images")


def check_once(fields: Iterable[tuple[str, object]]) -> None:
    """Raises Refused 400 if a name comes twice."""
    twice = [name for name, n in Counter(name for name, _ in fields).items() if n > 1]
    if twice:
        raise Refused(400, f"the field {twice[0][:40]!r} is given more than once; send each field once")


async def read_upload(file: UploadFile, service: InspectionService) -> Upload:
    """The uploaded photo. Raises ImageError above REFDIFF_MAX_BYTES."""
    limit = service.workspace.model_settings.max_bytes
    data = await file.read(limit + 1)
    check_size(len(data), limit)
    return Upload(file.filename or "upload", data)


async def with_colour(photo: Upload, colour: UploadFile | None, service: InspectionService) -> Upload:
    """A height map with the colour photo that came with it. Raises as `read_upload`."""
    return photo if colour is None else replace(photo, colour=(await read_upload(colour, service)).data)


def image_response(data: bytes) -> Response:
    return Response(data, media_type=media_type(data), headers={"Cache-Control": "private, max-age=3600"})
