"""Connections of the HTTP server: how many there may be, and how long one may keep the server waiting.

A connection waits for its client until a request is complete, headers and body. One that is silent too long is closed, and
where there is no room for a new connection, the one that has waited longest for its client makes room. Connections whose
request is being answered are left alone: how many there may be is the middleware's business.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from refdiff.model.files import outage

log = logging.getLogger(__name__)

HEADERS_S = 15.0  # for the headers of a request, however slowly they come
SILENCE_S = 30.0  # between two pieces of a body
CONNECTIONS = 1024  # at most; fewer where the process may open fewer files
_OTHER_FILES = 256  # of databases, photos and libraries
BACKLOG = 512  # connections on their way from the door (see Doorkeeper)
_TOLD_S = 60.0  # between two log lines about the same thing
HUNG_UP = "refdiff.hung_up"  # in a request's scope: called if its client hangs up before the answer is complete


def most_connections() -> int:
    """How many connections there is room for. Raises the soft limit of open files to the hard one, as servers do."""
    if sys.platform == "win32":
        return CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + _OTHER_FILES + BACKLOG
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(CONNECTIONS, soft - _OTHER_FILES - BACKLOG))


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with an end to its patience."""

    most = CONNECTIONS
    waiting: ClassVar[
        dict[PatientProtocol, None]
    ]  # for their clients, longest first; not those whose request is answered
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(HEADERS_S)
        if len(self.connections) > self.most:
            next(iter(self.waiting)).hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        if self.cycle is not None and self.cycle.disconnected:
            hung_up: Any = self.cycle.scope.get(HUNG_UP)
            if hung_up is not None:
                hung_up()

    def handle_events(self) -> None:
        answered = self.cycle
        super().handle_events()
        if self.cycle is None or (self.cycle is answered and answered.response_complete):
            return  # the headers are not complete; their time runs on
        if self.cycle.more_body and not self.cycle.response_complete:
            self._wait(SILENCE_S)
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._wait(HEADERS_S)
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._wait(SILENCE_S)  # the client reads nothing
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def hang_up(self) -> None:
        self._stop_waiting()
        self.transport.abort()

    def _lose_patience(self) -> None:
        if self.flow.read_paused:  # it is the application that does not read
            self._wait(SILENCE_S)
        else:
            self.hang_up()

    def _wait(self, patience_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.waiting[self] = None  # keeps its place
        self._timer = self.loop.call_later(patience_s, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self.waiting.pop(self, None)


def patient(most_: int) -> type[PatientProtocol]:
    """The protocol for at most that many connections."""

    class Protocol(PatientProtocol):
        most = most_
        waiting: ClassVar[dict[PatientProtocol, None]] = {}

    return Protocol


class LoopErrors:
    """Errors of the event loop in few words: an outage, e.g. no free file descriptor, is told once a minute."""

    def __init__(self) -> None:
        self._told = -_TOLD_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        lacking = None if error is None else outage(error)
        if lacking is None:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told >= _TOLD_S:
            self._told = time.monotonic()
            log.warning("%s: %s", context.get("message"), lacking)
