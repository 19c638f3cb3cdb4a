"""Progress of an inspection as an async stream, without a thread per listener; cancelling it unsubscribes at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from anyio.to_thread import run_sync

from refdiff.agent.service import InspectionService, Progress

KEEP_ALIVE_S = 15.0


@contextlib.asynccontextmanager
async def _subscribed(service: InspectionService, inspection_id: str) -> AsyncIterator[asyncio.Queue[Progress]]:
    """A queue of the progress of an inspection, from its beginning. Raises UnknownRecordError."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Progress] = asyncio.Queue()

    def put(progress: Progress) -> None:
        with contextlib.suppress(RuntimeError):  # the server is stopping
            loop.call_soon_threadsafe(events.put_nowait, progress)

    unsubscribe = await run_sync(service.subscribe, inspection_id, put)
    try:
        yield events
    finally:
        unsubscribe()


async def progress_of(service: InspectionService, inspection_id: str) -> AsyncIterator[Progress | None]:
    """Progress until the end; None as a keep-alive every `KEEP_ALIVE_S` of silence. Raises UnknownRecordError."""
    async with _subscribed(service, inspection_id) as events:
        while True:
            try:
                progress = await asyncio.wait_for(events.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield None
                continue
            yield progress
            if progress.last:
                return
