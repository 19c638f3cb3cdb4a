"""How much is decoded at once in this process: a file of 0.2 MB may hold 64 million pixels, and 40 may arrive together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from refdiff.model.errors import BusyError

WAIT_S = 60.0


class PixelBudget:
    """A semaphore over pixels. Who came first is served first, so that small images never keep out a large one."""

    def __init__(self) -> None:
        self._in_use = 0
        self._freed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def take(self, pixels: int, limit: int, name: str, wait_s: float = WAIT_S) -> Iterator[None]:
        """Hold `pixels` of `limit` meanwhile; what is larger than the limit goes alone.

        Raises BusyError after `wait_s` seconds of waiting for others.
        """
        end = time.monotonic() + wait_s
        took = self._turn.acquire(timeout=wait_s)
        try:
            with self._freed:
                if not took or not self._freed.wait_for(
                    lambda: not self._in_use or self._in_use + pixels <= limit, end - time.monotonic()
                ):
                    raise BusyError(f"{name}: too many large photos are being read at the moment; try again", 5.0)
                self._in_use += pixels
        finally:
            if took:
                self._turn.release()
        try:
            yield
        finally:
            with self._freed:
                self._in_use -= pixels
                self._freed.notify_all()


BUDGET = PixelBudget()
