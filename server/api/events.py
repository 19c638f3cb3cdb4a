"""Progress of an inspection as server-sent events, and waiting for its end, without a thread for each listener."""

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

from refdiff.server.api.access import TheDesk, Viewer
from refdiff.server.api.errors import responses
from refdiff.server.desk import Desk, Progress

router = APIRouter(prefix="/v1/inspections", tags=["inspections"])
KEEP_ALIVE_S = 15.0
STREAM = "text/event-stream"


@contextlib.asynccontextmanager
async def listening(desk: Desk, inspection_id: str) -> AsyncIterator[asyncio.Queue[Progress]]:
    """A queue of what happens to an inspection, from its beginning. Raises UnknownRecordError."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Progress] = asyncio.Queue()

    def hear(progress: Progress) -> None:
        with contextlib.suppress(RuntimeError):  # the server is stopping
            loop.call_soon_threadsafe(heard.put_nowait, progress)

    unsubscribe = await run_sync(desk.subscribe, inspection_id, hear)
    try:
        yield heard
    finally:
        unsubscribe()


async def progress_of(desk: Desk, inspection_id: str) -> AsyncIterator[Progress | None]:
    """What happens until the end; None now and then while nothing does. Raises UnknownRecordError."""
    async with listening(desk, inspection_id) as heard:
        while True:
            try:
                progress = await asyncio.wait_for(heard.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield None
                continue
            yield progress
            if progress.last:
                return


async def wait(desk: Desk, inspection_id: str, timeout_s: float) -> None:
    """Until it is filed or has failed, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            async for _ in progress_of(desk, inspection_id):
                pass


@router.get("/{inspection_id}/events", response_class=StreamingResponse, responses=responses(404, answers=STREAM))
async def follow(desk: TheDesk, _caller: Viewer, inspection_id: str) -> StreamingResponse:
    """Server-sent events, one for each step, from the beginning; the last has the state done or failed.

    Event names: queued, started, calibrating, llm, tool, verify, fallback, filed, retry, done, failed.
    """
    await run_sync(desk.inspection, inspection_id)  # an unknown id is a 404, not a stream that breaks

    async def stream() -> AsyncIterator[bytes]:
        async for progress in progress_of(desk, inspection_id):
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
