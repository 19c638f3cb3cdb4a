"""Running the server: the desk, then uvicorn, until a signal."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from refdiff.memory.keys import KeyStore
from refdiff.server.api.access import Access
from refdiff.server.api.app import create_app
from refdiff.server.api.listen import check_open_to, is_loopback
from refdiff.server.api.logs import log_json
from refdiff.server.chat.bots import bots
from refdiff.server.chat.settings import ChatSettings
from refdiff.server.desk import Desk
from refdiff.server.settings import ServerSettings, load

_STOP_S = 10  # how long open requests may take after a stop is asked for
_CONNECTIONS = 512


def serve(
    listener: socket.socket,
    host: str,
    open_desk: Callable[[], Desk],
    settings: ServerSettings,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM, or until Ctrl-C, which is raised again at the end.

    host: that listener is bound to. ready: called with the address once requests are taken. Raises UnavailableError where
    another server has the home, InputError where the host lets others in without a key.
    """
    with open_desk() as desk, KeyStore(desk.stores.settings.home) as keys, contextlib.ExitStack() as running:
        check_open_to(host, keys)
        chat = load(ChatSettings)
        access = access_to(keys, host, settings, chat)
        log_json(settings.log_level)
        app = create_app(desk, access)
        running.enter_context(bots(app, desk, chat))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False,
            lifespan="off", limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=_STOP_S, ws="none",
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        server = _Server(config, lambda: ready(f"http://{shown}:{listener.getsockname()[1]}"))
        server.run([listener])
    if server.interrupted:
        raise KeyboardInterrupt


def access_to(keys: KeyStore, host: str, settings: ServerSettings, chat: ChatSettings) -> Access:
    """Who may come in at a host, as the settings say."""
    return Access(
        keys, loopback=is_loopback(host), user=settings.user, hosts=tuple(settings.allowed_hosts),
        require_key=settings.require_key or chat.called_from_outside,
    )  # fmt: skip


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self.interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM is an ordinary end, and Ctrl-C is told to the caller after the desk is closed, not before."""
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted |= sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
