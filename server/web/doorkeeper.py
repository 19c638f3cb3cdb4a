"""The thread at the door: takes connections, answers /healthz itself, and passes all others on to the event loop.

The event loop answers in turn, so behind a thousand requests a probe would wait for seconds, and whoever watches the server
would restart it because it is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_HEALTH = re.compile(rb"(?:GET|HEAD) /healthz(?:\?[^ ]*)? HTTP/1\.[01]\r\n(?:[^\r\n]+\r\n)*\r\n")
_BEGINS = (b"GET /healthz", b"HEAD /healthz")
_LOOKED_AT = 4096  # bytes; a probe's headers are shorter
_WAIT_S = 0.5  # for the first bytes of a connection; then it is the event loop's
_PAUSE_S = 0.2  # when no further connection can be taken


class Doorkeeper:
    """Of one listening socket, from `start` to `stop`; both run in the event loop's thread.

    health: status and JSON body of /healthz; quick, waits for nothing. protocol: makes that of a connection. most: how many
    connections may wait here, and how many on their way to the event loop; of more, those that sent nothing are closed
    first, and others are answered 503.
    """

    def __init__(
        self,
        listener: socket.socket,
        health: Callable[[], tuple[int, bytes]],
        protocol: Callable[[], asyncio.Protocol],
        most: int,
    ) -> None:
        self._listener, self._health, self._protocol, self._most = listener, health, protocol, most
        self._waiting: OrderedDict[socket.socket, float] = OrderedDict()  # since when
        self._passed, self._arrived = 0, 0  # connections, counted here and in the event loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="doorkeeper", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections; those that wait here are closed."""
        self._stopping.set()
        self._thread.join(2 * _WAIT_S)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select(_PAUSE_S):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._waiting:  # it may have made room for those just accepted
                        self._look(key.fileobj)  # type: ignore[arg-type]
                since = time.monotonic() - _WAIT_S
                while self._waiting and next(iter(self._waiting.values())) < since:
                    self._pass_on(next(iter(self._waiting)))
            for connection in self._waiting:
                connection.close()

    def _accept(self) -> None:
        for _ in range(self._most):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as e:  # no free file descriptor, no memory
                self._loop.call_soon_threadsafe(
                    self._loop.call_exception_handler, {"message": "no connection can be accepted", "exception": e}
                )
                self._stopping.wait(_PAUSE_S)
                return
            connection.setblocking(False)
            self._waiting[connection] = time.monotonic()
            self._look(connection)
            if len(self._waiting) > self._most:
                self._pass_on(next(iter(self._waiting)))

    def _look(self, connection: socket.socket) -> None:
        try:
            begun = connection.recv(_LOOKED_AT, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            with contextlib.suppress(KeyError):  # registered already
                self._selector.register(connection, selectors.EVENT_READ)
            return
        except OSError:
            begun = b""
        if not begun:
            self._forget(connection).close()
        elif _HEALTH.fullmatch(begun):
            status, body = self._health()
            connection.recv(len(begun))
            self._answer(connection, status, body, begun.startswith(b"HEAD"))
        elif not begun.startswith(_BEGINS) or len(begun) == _LOOKED_AT or b"\r\n\r\n" in begun:
            self._pass_on(connection, has_sent=True)
        else:
            with contextlib.suppress(KeyError):  # it would be readable all the time; it is passed on soon
                self._selector.unregister(connection)

    def _pass_on(self, connection: socket.socket, has_sent: bool = False) -> None:
        if self._passed - self._arrived < self._most:
            self._passed += 1
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._receive, self._forget(connection))
        elif has_sent:
            self._answer(connection, 503, b'{"error":{"message":"too many requests at a time; try again"}}')
        else:
            self._forget(connection).close()

    def _answer(self, connection: socket.socket, status: int, body: bytes, without_body: bool = False) -> None:
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Service Unavailable'}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError), self._forget(connection):
            connection.send(head.encode() + (b"" if without_body else body))
            connection.shutdown(socket.SHUT_WR)

    def _forget(self, connection: socket.socket) -> socket.socket:
        del self._waiting[connection]
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        return connection

    # -- in the event loop

    def _receive(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()
        finally:
            self._arrived += 1
