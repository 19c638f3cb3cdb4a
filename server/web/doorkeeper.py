"""The server's end of the door (see `door`): it takes the connections that the door passes on, and says how it is."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refdiff.server.web import door

log = logging.getLogger(__name__)

POSSIBLE = hasattr(socket, "send_fds")  # not on Windows
_TOLD_S = 0.25  # between two looks at the server's health
_AGAIN_S = 1.0  # until a door that was killed is opened again
_AT_ONCE = 64  # connections, before others have their turn
_STOP_S = 2.0  # for a door to end, and for the connections in the port's queue


class Doorkeeper:
    """Of one listening socket, from `start` to `stop`; both run in the event loop's thread.

    health: status and JSON body of /healthz; quick, waits for nothing. protocol: makes that of a connection. most: how many
    requests may wait at the door.
    """

    def __init__(
        self,
        listener: socket.socket,
        health: Callable[[], tuple[int, bytes]],
        protocol: Callable[[], asyncio.Protocol],
        most: int,
    ) -> None:
        self._listener, self._health, self._protocol, self._most = listener, health, protocol, most
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None  # the door has passed on everything
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Raises OSError where no process can be started."""
        self._loop = asyncio.get_running_loop()
        self._open()

    async def stop(self) -> None:
        """Close the port. When this returns, every connection that has come is its protocol's.

        Not so where the door had to be killed, or where there are more than can be taken in two seconds.
        """
        assert self._timer is not None
        self._timer.cancel()
        if self._channel is not None and self._process is not None:
            self._ended = self._loop.create_future()
            with contextlib.suppress(OSError):  # it has ended already
                self._channel.shutdown(socket.SHUT_WR)
            killing = self._loop.call_later(_STOP_S, self._process.kill)
            await asyncio.wait({self._ended}, timeout=2 * _STOP_S)
            killing.cancel()
        self._close()
        until = self._loop.time() + _STOP_S
        self._listener.setblocking(False)
        with contextlib.suppress(OSError):  # none is left, or no more can be taken
            while self._loop.time() < until:
                with contextlib.suppress(ConnectionError):  # its client has gone
                    self._take(self._listener.accept()[0])
                await asyncio.sleep(0)  # those before are read: the protocol hangs up if too many say nothing
        self._listener.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reopen(self) -> None:
        try:
            self._open()
        except OSError as e:  # what ended the last one may be lacking still
            log.warning("no process to take connections can be started (%s); it is tried again", e)
            self._timer = self._loop.call_later(_AGAIN_S, self._reopen)

    def _open(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._start(theirs)
        except OSError:
            ours.close()
            raise
        ours.setblocking(False)
        self._channel = ours
        self._loop.add_reader(ours, self._receive)
        self._tell()

    def _start(self, theirs: socket.socket) -> None:
        with theirs:
            fds = self._listener.fileno(), theirs.fileno()
            # isolated, without site packages: it needs neither, and starts at once
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(door.__file__)), *map(str, fds), str(self._most)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def _close(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:  # stopped or starved: it would keep the port
                self._process.kill()
                self._process.wait()
            self._process = None

    def _tell(self) -> None:
        """Tell the door what /healthz answers, now and from now on: it also shows that the server lives."""
        if self._channel is not None:
            with contextlib.suppress(OSError):  # it is full or gone
                self._channel.send(b"%d %s\n" % self._health())
        self._timer = self._loop.call_later(_TOLD_S, self._tell)

    def _receive(self) -> None:
        assert self._channel is not None
        for _ in range(_AT_ONCE):
            try:
                data, fds, _, _ = socket.recv_fds(self._channel, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, fds = b"", []
            if not data and self._ended is not None:
                self._loop.remove_reader(self._channel)
                self._ended.set_result(None)
                return
            if not data:  # killed: by hand, or for memory
                log.warning("the process that takes connections has ended; it is started again")
                assert self._timer is not None
                self._timer.cancel()
                self._close()
                self._timer = self._loop.call_later(_AGAIN_S, self._reopen)
                return
            if not fds:  # the door could not take a connection, or this process not receive it
                number = data[0] or errno.EMFILE
                self._loop.call_exception_handler(
                    {"message": "no connection can be accepted", "exception": OSError(number, os.strerror(number))}
                )
            for fd in fds:
                self._take(socket.socket(fileno=fd))

    def _take(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()
