"""Photos out of requests, never more than the limits allow."""

from __future__ import annotations

import base64
import binascii
import re

from starlette.datastructures import UploadFile

from refdiff.model.errors import ImageError
from refdiff.server.desk import Desk, Upload

_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40}(;[a-zA-Z0-9=._-]{1,80})*;base64,", re.IGNORECASE)


async def read(file: UploadFile, desk: Desk) -> Upload:
    """Raises ImageError where it is over REFDIFF_MAX_BYTES."""
    limit = desk.services.model_settings.max_bytes
    return Upload(file.filename or "upload", _within(await file.read(limit + 1), limit))


def from_data_url(url: str, desk: Desk) -> Upload:
    """A picture in a `data:` URL. Nothing is ever fetched: any other URL raises ImageError."""
    head = _DATA_URL.match(url[:500])
    if head is None:
        raise ImageError(
            f"image_url {url[:40]!r}: send the picture itself, as data:image/png;base64,...; nothing is fetched"
        )
    limit = desk.services.model_settings.max_bytes
    if len(url) > limit // 3 * 4 + 600:
        return Upload("image", _within(b"", -1))
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as e:
        raise ImageError(f"image_url: its base64 does not decode ({e})") from e
    return Upload("image", _within(data, limit))


def _within(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise ImageError("the picture is over the limit REFDIFF_MAX_BYTES; send a smaller one")
    return data
