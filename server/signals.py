"""SIGINT (Ctrl-C) and SIGTERM: one orderly end, whichever comes first; and the end of a process in which something hangs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
HUNG = 75  # exit code of a process in which something hung (EX_TEMPFAIL of sysexits.h): start it again
_LOOK_S = 0.2
_SEEN_S = 3.0  # for probes and balancers to see that it is not ready


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Both signals call `handler`; the earlier handlers are restored at the end. In the main thread only.

    SIGINT is set too because shells start background jobs with it ignored.
    """
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """The first signal calls `stop`, in the main thread; a second one raises KeyboardInterrupt.

    Yields a function that says whether the first signal was Ctrl-C.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop()

    with handled_by(handle):
        yield lambda: received[:1] == [signal.SIGINT]


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Either signal raises KeyboardInterrupt at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handled_by(interrupt):
        yield


@contextlib.contextmanager
def ending_if_hung(hung: Callable[[], str | None], within_s: float) -> Iterator[None]:
    """Once `hung` says that something hangs, end the process as SIGTERM does; the caller then calls `end_if_hung`.

    within_s: how long that may take: what hangs may hold locks that an orderly end waits for.
    """
    over = threading.Event()

    def look() -> None:
        while not hung():
            if over.wait(_LOOK_S):
                return
        if over.wait(_SEEN_S):  # it has ended by itself
            return
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(within_s)
        end_if_hung(hung())

    threading.Thread(target=look, name="end if hung", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def end_if_hung(hung: str | None) -> None:
    """End the process at once, with exit code HUNG, if something hangs in it: an orderly end would wait for its thread."""
    if hung:
        last = threading.Timer(_SEEN_S, os._exit, (HUNG,))  # what hangs may hold the locks of the streams, too
        last.daemon = True
        last.start()
        print(f"refdiff: {hung}; this process ends, to be started again", file=sys.stderr)
        logging.shutdown()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(HUNG)
