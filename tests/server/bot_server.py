"""The real HTTP server with its bots, in this process; and a server that stands for somebody else's."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

import uvicorn

from refdiff.agent.service import InspectionService
from refdiff.server.chat.bots import TeamsCloud, bots
from refdiff.server.settings import ChatSettings, ServerSettings
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app


class FakeServer(ThreadingHTTPServer):
    request_queue_size = 128  # as many at once as a test likes


@contextmanager
def serving(service: InspectionService, teams: TeamsCloud | None = None, **settings: Any) -> Iterator[str]:
    """Its address."""
    access = Access(service.stores.keys, loopback=True, user="tester", without_keys=True)
    app = create_app(service, access, ServerSettings(user="tester"))
    with bots(app, service, ChatSettings(**settings), teams or TeamsCloud()):
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def wait(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What a condition gives once it holds."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found
