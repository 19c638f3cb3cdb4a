"""SIGINT (Ctrl-C) and SIGTERM: one orderly end, whichever comes first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
