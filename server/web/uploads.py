"""Photos out of forms, never more than the limits allow."""

from __future__ import annotations

from starlette.datastructures import UploadFile

from refdiff.agent.service import InspectionService, Upload
from refdiff.server.base64_images import check_size


async def read(file: UploadFile, service: InspectionService) -> Upload:
    """Raises ImageError where it is over REFDIFF_MAX_BYTES."""
    limit = service.workspace.model_settings.max_bytes
    data = await file.read(limit + 1)
    check_size(len(data), limit)
    return Upload(file.filename or "upload", data)
