"""Running the server: the desk, then uvicorn, until a signal."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn

from refdiff.agent.service import InspectionService
from refdiff.memory.records.api_keys import KeyStore
from refdiff.server.chat.bots import bots
from refdiff.server.chat.settings import ChatSettings
from refdiff.server.settings import ServerSettings, load
from refdiff.server.sockets import address, check_open_to, is_loopback
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.graceful import GracefulServer
from refdiff.server.web.json_logs import log_json

_STOP_S = 10  # how long open requests may take after a stop is asked for
_CONNECTIONS = 512


def serve(
    listener: socket.socket,
    host: str,
    open_service: Callable[[], InspectionService],
    settings: ServerSettings,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM, or until Ctrl-C, which is raised again at the end.

    host: that listener is bound to. ready: called with the address once requests are taken. Raises UnavailableError where
    another server has the home, InputError where the host lets others in without a key.
    """
    with open_service() as service, KeyStore(service.stores.settings.home) as keys, contextlib.ExitStack() as running:
        check_open_to(host, keys)
        chat = load(ChatSettings)
        access = access_to(keys, host, settings, chat)
        log_json(settings.log_level)
        app = create_app(service, access, settings)
        running.enter_context(bots(app, service, chat))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False,
            lifespan="off", limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=_STOP_S, ws="none",
        )  # fmt: skip
        server = GracefulServer(config, lambda: ready(address(host, listener)), service.drain)
        server.run([listener])
    if server.interrupted:
        raise KeyboardInterrupt


def access_to(keys: KeyStore, host: str, settings: ServerSettings, chat: ChatSettings) -> Access:
    """Who may come in at a host, as the settings say."""
    return Access(
        keys, loopback=is_loopback(host), user=settings.user, hosts=tuple(settings.allowed_hosts),
        require_key=settings.require_key or chat.called_from_outside,
    )  # fmt: skip
