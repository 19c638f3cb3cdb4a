"""The program at the door: takes connections, answers /healthz itself, and passes all others on to the server.

A process of its own, started by `Doorkeeper` as a script and made of the standard library alone: whatever holds up the
server (a long parse, forty threads, a thousand requests) does not hold up a probe, and nobody restarts a server for being
busy. On the channel to the server, each byte sent is a connection (0, with its descriptor) or the error number of a failed
accept; each line received is what /healthz answers from then on, unless the server then says nothing for too long. Once the
server sends no more, this program closes the port, passes on every connection that it holds, and ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import sys
import time
from collections import OrderedDict

_HEALTH = re.compile(rb"(?:GET|HEAD) /healthz(?:\?[^ ]*)? HTTP/1\.[01]\r\n(?:[^\r\n]+\r\n)*\r\n")
_END = re.compile(rb"\n\r?\n")
_BEGINS = (b"GET /healthz", b"HEAD /healthz")
_LOOKED_AT = 4096  # bytes; a probe's headers are shorter
_DROPPED_AT_ONCE = 65_536  # bytes
_WAIT_S = 15.0  # for the first bytes of a connection; then for the server to take it
_UNREAD_S = 5.0  # between two pieces of a request that was answered here: closing before would reset the connection
_PAUSE_S = 0.2  # when no further connection can be taken
_AT_ONCE = 256  # connections
_REFUSED_AT_ONCE = 32  # then new ones again: a probe may be among them
_END_S = 1.0  # for what is left to do at the end
_OTHER_FILES = 16 + _AT_ONCE
_SILENT_S = 120.0  # without a word the server hangs; it says something four times a second, unless work holds it up
_HANGS = b'{"status":"the server has shown no sign of life for two minutes"}'
_BUSY = b'{"error":{"message":"too many requests at a time; try again"}}'


class Door:
    """most: how many requests may wait here until the server takes them; of more, the newest are answered 503. Twice as many
    connections may be silent; of more, those that have been so longest are closed.

    Taking connections and looking at them is cheap and comes before all else: a probe waits for nothing but that.
    """

    def __init__(self, listener: socket.socket, channel: socket.socket, most: int) -> None:
        self._listener, self._channel, self._most = listener, channel, most
        self._silent: OrderedDict[socket.socket, float] = OrderedDict()  # since when
        self._queue: OrderedDict[socket.socket, float] = OrderedDict()  # for the server
        self._answered: OrderedDict[socket.socket, float] = OrderedDict()  # until their clients close them
        self._told = b""  # the beginning of a line
        self._health = (503, b"")
        self._heard = time.monotonic()
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Until the server closes the channel, or its end for sending."""
        self._listener.setblocking(False)
        self._channel.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._channel, selectors.EVENT_READ)
        while self._channel not in (ready := self._ready()) or self._hear():
            if self._listener in ready:
                self._accept()
            for connection in ready:
                if connection in self._silent:
                    self._look(connection)
                elif connection in self._answered:
                    self._read_on(connection)
            self._pass_on()
            self._lose_patience()
        self._end()

    def _ready(self) -> list[socket.socket]:
        found = self._selector.select(0 if len(self._queue) > self._most else _PAUSE_S)
        return [key.fileobj for key, _ in found if isinstance(key.fileobj, socket.socket)]

    def _lose_patience(self) -> None:
        now = time.monotonic()
        for held, patience_s in ((self._silent, _WAIT_S), (self._answered, _UNREAD_S)):
            while held and (len(held) > 2 * self._most or next(iter(held.values())) < now - patience_s):
                self._forget(next(iter(held))).close()
        for _ in range(min(len(self._queue) - self._most, _REFUSED_AT_ONCE)):
            self._answer(next(reversed(self._queue)), 503, _BUSY)
        while self._queue and next(iter(self._queue.values())) < now - _WAIT_S:
            self._answer(next(iter(self._queue)), 503, _BUSY)

    def _end(self) -> None:
        """Pass on everything within a second; connections in the port's queue are left to the server, which has it too."""
        ends = time.monotonic() + _END_S
        for of_the_server in (self._listener, self._channel):
            self._selector.unregister(of_the_server)
        self._listener.close()
        for connection in [*self._queue, *self._silent]:
            self._channel.settimeout(max(0.0, ends - time.monotonic()))
            if not self._give(connection):
                self._answer(connection, 503, _BUSY)
        while self._answered and time.monotonic() < ends:
            for connection in self._ready():
                self._read_on(connection)

    def _hear(self) -> bool:
        """Whether the server is still there."""
        try:
            heard = self._channel.recv(65_536)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        *lines, self._told = (self._told + heard).split(b"\n")
        if lines:
            status, _, body = lines[-1].partition(b" ")
            self._health = (int(status), body)
        self._heard = time.monotonic()
        return bool(heard)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as e:  # no free file descriptor, no memory
                with contextlib.suppress(OSError):
                    self._channel.send(bytes([min(e.errno or 255, 255)]))
                time.sleep(_PAUSE_S)
                return
            connection.setblocking(False)
            self._silent[connection] = time.monotonic()
            self._look(connection)

    def _look(self, connection: socket.socket) -> None:
        try:
            begun = connection.recv(_LOOKED_AT, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            self._wait_for(connection)
            return
        except OSError:
            begun = b""
        if not begun:
            self._forget(connection).close()
        elif _HEALTH.fullmatch(begun):
            silent = time.monotonic() - self._heard > _SILENT_S
            health = (503, _HANGS) if silent else self._health
            self._answer(connection, *health, without_body=begun.startswith(b"HEAD"))
        elif any(b.startswith(begun[: len(b)]) for b in _BEGINS) and len(begun) < _LOOKED_AT and not _END.search(begun):
            self._wait_for(connection, len(begun) + 1)
        else:
            self._enqueue(connection)

    def _wait_for(self, connection: socket.socket, size: int = 1) -> None:
        """Look again once so many bytes have come."""
        try:
            if size > 1:
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) >= size:  # no more will come
                    self._enqueue(connection)
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._selector.register(connection, selectors.EVENT_READ)
        except KeyError:  # registered already
            pass
        except OSError:  # no memory to wait for it here
            self._enqueue(connection)

    def _enqueue(self, connection: socket.socket) -> None:
        if len(self._queue) >= 2 * self._most:  # too many to be refused one after another
            self._answer(connection, 503, _BUSY)
        else:
            self._queue[self._forget(connection)] = time.monotonic()

    def _pass_on(self) -> None:
        """What is in the queue, as long as the channel takes it."""
        while self._queue and self._give(next(iter(self._queue))):
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._queue else 0)
        if self._selector.get_key(self._channel).events != wanted:
            self._selector.modify(self._channel, wanted)

    def _give(self, connection: socket.socket) -> bool:
        """Whether the channel took it."""
        with contextlib.suppress(OSError):  # where it was reset, the server finds that out
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        try:
            socket.send_fds(self._channel, [b"\0"], [connection.fileno()])
        except OSError:
            return False
        self._forget(connection).close()
        return True

    def _answer(self, connection: socket.socket, status: int, body: bytes, without_body: bool = False) -> None:
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Service Unavailable'}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self._forget(connection)
        try:
            connection.send(head.encode() + (b"" if without_body else body))
            connection.shutdown(socket.SHUT_WR)
            self._selector.register(connection, selectors.EVENT_READ)
        except OSError:  # reset meanwhile, or no memory to wait for it
            connection.close()
            return
        self._answered[connection] = time.monotonic()

    def _read_on(self, connection: socket.socket) -> None:
        """Drop a piece of what a client still sends, and close the connection at its end."""
        try:
            more = connection.recv(_DROPPED_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            more = b""
        if not more:
            self._forget(connection).close()
        else:
            self._answered[connection] = time.monotonic()
            self._answered.move_to_end(connection)

    def _forget(self, connection: socket.socket) -> socket.socket:
        for held in (self._silent, self._queue, self._answered):
            held.pop(connection, None)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        return connection


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends when the server does
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where it may: on a busy machine it has its turn at once
        os.nice(-10)
    import resource  # not on Windows, where no door is opened

    listener_fd, channel_fd, most = map(int, sys.argv[1:])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * most + _OTHER_FILES  # twice as many silent, waiting and answered ones
    if 0 <= soft < wanted:
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = max(1, (soft - _OTHER_FILES) // 6)
    Door(socket.socket(fileno=listener_fd), socket.socket(fileno=channel_fd), most).run()
