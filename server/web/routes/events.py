"""Progress of an inspection as server-sent events, and waiting for its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict

from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from refdiff.agent.service import InspectionService, Progress
from refdiff.server.progress import progress_of
from refdiff.server.web.access import TheService, Viewer
from refdiff.server.web.errors import responses

router = APIRouter(prefix="/v1/inspections", tags=["inspections"])
STREAM = "text/event-stream"


async def wait(service: InspectionService, inspection_id: str, timeout_s: float) -> None:
    """Until it is filed or has failed, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            async for _ in progress_of(service, inspection_id):
                pass


@router.get("/{inspection_id}/events", response_class=StreamingResponse, responses=responses(404, answers=STREAM))
async def follow(service: TheService, _caller: Viewer, inspection_id: str) -> StreamingResponse:
    """Server-sent events, one for each step, from the beginning; the last has the state done or failed.

    Event names: queued, started, calibrating, llm, tool, verify, fallback, filed, retry, done, failed.
    """
    await run_sync(service.inspection, inspection_id)  # an unknown id is a 404, not a stream that breaks

    async def stream() -> AsyncIterator[bytes]:
        async for progress in progress_of(service, inspection_id):
            yield _event(progress)

    return event_stream(stream())


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events as a response that no proxy holds back."""
    return StreamingResponse(
        events, media_type=STREAM, headers={"X-Accel-Buffering": "no", "Cache-Control": "no-cache"}
    )


def _event(progress: Progress | None) -> bytes:
    if progress is None:
        return KEEPALIVE_COMMENT
    return format_sse_event(event=progress.kind, id=str(progress.number), data_str=json.dumps(asdict(progress)))
