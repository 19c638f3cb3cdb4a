"""Pictures as responses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

MaxPx = Annotated[int, Query(ge=32, le=8192, description="Longest side, in px")]
PICTURE = "image/png image/jpeg"


def picture(data: bytes) -> Response:
    kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})
