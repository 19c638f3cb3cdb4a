"""Silent, slow and too many connections, and probes beside them: real sockets against a small application."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from refdiff.server.web import connections
from refdiff.server.web import door as door_module
from refdiff.server.web.connections import BACKLOG, patient
from refdiff.server.web.serve import GracefulServer
from tests.server.bot_server import wait

MOST = 12
BIG = b"x" * 30_000_000


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body; /big answers more than the buffers of a socket take."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": BIG if scope["path"] == "/big" else b"ok"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(connections, "HEADERS_S", 0.4)
    monkeypatch.setattr(connections, "SILENCE_S", 0.4)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_app, log_config=None, lifespan="off", http=patient(MOST), backlog=BACKLOG, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield listener.getsockname()
    server.should_exit = server.force_exit = True
    thread.join(10)


def _dripping(peer: socket.socket, pieces: bytes) -> None:
    with contextlib.suppress(OSError):
        for byte in pieces:
            peer.sendall(bytes([byte]))
            time.sleep(0.05)


PARTS: dict[str, Callable[[socket.socket], object]] = {
    "nothing": lambda peer: None,
    "headers without an end": lambda peer: peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n"),
    "headers byte by byte": lambda peer: _dripping(peer, b"GET / HTTP/1.1\r\n" + b"a" * 40),
    "no body": lambda peer: peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"),
    "half a body": lambda peer: peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234"),
    "half a chunk": lambda peer: peer.sendall(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n12"
    ),
}


@pytest.mark.parametrize("sent", PARTS)
def test_connection_that_keeps_the_server_waiting_is_closed(address: tuple[str, int], sent: str) -> None:
    began = time.monotonic()
    with socket.create_connection(address, timeout=10) as peer:
        PARTS[sent](peer)
        with contextlib.suppress(ConnectionError):
            assert peer.recv(1000) == b""
    assert 0.2 < time.monotonic() - began < 5


def test_client_that_reads_nothing_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as peer:
        peer.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.2)
        received = 0
        with contextlib.suppress(ConnectionError):
            while piece := peer.recv(1 << 20):
                received += len(piece)
    assert received < len(BIG)


def test_body_that_comes_slowly_but_steadily_is_read(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as peer:
        peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n")
        _dripping(peer, b"123456789012")
        assert b"200" in peer.recv(1000)


def test_silent_connections_do_not_keep_others_out(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 60.0)
    with contextlib.ExitStack() as silent:
        for _ in range(5 * MOST):
            silent.enter_context(socket.create_connection(address, timeout=10))
        for _ in range(3):
            with socket.create_connection(address, timeout=10) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" in peer.recv(1000)


OUT_OF_FILES = """
import logging, resource, socket
import uvicorn
from refdiff.server.web.connections import BACKLOG, patient
from refdiff.server.web.serve import GracefulServer
from tests.server.bot_server import wait
from tests.server.web.test_connections import _app
logging.basicConfig(level="WARNING")
listener = socket.create_server(("127.0.0.1", 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
config = uvicorn.Config(_app, log_config=None, lifespan="off", http=patient(1000), backlog=BACKLOG)
tell = lambda: print(listener.getsockname()[1], flush=True)
GracefulServer(config, tell, lambda: None, lambda: (200, b"{}")).run([listener])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files")
def test_server_without_free_file_descriptors_says_so_once_and_recovers() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", OUT_OF_FILES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout
    assert server.stderr
    address = ("127.0.0.1", int(server.stdout.readline()))
    with contextlib.ExitStack() as many:
        for _ in range(60):
            many.enter_context(socket.create_connection(address, timeout=10)).sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(2.5)
    with socket.create_connection(address, timeout=10) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in peer.recv(1000)
    server.terminate()
    log = server.communicate(timeout=10)[1]
    assert len(re.findall("too many files and connections are open", log)) == 1, log
    assert "Traceback" not in log


class _InThread(GracefulServer):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # only the main thread can


@pytest.fixture
def door() -> Iterator[tuple[str, int]]:
    """The door of an application that is busy: each request keeps the event loop for 0.3 s."""

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        time.sleep(0.3)
        await _app(scope, receive, send)

    with _served(busy, lambda: (200, b"{}")) as address:
        yield address


@contextlib.contextmanager
def _served(app: Any, health: Callable[[], tuple[int, bytes]]) -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", http=patient(1000), ws="none")
    server = _InThread(config, lambda: None, lambda: None, health)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield listener.getsockname()
    server.should_exit = server.force_exit = True
    thread.join(10)


def _answer(address: tuple[str, int], request: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as peer:
        peer.sendall(request)
        return b"".join(iter(lambda: peer.recv(1000), b""))


def test_health_is_answered_while_the_event_loop_is_busy(door: tuple[str, int]) -> None:
    with contextlib.ExitStack() as many:
        peers = [many.enter_context(socket.create_connection(door, timeout=10)) for _ in range(10)]
        for peer in peers:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        began = time.monotonic()
        answers = [_answer(door, b"%s /healthz HTTP/1.1\r\nHost: x\r\n\r\n" % m) for m in (b"GET", b"HEAD", b"GET")]
        assert time.monotonic() - began < 1.5  # the ten take three seconds
        assert [(a.startswith(b"HTTP/1.1 200 OK\r\n"), a.endswith(b"{}")) for a in answers] == [
            (True, m) for m in (1, 0, 1)
        ]
        assert all(b"200" in peer.recv(1000) for peer in peers)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /healthzz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"],
        [b"POST /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"],
        [b"", b"", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"],  # silent at first
        [b"\xff\n\n"],
        [b"GET /healthz", b" HTTP/1.1\n\n"],
    ],
)
def test_everything_but_a_plain_probe_is_the_event_loops(door: tuple[str, int], pieces: list[bytes]) -> None:
    with socket.create_connection(door, timeout=10) as peer:
        for piece in pieces:
            time.sleep(0.3)
            peer.sendall(piece)
        received = peer.recv(1000)
    assert received.startswith(b"HTTP/1.1 ")
    assert b"{}" not in received


HOLDING = """
import json, socket, sys, threading, uvicorn
from refdiff.server.web.connections import patient
from refdiff.server.web.serve import GracefulServer
from tests.server.bot_server import wait

async def app(scope, receive, send):
    json.loads(held)  # every thread of this process stands still
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})

held = "[" + "[]," * 8_000_000 + "[]]"
listener = socket.create_server(("127.0.0.1", 0))
config = uvicorn.Config(app, log_config=None, lifespan="off", http=patient(100))
tell = lambda: print(listener.getsockname()[1], flush=True)
GracefulServer(config, tell, lambda: None, lambda: (200, b"{}")).run([listener])
"""


def test_health_is_answered_while_every_thread_of_the_server_stands_still() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDING], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        address = ("127.0.0.1", int(server.stdout.readline()))
        _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n")
        with socket.create_connection(address, timeout=60) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.1)
            began = time.monotonic()
            for _ in range(5):
                assert b" 200 OK" in _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n")
            probes_s = time.monotonic() - began
            assert b" 200 OK" in peer.recv(1000)
            assert probes_s < (time.monotonic() - began) / 2
        server.terminate()


def test_health_that_changes_is_told_and_a_door_that_is_killed_opens_again() -> None:
    health = [200]
    with _served(_app, lambda: (health[0], b'{"a": 1}')) as address:
        for status in (200, 503):
            health[0] = status
            wait(lambda s=status: b" %d " % s in _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n"), 10)
        os.kill(_door_process(), signal.SIGKILL)
        assert b" 200 " in _answer(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 503 " in _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n")


def test_door_that_cannot_be_opened_again_at_once_is_tried_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    start, failed = subprocess.Popen, []

    def failing(*args: Any, **options: Any) -> Any:
        if len(failed) < 2:
            failed.append(OSError(errno.ENOMEM, "Cannot allocate memory"))
            raise failed[-1]
        return start(*args, **options)

    with _served(_app, lambda: (200, b"{}")) as address:
        _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n")
        process = _door_process()
        monkeypatch.setattr("refdiff.server.web.doorkeeper.subprocess.Popen", failing)
        os.kill(process, signal.SIGKILL)
        assert b" 200 " in _answer(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert len(failed) == 2


def test_server_that_shows_no_sign_of_life_is_not_healthy() -> None:
    at_the_door, ours, address = _door_beside()
    ours.sendall(b"200 {}\n")
    wait(lambda: b" 200 " in _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n"), 10)
    at_the_door._heard -= door_module._SILENT_S
    assert b" 503 " in _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n")
    ours.sendall(b"200 {}\n")
    wait(lambda: b" 200 " in _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n"), 10)
    ours.close()


@pytest.mark.parametrize("end", [b"\r\n", b"Host: x\r\n\r\n"])
def test_probe_in_pieces_is_waited_for(door: tuple[str, int], end: bytes) -> None:
    with socket.create_connection(door, timeout=10) as peer:
        for piece in (b"GET /he", b"althz HTTP", b"/1.1\r\n"):
            peer.sendall(piece)
            time.sleep(0.1)
        peer.sendall(end)
        assert peer.recv(1000).endswith(b"{}")


def test_probe_that_breaks_off_is_the_event_loops(door: tuple[str, int]) -> None:
    with socket.create_connection(door, timeout=10) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\n")
        time.sleep(0.1)
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1000) == b""  # at once


def test_of_too_many_silent_connections_those_that_were_so_longest_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.server.web.serve._QUEUE", 2)  # two may be silent
    with _served(_app, lambda: (200, b"{}")) as address, contextlib.ExitStack() as peers:

        def connected() -> socket.socket:
            return peers.enter_context(socket.create_connection(address, timeout=10))

        _answer(address, b"GET /healthz HTTP/1.1\r\n\r\n")
        process = _door_process()
        first, second = connected(), connected()
        time.sleep(0.1)
        os.kill(process, signal.SIGSTOP)  # what happens meanwhile is found at once
        others = connected(), connected()
        first.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        os.kill(process, signal.SIGCONT)
        assert b" 200 " in first.recv(1000)
        assert second.recv(1000) == b""
        for peer in others:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in peer.recv(1000)
        assert _door_process() == process, "the door has died"


def test_requests_wait_until_the_server_takes_them_and_the_newest_of_too_many_are_refused() -> None:
    opened, channel, address = _door_beside()
    _fill(opened)
    with channel, contextlib.ExitStack() as peers:
        many = [peers.enter_context(socket.create_connection(address, timeout=10)) for _ in range(12)]
        for peer in many:  # one after another, so that the order is certain
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(0.02)
        assert [b" 503 " in peer.recv(1000) for peer in many[10:]] == [True, True]
        taken = list[socket.socket]()
        while len(taken) < 10:
            _, fds, _, _ = socket.recv_fds(channel, 1, 1)
            taken += [peers.enter_context(socket.socket(fileno=fd)) for fd in fds]
        assert [t.getpeername() for t in taken] == [peer.getsockname() for peer in many[:10]]


STOPPED = """
import socket, sys, uvicorn
from refdiff.server.web.connections import patient
from refdiff.server.web.serve import GracefulServer
from tests.server.bot_server import wait
from tests.server.web.test_connections import _app

for _ in range(int(sys.argv[1])):
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_app, log_config=None, lifespan="off", http=patient(100), ws="none")
    tell = lambda: print(listener.getsockname()[1], flush=True)
    GracefulServer(config, tell, lambda: None, lambda: (200, b"{}")).run([listener])
"""


def test_requests_sent_just_before_the_server_is_stopped_are_answered() -> None:
    """Whether they wait in the port's queue, at the door, between the door and the server, or on a connection kept open."""
    tries, get = 10, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    body = b"x" * 3_000_000  # more than the buffers of a socket take
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(tries)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        for _ in range(tries):
            address = ("127.0.0.1", int(server.stdout.readline()))
            with contextlib.ExitStack() as peers:
                connect = functools.partial(socket.create_connection, address, timeout=10)
                kept, silent, posting = (peers.enter_context(connect()) for _ in range(3))
                kept.sendall(get)
                answer = b""
                while not answer.endswith(b"0\r\n\r\n"):
                    answer += kept.recv(1000)
                posting.sendall(post + body[:1000])
                many = [peers.enter_context(connect()) for _ in range(40)]
                for peer in (kept, *many):
                    peer.sendall(get)
                server.terminate()
                posting.sendall(body[1000:])
                for peer in (kept, *many, posting):
                    assert b" 200 " in peer.recv(1000)
                assert silent.recv(1000) == b""
        assert server.wait(10) == 0


def _door_beside() -> tuple[door_module.Door, socket.socket, tuple[str, int]]:
    """A door in this process, the server's end of its channel, which nobody reads, and its address."""
    listener, (ours, theirs) = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
    opened = door_module.Door(listener, theirs, 10)
    threading.Thread(target=opened.run, daemon=True).start()
    return opened, ours, listener.getsockname()


def _fill(door: door_module.Door) -> None:
    """Fill its channel: the server takes nothing."""
    with contextlib.suppress(BlockingIOError):
        while True:
            door._channel.send(b"\0", socket.MSG_DONTWAIT)


@pytest.mark.parametrize("body", [b"", b"x" * 100_000, b"x" * 30_000_000], ids=len)
def test_client_that_is_told_to_try_again_gets_the_answer_whatever_it_sends(body: bytes) -> None:
    opened, channel, address = _door_beside()
    _fill(opened)
    for _ in range(10):
        socket.create_connection(address, timeout=10).sendall(b"GET / HTTP/1.1\r\n\r\n")
    wait(lambda: len(opened._queue) == 10, 10)
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with channel:
        for _ in range(3):
            with socket.create_connection(address, timeout=10) as peer:
                peer.sendall(request)
                answer = b"".join(iter(functools.partial(peer.recv, 1000), b""))
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert answer.endswith(b'too many requests at a time; try again"}}')


def _door_process() -> int:
    """The id of the newest door of this process."""
    found = subprocess.run(["pgrep", "-n", "-P", str(os.getpid()), "-f", "door.py"], capture_output=True, text=True)
    return int(found.stdout)
