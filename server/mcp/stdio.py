"""MCP over stdin and stdout: a signal ends it in the same orderly way as the end of stdin."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator

from refdiff.server.signals import stopping

_CHUNK = 65_536


@contextlib.contextmanager
def ended_by_signals(ending: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT become the end of stdin; a second one ends the process at once. Yields: was it Ctrl-C?

    ending: called before the end of stdin, from a thread. A read of stdin cannot be cancelled, so the input passes through
    a pipe, which can be closed.
    """
    if os.name != "posix":  # Windows has no SIGTERM, and select takes no pipes
        yield lambda: False
        return
    caller, (reading, writing), (waking, wake) = os.dup(0), os.pipe(), os.pipe()
    os.dup2(reading, 0)
    os.close(reading)

    def pass_on() -> None:
        try:
            while True:
                ready, _, _ = select.select([caller, waking], [], [])
                if waking in ready:
                    return ending()
                if not (chunk := os.read(caller, _CHUNK)):
                    return ending()  # nobody would wait for a signal any more
                os.write(writing, chunk)
        finally:
            os.close(writing)

    with stopping(lambda: os.write(wake, b"!")) as interrupted:
        threading.Thread(target=pass_on, name="stdin", daemon=True).start()
        yield interrupted
