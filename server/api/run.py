"""Running the server: the socket first, so that a taken port is told before anything loads; then the desk; then uvicorn."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

import uvicorn

from refdiff.memory.keys import KeyStore
from refdiff.model.errors import InputError, UnavailableError
from refdiff.server.api.access import Access, is_loopback_address
from refdiff.server.api.app import create_app
from refdiff.server.api.logs import log_json
from refdiff.server.chat.bots import bots
from refdiff.server.chat.settings import ChatSettings
from refdiff.server.desk import Desk
from refdiff.server.settings import ServerSettings, load

_STOP_S = 10  # how long open requests may take after a stop is asked for
_CONNECTIONS = 512


def serve(
    host: str, port: int, open_desk: Callable[[], Desk], settings: ServerSettings, ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM. ready: called with the address once requests are taken.

    port: 0 takes a free one. Raises UnavailableError (port taken, another server on the home), InputError (host).
    """
    listener = _listen(host, port)
    with contextlib.closing(listener):
        loopback = is_loopback_address(host)
        with open_desk() as desk, KeyStore(desk.stores.settings.home) as keys, contextlib.ExitStack() as running:
            if not loopback and not keys.any_good():
                raise InputError(
                    f"--host {host} lets other machines in, and there is no API key yet; make one first: "
                    "refdiff keys add NAME --role admin (or serve on 127.0.0.1)"
                )
            access = Access(
                keys, loopback=loopback, user=settings.user, require_key=settings.require_key,
                hosts=tuple(settings.allowed_hosts),
            )  # fmt: skip
            log_json(settings.log_level)
            app = create_app(desk, access)
            running.enter_context(bots(app, desk, load(ChatSettings)))
            config = uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, proxy_headers=False,
                lifespan="off", limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=_STOP_S, ws="none",
            )  # fmt: skip
            shown = f"[{host}]" if ":" in host else host
            server = _Server(config, lambda: ready(f"http://{shown}:{listener.getsockname()[1]}"))
            server.run([listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise InputError(f"--host {host!r}: no address of this machine ({e})") from e
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"port {port} on {host} is taken, perhaps by another `refdiff serve`; choose another: --port {port + 1}"
            ) from e
        raise UnavailableError(
            f"{host}:{port} cannot be listened on ({e.strerror}); choose another --host or --port"
        ) from e
    return listener
