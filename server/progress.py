"""Following an inspection from an event loop, without a thread for each listener: one that is cancelled is gone at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from anyio.to_thread import run_sync

from refdiff.agent.service import InspectionService, Progress

KEEP_ALIVE_S = 15.0


@contextlib.asynccontextmanager
async def listening(service: InspectionService, inspection_id: str) -> AsyncIterator[asyncio.Queue[Progress]]:
    """A queue of what happens to an inspection, from its beginning. Raises UnknownRecordError."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Progress] = asyncio.Queue()

    def hear(progress: Progress) -> None:
        with contextlib.suppress(RuntimeError):  # the server is stopping
            loop.call_soon_threadsafe(heard.put_nowait, progress)

    unsubscribe = await run_sync(service.subscribe, inspection_id, hear)
    try:
        yield heard
    finally:
        unsubscribe()


async def progress_of(service: InspectionService, inspection_id: str) -> AsyncIterator[Progress | None]:
    """What happens until the end; None now and then while nothing does. Raises UnknownRecordError."""
    async with listening(service, inspection_id) as heard:
        while True:
            try:
                progress = await asyncio.wait_for(heard.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield None
                continue
            yield progress
            if progress.last:
                return
