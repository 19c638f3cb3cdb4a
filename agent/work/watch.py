"""Watches long work of this process: what takes no step for too long hangs, and only the end of the process ends it.

No thread of Python can be ended from outside. It keeps the locks and the memory that it has, so the process is of no more
use.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Self

log = logging.getLogger(__name__)

HANG_S = 900.0
_LOOKS = 20  # within the time that work may take for one step
_LOOK_S = 1.0  # between two looks, at most


@dataclass(eq=False)
class Work:
    """Work that the thread which makes it does."""

    what: str  # "inspection insp-..."
    note: Callable[[], None] | None = None  # records that it was given up, where that is to be known
    silent_s: float = 0.0  # since its last step
    thread: int = field(default_factory=threading.get_ident)

    def step(self) -> None:
        """Say that it moves on."""
        self.silent_s = 0.0

    def place(self) -> str:
        """The lines of code that its thread is at, the innermost last."""
        frame = sys._current_frames().get(self.thread)
        return "".join(traceback.format_stack(frame)) if frame else "its thread has ended"


class Watch(contextlib.AbstractContextManager["Watch"]):
    """Threads may share it. Watches from `start` to `stop`, or as a context manager."""

    def __init__(self, hang_s: float = HANG_S, on_hang: Callable[[Work], None] = lambda work: None) -> None:
        """hang_s: how long work may take for one step. on_hang: called once, for the first that hangs, in the thread that
        watches."""
        self._hang_s, self._on_hang = hang_s, on_hang
        self.hung: str | None = None  # what hangs, in words: this process should end
        self.hanging: Work | None = None
        self._watched: list[Work] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def over(self, what: str, note: Callable[[], None] | None = None) -> Iterator[Work]:
        """Watch what the calling thread does in the block, which calls `step` of what it is given. note: see `Work`."""
        work = Work(what, note)
        self._watched.append(work)
        try:
            yield work
        finally:
            self._watched.remove(work)

    def _run(self) -> None:
        look_s = min(_LOOK_S, self._hang_s / _LOOKS)
        before = time.monotonic()
        while not self._ended.wait(look_s):
            now = time.monotonic()
            # no more than that, as a machine that was suspended has done nothing for hours and hangs in nothing
            passed, before = min(now - before, 2 * look_s), now
            for work in tuple(self._watched):
                work.silent_s += passed
                if work.silent_s > self._hang_s:
                    hung = f"{work.what} has taken no step for {self._hang_s:g} s (REFDIFF_HANG_S)"
                    self.hung = hung  # first: who knows `hanging` may ask for it
                    self.hanging = work
                    try:
                        aside(partial(_tell, hung, work))
                    finally:
                        self._on_hang(work)
                    return


def _tell(hung: str, work: Work) -> None:
    log.error("%s: it hangs, and this process should end. Its thread is at:\n%s", hung, work.place())


def aside(tells: Callable[[], None]) -> None:
    """Log in a thread of its own: what hangs may hold the lock of a log, and whoever logs then waits for good."""
    threading.Thread(target=tells, name="log of what hangs", daemon=True).start()
