"""Images as HTTP responses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from refdiff.model.images import media_type

MaxPx = Annotated[int, Query(ge=32, le=8192, description="Longest side, in px")]
PICTURE = "image/png image/jpeg"


def picture(data: bytes) -> Response:
    return Response(data, media_type=media_type(data), headers={"Cache-Control": "private, max-age=3600"})
