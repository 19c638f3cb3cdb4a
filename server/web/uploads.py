"""Photos from forms, up to the size limit."""

from __future__ import annotations

from starlette.datastructures import UploadFile

from refdiff.agent.service import InspectionService, Upload
from refdiff.server.base64_images import check_size


async def read(file: UploadFile, service: InspectionService) -> Upload:
    """The uploaded photo. Raises ImageError above REFDIFF_MAX_BYTES."""
    limit = service.workspace.model_settings.max_bytes
    data = await file.read(limit + 1)
    check_size(len(data), limit)
    return Upload(file.filename or "upload", data)
